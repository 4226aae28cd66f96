"""Types of the fixtures, to annotate tests with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from gguf_harness.analytics.points import Metric, Points
    from gguf_harness.analytics.results import Clustering, Neighbors, Projection, Silhouette
    from gguf_harness.engine.server import Server
    from gguf_harness.errors import HarnessError
    from gguf_harness.inputs.prompts import Prompt
    from gguf_harness.judge.regressions import Comparison
    from gguf_harness.judge.verdicts import Verdict
    from gguf_harness.measure.attention_results import AttentionDrift, HeadBehaviour
    from gguf_harness.measure.generate import Generation
    from gguf_harness.measure.layers import LayersResult
    from gguf_harness.measure.served import ServedResult
    from gguf_harness.measure.side_by_side import SpeedResult
    from gguf_harness.metrics.embeddings import WordSpace
    from gguf_harness.metrics.records import Estimate, PlacedEstimate
    from gguf_harness.metrics.sensitivity import Sensitivity
    from gguf_harness.metrics.text import TextPair
    from gguf_harness.metrics.weights import TensorError
    from gguf_harness.runner import LoadedModel
    from gguf_harness.store.arrays import Arrays

    Measure = Callable[[LoadedModel], Mapping[str, Estimate]]

__all__ = [
    "Analytics",
    "Attend",
    "BaselineCheck",
    "CorpusPass",
    "Embeddings",
    "GateCheck",
    "Generate",
    "HeadAblation",
    "LayersOf",
    "Record",
    "Serve",
    "Served",
    "Speed",
    "TensorSensitivity",
    "Throughput",
    "WeightErrors",
]


class Record(Protocol):
    """The fixture `record`."""

    def __call__(
        self,
        *estimates: Estimate,
        detail: str | None = None,
        layer: int | None = None,
        head: int | None = None,
        part: str | None = None,
    ) -> None:
        """Keep estimates as rows of the run, whatever the test's outcome.

        Args:
            estimates: what was measured.
            detail: what the metric's name cannot say ("pp512, 5 repetitions").
            layer: where it belongs to one layer of the model.
            head: where it belongs to one head of that layer.
            part: where it belongs to a group of tensors, such as a role.
        """


class GateCheck(Protocol):
    """The fixture `gate`."""

    def __call__(self, estimate: Estimate, *others: Estimate) -> Verdict:
        """Fail the test when an estimate's confidence bound is beyond the limit of its metric.

        Args:
            estimate: its metric must have a gate.
            others: decided as well where their metrics have gates.
        """

    def where_set(
        self, *estimates: Estimate | PlacedEstimate, measure: Measure | None = None, paired: Measure | None = None
    ) -> None:
        """Decide on those estimates whose metrics have gates, none by default: a person may have set some.

        The reference is not held against limits, unless it is the only model.

        Args:
            estimates: of the model under test; with a place where they are of a layer, a head or a group of tensors.
            measure: the same estimates of a given model; called with the reference for limits relative to it.
            paired: their ratios to a given reference, with paired errors, under the metrics of `estimates`.
        """


class BaselineCheck(Protocol):
    """The fixture `baseline`."""

    def __call__(self, metric: str, candidate: LoadedModel, arrays: Arrays, reference: Arrays) -> Comparison:
        """Fail the test when a candidate is worse than in the baseline of --gguf-baseline, or cannot be compared.

        Args:
            metric: one that `gguf_harness.metrics.registry.compared_by_window` names.
            candidate: the model under test.
            arrays: its pass over the corpus.
            reference: the reference's, on the same windows.
        """


class Speed(Protocol):
    """The fixture `speed`."""

    def __call__(self, model: LoadedModel) -> SpeedResult:
        """Timings and memory of a model, timed in turns with the reference; from the cache if they are there."""


class Serve(Protocol):
    """The fixture `server`."""

    def __call__(self, model: LoadedModel) -> Server:
        """A running server of a model; one runs at a time, so that asking for another model stops it."""


class Served(Protocol):
    """The fixture `served`."""

    def __call__(self, model: LoadedModel) -> ServedResult:
        """Throughput and latency of a served model under several clients, from the cache if they are there."""


class Throughput(Protocol):
    """The fixture `throughput`: a measurement in rounds of pytest-benchmark, one per test."""

    def prompt(self, model: LoadedModel) -> None:
        """Prompt processing, llama-bench's pp."""

    def generation(self, model: LoadedModel) -> None:
        """Generation, llama-bench's tg."""

    def load(self, model: LoadedModel) -> None:
        """Loading the model and creating a context."""

    def served(self, model: LoadedModel) -> None:
        """All requests of several clients to a running server."""


class CorpusPass(Protocol):
    """The fixture `corpus_pass`: decodes the corpus, once per model however many tests ask."""

    def __call__(
        self, model: LoadedModel, *, against: LoadedModel | None = None, windows_of: Arrays | None = None
    ) -> Arrays:
        """Per-token values of a model, each [windows, scored tokens].

        Args:
            model: the model to decode.
            against: the reference to compare with.
            windows_of: values of a candidate: only its windows. With --gguf-until-decided these are not all; without,
                it changes nothing.

        Returns:
            nll (nats) and top (token ids); with `against` also kld and kld_reverse (nats); and window, [windows]: which
            windows of the text these are. They are drawn from all of it (--gguf-windows).
        """

    def floor(self, reference: LoadedModel) -> tuple[Arrays, Arrays]:
        """The reference decoded in another batch layout, compared with itself.

        Returns:
            (per-token values of the second decode, those of the first on the same windows).
        """


class Attend(Protocol):
    """The fixture `attention`: decodes the prompts once per model, however many tests ask."""

    def __call__(self, model: LoadedModel) -> HeadBehaviour:
        """What each head of a model does with the prompts."""

    def drift(self, candidate: LoadedModel, reference: LoadedModel) -> AttentionDrift:
        """How far a candidate's attention is from the reference's, on the same tokens."""


class Generate(Protocol):
    """The fixture `generation`: continues all prompts, once per model however many tests ask."""

    def __call__(self, model: LoadedModel, prompt: Prompt) -> Generation:
        """How a model continues a prompt.

        Raises:
            PromptError: the model cannot have this prompt.
        """

    def compare(self, candidate: LoadedModel, reference: LoadedModel, prompt: Prompt) -> TextPair:
        """A candidate's continuation of a prompt beside the reference's.

        Raises:
            PromptError: one of both cannot have this prompt.
            ModelError: their chat templates made different prompts of it.
            NoPrompt: none of the prompts can be compared.
        """

    def compare_all(
        self, candidate: LoadedModel, reference: LoadedModel
    ) -> tuple[Mapping[str, TextPair], Mapping[str, HarnessError]]:
        """All prompts by id: (those that can be compared, those that cannot and why)."""


class WeightErrors(Protocol):
    """The fixture `weight_errors`: every tensor of a candidate beside the reference's."""

    def __call__(self, candidate: LoadedModel, reference: LoadedModel) -> list[TensorError]:
        """Errors of all tensors that both have, from the cache if they are there.

        Raises:
            ModelError: they have no tensor in common, other shapes, or a type that gguf cannot dequantize.
        """


class TensorSensitivity(Protocol):
    """The fixture `sensitivity`: what quantizing each group of tensors alone does to the predictions."""

    def __call__(self, candidate: LoadedModel, reference: LoadedModel) -> Sensitivity:
        """KL divergence by role and by layer; skips the test of a candidate that --gguf-sensitivity leaves out.

        Raises:
            NoData: no tensor differs.
        """


class HeadAblation(Protocol):
    """The fixture `head_ablation`: changes heads and measures what that does, once per model however many tests ask.

    Values are per token, [..., windows, scored], on the same tokens for all models; `detail` says which.
    """

    @property
    def detail(self) -> str:
        """How many windows of how many tokens."""

    def sweep(self, model: LoadedModel) -> Arrays:
        """Each head ablated alone; see `gguf_harness.measure.ablation.run_head_sweep`."""

    def screen(self, model: LoadedModel) -> Arrays:
        """Random subsets of heads ablated together; see `gguf_harness.measure.ablation.run_head_screen`."""

    def interchange(self, candidate: LoadedModel, reference: LoadedModel) -> Arrays:
        """The reference's heads in a candidate; see `gguf_harness.measure.ablation.run_head_interchange`."""

    def removal(self, model: LoadedModel, along: LoadedModel | None = None) -> Arrays:
        """Heads removed one after the other; see `gguf_harness.measure.ablation.run_head_removal`.

        Args:
            model: the model to remove heads from.
            along: the model whose order to follow, rather than to look for one.
        """


class Embeddings(Protocol):
    """The fixture `embeddings`: token embeddings, words and prompts, once per model however many tests ask."""

    def __call__(self, model: LoadedModel) -> Arrays:
        """A model's space of token embeddings; arrays as `gguf_harness.measure.embeddings.measure_embeddings` says."""

    def words(self, model: LoadedModel) -> WordSpace:
        """The words of the session's list that a model has."""

    def contexts(self, model: LoadedModel) -> Arrays:
        """A vector for each prompt; arrays as `gguf_harness.measure.embeddings.measure_contexts` says."""

    def aligned(self, candidate: LoadedModel, reference: LoadedModel) -> Arrays:
        """A candidate's space laid over that of a reference with the same vocabulary; see `align_embeddings`."""


class Analytics(Protocol):
    """The fixture `analytics`: analyses of points, in a child process with a GPU of its own.

    Points are an array [n, d] of numbers, or the path of a .npy file that holds one. The same points and seed give the
    same result. Cosine means that points are scaled to length one before their Euclidean distances count. Results say
    in `backend` what computed them, in `settings` how the method was fitted to the points, and in `warnings` what its
    library said. All but `neighbors` hold the points twice, as float64.

    Raises:
        NoData: from every method: too few points, all the same, not finite; with cosine, points that are zero.
        AnalyticsError: from every method: a setting that does not fit the points.
        EngineCrashed: from every method: the child died; the next call starts another.
    """

    def project(
        self,
        points: Points,
        method: str = "pca",
        *,
        dimensions: int = 2,
        metric: Metric = "euclidean",
        size: float | None = None,
        seed: int = 0,
    ) -> Projection:
        """Points in two or three dimensions.

        Args:
            points: [n, d].
            method: "pca"; "umap" or "tsne", with which only neighborhoods mean something.
            dimensions: 2 or 3.
            metric: "euclidean" or "cosine".
            size: of a neighborhood: UMAP's n_neighbors (15, or all others), t-SNE's perplexity (30, or a third).
            seed: of whatever is random.
        """

    def cluster(
        self,
        points: Points,
        method: str = "kmeans",
        *,
        size: int | None = None,
        metric: Metric = "euclidean",
        seed: int = 0,
    ) -> Clustering:
        """Clusters of points.

        Args:
            points: [n, d].
            method: "kmeans" or "hdbscan".
            size: k-means: number of clusters (that of 2 to 10 with the largest silhouette); HDBSCAN: points of the
                smallest (5).
            metric: "euclidean" or "cosine".
            seed: of whatever is random.
        """

    def neighbors(
        self,
        points: Points,
        k: int = 10,
        *,
        metric: Metric = "cosine",
        rows: NDArray[np.integer] | None = None,
        memory: int = 1 << 30,
    ) -> Neighbors:
        """The nearest other points, by brute force in blocks.

        Args:
            points: [n, d]; of a file, only blocks are in memory.
            k: neighbors of each.
            metric: "euclidean" or "cosine", whose distances are 1 - cos.
            rows: [m], whose neighbors; all if not given.
            memory: bytes that the search may take; `gguf_harness.analytics.neighbors.plan_blocks` has the formula.
        """

    def silhouette(
        self,
        points: Points,
        labels: NDArray[np.integer],
        *,
        metric: Metric = "euclidean",
        limit: int = 5000,
        seed: int = 0,
    ) -> Silhouette:
        """How well each point lies in its cluster (Rousseeuw, 1987).

        Args:
            points: [n, d].
            labels: [n]; points with -1 are left out.
            metric: "euclidean" or "cosine".
            limit: of more points, a random sample of this size is taken.
            seed: of the sample.
        """

    def cka(self, points: Points, others: Points) -> float:
        """Linear centered kernel alignment, from 0 to 1: `gguf_harness.metrics.similarity.linear_cka`.

        Args:
            points: [n, d1].
            others: [n, d2], another representation of the same examples.
        """


class LayersOf(Protocol):
    """The fixture `layers_of`: hidden states on the prompts, decoded once per model however many tests ask."""

    def __call__(self, model: LoadedModel) -> LayersResult:
        """What happens in the layers of a model; see `gguf_harness.measure.layers.measure_layers`."""

    def compare(self, candidate: LoadedModel, reference: LoadedModel) -> LayersResult:
        """The same, with the distance of a candidate's states from the reference's.

        Raises:
            ModelError: models of different shape.
        """

    def importance(self, model: LoadedModel) -> Arrays:
        """Loss without each of the selected layers; see `gguf_harness.measure.patching.measure_importance`."""

    def interchange(self, candidate: LoadedModel, reference: LoadedModel) -> Arrays:
        """KL with the reference's stream put in; see `gguf_harness.measure.patching.measure_interchange`."""

    def selected(self, model: LoadedModel) -> list[int]:
        """The layers of --gguf-layers, all by default.

        Raises:
            OptionError: the model does not have them.
        """
