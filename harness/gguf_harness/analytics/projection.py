"""Projections to two or three dimensions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import AnalyticsError
from gguf_harness.metrics.kernels.pca import axis_signs

__all__ = ["PROJECTORS", "Projected", "Projector"]

_TSNE_PERPLEXITY: Final = 30.0
_UMAP_NEIGHBORS: Final = 15
_UMAP_MIN_DIST: Final = 0.1


@dataclass(frozen=True, slots=True)
class Projected:
    """What a projector returns.

    Attributes:
        coordinates: [n, dimensions].
        settings: the settings used, adapted to the number of points.
        arrays: further results.
    """

    coordinates: NDArray[np.float64]
    settings: dict[str, Any]
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class Projector(Protocol):
    """A projection method."""

    @property
    def least(self) -> int:
        """Fewest points for which it is defined."""

    @property
    def package(self) -> str:
        """Package that implements it."""

    def project(self, points: NDArray[np.float64], dimensions: int, seed: int, size: float | None) -> Projected:
        """Project.

        Args:
            points: [n, d], centered, finite, not all the same.
            dimensions: of the result.
            seed: of whatever is random.
            size: of the neighborhood that is kept, in points; None for the method's default, or less if there are not
                enough points.

        Raises:
            AnalyticsError: a size that does not fit the points.
        """


class _PCA:
    """Principal components, by singular values of the centered points.

    Jolliffe (2002), "Principal Component Analysis". Signs are those of `axis_signs`. Axes beyond the rank of the points
    are zero.
    """

    least = 2
    package = "scikit-learn"

    def project(self, points: NDArray[np.float64], dimensions: int, seed: int, size: float | None) -> Projected:
        from sklearn.decomposition import PCA

        if size is not None:
            raise AnalyticsError(f"PCA has no neighborhoods, but was given a size of {size:g}.", "Leave it out.")
        n, d = points.shape
        kept = min(dimensions, n, d)
        # For many points the covariance is the smaller matrix, and precise enough since they are centered.
        solver = "covariance_eigh" if n > d > 1 else "full"
        pca = PCA(kept, svd_solver=solver, random_state=seed)
        projected = np.asarray(pca.fit_transform(points), dtype=np.float64)
        axes = np.asarray(pca.components_, dtype=np.float64)
        coordinates, explained = np.zeros((n, dimensions)), np.zeros(dimensions)
        coordinates[:, :kept] = projected * axis_signs(axes)
        explained[:kept] = np.clip(np.asarray(pca.explained_variance_ratio_, dtype=np.float64), 0.0, 1.0)
        return Projected(coordinates, {"solver": solver}, {"explained": explained})


class _UMAP:
    """Uniform manifold approximation (McInnes, Healy and Melville, 2018), of umap-learn.

    `size` is its n_neighbors. Its import and first use compile code, which takes seconds.
    """

    least = 4
    package = "umap-learn"

    def project(self, points: NDArray[np.float64], dimensions: int, seed: int, size: float | None) -> Projected:
        import umap

        n = len(points)
        neighbors = min(_UMAP_NEIGHBORS, n - 1) if size is None else int(size)
        if not 2 <= neighbors < n:
            raise AnalyticsError(
                f"UMAP cannot keep {size:g} neighbors of {n} points.",
                f"Give from 2 to {n - 1}, or leave it to the method.",
            )
        # The spectral layout needs more points than axes; its solver needs a few more.
        init = "spectral" if n > 2 * dimensions + 2 else "random"
        settings = {"n_neighbors": neighbors, "min_dist": _UMAP_MIN_DIST, "init": init}
        # With a seed umap-learn uses one thread; set explicitly, it does not warn.
        coordinates = umap.UMAP(n_components=dimensions, random_state=seed, n_jobs=1, **settings).fit_transform(points)
        return Projected(np.asarray(coordinates, dtype=np.float64), settings)


class _TSNE:
    """t-distributed stochastic neighbor embedding (van der Maaten and Hinton, 2008), Barnes-Hut, of scikit-learn.

    `size` is its perplexity; by default 30, or a third of the other points.
    """

    least = 4
    package = "scikit-learn"

    def project(self, points: NDArray[np.float64], dimensions: int, seed: int, size: float | None) -> Projected:
        from sklearn.manifold import TSNE

        n, d = points.shape
        perplexity = min(_TSNE_PERPLEXITY, (n - 1) / 3) if size is None else size
        if not 1 <= perplexity < n:
            raise AnalyticsError(
                f"t-SNE cannot have perplexity {perplexity:g} with {n} points.",
                f"Give from 1 to less than {n}, or leave it to the method.",
            )
        settings = {"perplexity": perplexity, "init": "pca" if min(n, d) >= dimensions else "random"}
        coordinates = TSNE(dimensions, random_state=seed, **settings).fit_transform(points)
        return Projected(np.asarray(coordinates, dtype=np.float64), settings)


PROJECTORS: Final[dict[str, Projector]] = {"pca": _PCA(), "umap": _UMAP(), "tsne": _TSNE()}
"""Methods by name."""
