"""Embeddings: token embeddings, words and prompts, once per subject; and the map of them that the report shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.inputs.models import check_same_vocabulary
from gguf_harness.measure.embeddings.tasks import (
    AlignRequest,
    ContextRequest,
    EmbeddingRequest,
    align_embeddings,
    measure_contexts,
    measure_embeddings,
)
from gguf_harness.measure.measurement import ARRAYS, Job, Measurement

if TYPE_CHECKING:
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.inputs.words import WordList
    from gguf_harness.measure.analyses.calls import Analytics
    from gguf_harness.measure.core import Core
    from gguf_harness.metrics.embedding_estimates import WordSpace
    from gguf_harness.metrics.records import Estimate

__all__ = ["Embeddings"]

Array = NDArray[Any]
Arrays = dict[str, Array]

_SPACE: Final = Measurement("embeddings/space", 2, measure_embeddings, "tokens", ARRAYS)
_CONTEXTS: Final = Measurement("embeddings/contexts", 2, measure_contexts, "prompts", ARRAYS)
_ALIGNED: Final = Measurement("embeddings/aligned", 2, align_embeddings, "steps", ARRAYS)

_SHOWN_NEIGHBOURS: Final = 5
_OTHER: Final = "common tokens"
_UNGROUPED: Final = "analogies"


@dataclass(frozen=True, slots=True)
class _Points:
    """Words and common tokens whose vectors in the model are not zero.

    Attributes:
        places: [n] rows among all words and common tokens.
        vectors: [n, d].
        near: [n, 5] places of the nearest others.
        texts: [all] what to show.
        groups: [all].
        tokens: [all] how many tokens each is the mean of.
    """

    places: Array
    vectors: Array
    near: Array
    texts: Array
    groups: Array
    tokens: Array

    def shown(self, rows: Array) -> Arrays:
        """The report's data for some rows."""
        places = self.places[rows]
        return {
            "texts": self.texts[places],
            "groups": self.groups[places],
            "tokens": self.tokens[places],
            "near": self.texts[self.near[rows]],
        }


class Embeddings:
    """Embedding spaces.

    Args:
        core: runs measurements.
        words: words whose embeddings are compared.
        prompts: prompts, one vector each.
        analytics: computes the map if --gguf-map is not pca.
    """

    def __init__(self, core: Core, words: WordList, prompts: PromptSet, analytics: Analytics) -> None:
        self._core = core
        self._words = words
        self._prompts = prompts
        self._analytics = analytics
        self._method = core.options.map

    def __call__(self, model: Subject) -> Arrays:
        """A model's space of token embeddings; arrays as `measure_embeddings` says.

        Raises:
            NoData: the subject is run with adapters: embeddings are read from the file.
        """
        space = self.space(model)
        points = self._points(space)
        if points is not None:
            xyz, shares = self._project(points.vectors)
            self._keep(model, "embedding_map", xyz, shares, points.shown(np.arange(len(points.places))))
        return space

    def space(self, model: Subject) -> Arrays:
        """The same, without data for the report's map."""
        return self._core.measure(self._space(model))

    def words(self, model: Subject) -> WordSpace:
        """The words of the list that a model has."""
        from gguf_harness.metrics.embedding_estimates import WordSpace

        return WordSpace(self._words.words, self(model))

    def groups(self, model: Subject) -> list[Estimate]:
        """How groups of words hold together; the cosines of all pairs of their words are kept for the report.

        Raises:
            NoData: too few words.
        """
        from gguf_harness.metrics.embedding_estimates import describe_groups, group_cosines

        space, group_of = self.words(model), self._words.group_of
        estimates = describe_groups(space, group_of)
        about = "Cosines of all pairs of words that are in groups."
        self._core.notes.add_arrays(model.name, "word_cosines", about, dict(group_cosines(space, group_of)))
        return estimates

    def analogies(self, model: Subject) -> list[Estimate]:
        """How well analogies between words hold; questions and answers are kept for the report.

        Raises:
            NoData: no question.
        """
        from gguf_harness.metrics.embedding_estimates import answer_analogies

        estimates, answers = answer_analogies(self.words(model), self._words.analogies)
        self._core.notes.add_arrays(model.name, "analogies", "Questions, and the nearest words.", dict(answers))
        return estimates

    def contexts(self, model: Subject) -> Arrays:
        """A vector for each prompt; arrays as in `measure_contexts`."""
        info, prompts = model.info, self._prompts.prompts
        request = ContextRequest(model.files, info.architecture, info.n_layer or 0, model.settings, prompts)
        key = self._core.key(model) | {"prompts": self._prompts.sha256}
        job = Job(_CONTEXTS, f"prompts in {model.name}", key, lambda _: (request,), subjects=(model,))
        contexts = self._core.measure(job)
        lengths = zip(prompts, contexts["prompt_tokens"].tolist(), strict=True)
        left_out = [f"prompt {prompt.id!r}: it does not fit into its context" for prompt, n in lengths if n == 0]
        self._core.notes.warn_of_prompts(model.name, left_out, len(prompts))
        return contexts

    def aligned(self, candidate: Subject, reference: Subject) -> Arrays:
        """A candidate's space aligned with that of a reference with the same vocabulary; see `align_embeddings`."""
        check_same_vocabulary(candidate.info, reference.info)
        own, base = self._points(self(candidate)), self._points(self(reference))
        arrays = self.alignment(candidate, reference)
        if own is not None and base is not None and arrays["map_vectors"].shape[1] == base.vectors.shape[1]:
            self._keep_moved(candidate, own, base, arrays["map_vectors"])
        return arrays

    def alignment(self, candidate: Subject, reference: Subject) -> Arrays:
        """The same, without data for the report's map."""
        return self._core.measure(self._aligned(candidate, reference))

    def _space(self, model: Subject) -> Job[Arrays]:
        model.require_no_adapters("token embeddings")
        request = EmbeddingRequest(model.files, model.settings, self._words.words)
        # Depends only on the file: settings do not change weights.
        key = {"model": model.sha256, "engine": self._core.llama_cpp.key, "words": self._words.sha256}
        return Job(_SPACE, f"embeddings of {model.name}", key, lambda _: (request,), subjects=(model,))

    def _aligned(self, candidate: Subject, reference: Subject) -> Job[Arrays]:
        space = self._space(candidate)
        of, over = (self._core.entry(each).digest for each in (space, self._space(reference)))

        def arguments(_: object) -> tuple[AlignRequest]:
            own = self._core.measure(space)
            vectors = np.concatenate([own["word_vectors"], own["map_vectors"]])
            return (AlignRequest(candidate.files, reference.files, vectors, candidate.settings.threads),)

        label = f"{candidate.name} over {reference.name}"
        return Job(_ALIGNED, label, {"of": of, "over": over}, arguments, subjects=(candidate, reference))

    def _keep_moved(self, candidate: Subject, own: _Points, base: _Points, moved: Array) -> None:
        """Keep the candidate's points in the reference's map, and their positions in the reference."""
        both, mine, theirs = np.intersect1d(own.places, base.places, return_indices=True)
        if len(both) <= _SHOWN_NEIGHBOURS:
            return
        (here, there), shares = self._project_both(moved[both], base, theirs)
        stay = [len(set(a) & set(b)) for a, b in zip(own.near[mine].tolist(), base.near[theirs].tolist(), strict=True)]
        about = own.shown(mine) | {"from_xyz": there.astype(np.float32), "stay": np.array(stay)}
        self._keep(candidate, "embedding_map_aligned", here, shares, about)

    def _project(self, vectors: Array) -> tuple[Array, Array]:
        """([n, 3], [3] shares of the variance, zero if the method has none)."""
        if self._method == "pca":
            mean, axes, shares = _axes(vectors)
            return (vectors - mean) @ axes, shares
        projection = self._analytics.project(vectors, self._method, dimensions=3, metric="cosine")
        return projection.coordinates, np.zeros(3)

    def _project_both(self, moved: Array, base: _Points, theirs: Array) -> tuple[tuple[Array, Array], Array]:
        """Candidate and reference in the reference's own map, which is the same for all candidates.

        Methods without axes would lay out each candidate differently: its words are put among the reference's instead.
        """
        if self._method == "pca":
            mean, axes, shares = _axes(base.vectors)
            return ((moved - mean) @ axes, (base.vectors[theirs] - mean) @ axes), shares
        from gguf_harness.metrics.kernels.placing import place_among

        layout, shares = self._project(base.vectors)
        return (place_among(moved, base.vectors, layout), layout[theirs]), shares

    def _points(self, space: Arrays) -> _Points | None:
        """The points; None if there are too few for neighbours."""
        from gguf_harness.metrics.kernels.nearest import nearest_by_cosine, row_blocks

        words, group_of, common = self._words.words, self._words.group_of, space["map_texts"].tolist()
        tokens = np.concatenate([space["word_tokens"], np.ones(len(common), dtype=np.int64)])
        vectors = np.concatenate([space["word_vectors"], space["map_vectors"]])
        places = np.flatnonzero((tokens > 0) & vectors.any(axis=1))
        if len(places) <= _SHOWN_NEIGHBOURS:
            return None
        vectors = vectors[places]
        near = nearest_by_cosine(vectors, row_blocks(vectors), _SHOWN_NEIGHBOURS, np.arange(len(places))).rows
        groups = [group_of.get(word, _UNGROUPED) for word in words] + [_OTHER] * len(common)
        return _Points(
            places, vectors, places[near], np.array([*words, *common], np.str_), np.array(groups, np.str_), tokens
        )

    def _keep(self, model: Subject, name: str, xyz: Array, shares: Array, about: Arrays) -> None:
        arrays = {"xyz": xyz.astype(np.float32), "shares": shares, "method": np.array(self._method), **about}
        self._core.notes.add_arrays(model.name, name, "Words and common tokens in three dimensions.", arrays)


def _axes(vectors: Array) -> tuple[Array, Array, Array]:
    from gguf_harness.metrics.blas import blas_threads
    from gguf_harness.metrics.kernels.pca import principal_axes

    with blas_threads(1, 0):
        return principal_axes(vectors, 3)
