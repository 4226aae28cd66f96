"""Effect of each head on the next-token distribution: ablation, interchange, removal. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import CorpusError, EngineError, VocabularyMismatch
from gguf_harness.measure.heads.distributions import Distributions
from gguf_harness.measure.heads.layout import read_layout
from gguf_harness.measure.heads.patched import Change, Job, Patched, Variant
from gguf_harness.measure.heads.removing import Removal, RemovalLimits
from gguf_harness.measure.heads.states import read_states
from gguf_harness.measure.passes.tasks import CorpusText
from gguf_harness.measure.prompt_inputs import check_context
from gguf_harness.metrics.importance import Head, greedy_removal
from gguf_harness.store.arrays import load_arrays

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.measure.heads.distributions import Values
    from gguf_harness.store.arrays import Arrays

__all__ = [
    "HeadRequest",
    "run_head_interchange",
    "run_head_path",
    "run_head_removal",
    "run_head_screen",
    "run_head_sweep",
    "run_head_values",
]

_MOST_BYTES: Final = 1 << 30
"""Most bytes of distributions and activations in memory."""


@dataclass(frozen=True, slots=True)
class HeadRequest:
    """What to decode.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how to run it; `n_ctx` is the window, and the physical batch holds the logical one.
        corpus: the text.
        windows: how many windows of it.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    corpus: CorpusText
    windows: int


class _Measurement:
    """A loaded model, its windows, and its results on them without changes."""

    def __init__(self, worker: WorkerContext, request: HeadRequest, tokens: Tokens | None = None) -> None:
        self.worker = worker
        self.name = request.model
        self.layout = read_layout(request.files[0])
        self.settings = request.settings
        self.loaded = worker.model(request.files, request.settings.n_gpu_layers)
        windows = spread_windows(self.loaded, request) if tokens is None else tokens
        vocabulary = self.loaded.vocabulary.n_tokens
        _check_memory(len(windows) * windows.shape[1] * vocabulary * 4, "Next-token distributions")
        self.clean = Distributions(windows, vocabulary)
        self.states = read_states(self.loaded, self.settings, self.layout, self.clean)
        self.values = self.states.z

    def patched(self) -> Patched:
        return Patched(self.loaded, self.settings, self.layout)

    def removal(self, patched: Patched) -> Removal:
        return Removal(patched, self.clean, self.states, self.layout)

    def nll(self) -> NDArray[np.float64]:
        """[windows, scored] of the unchanged model."""
        return np.stack([self.clean.losses(window, logs) for window, logs in enumerate(self.clean.logs)])

    def zeros(self, window: int, heads: Sequence[Head]) -> Variant:
        """A window with heads that contribute nothing."""
        return Variant(window, tuple(self.change(head, np.zeros(1, dtype=np.float32)) for head in heads))

    def change(self, head: Head, values: Values) -> Change:
        return Change(head[0], self.columns(head), values)

    def columns(self, head: Head) -> slice:
        return self.layout.columns(*head, self.values[head[0]].shape[-1])


def spread_windows(model: Model, request: HeadRequest) -> Tokens:
    """[windows, n_ctx]: the requested number of a pass's windows, evenly spread over the corpus.

    BOS replaces the first token of each if the vocabulary requires it.

    Raises:
        CorpusError: the corpus has fewer windows.
    """
    every = _all_windows(model, request, request.windows, "")
    return every[_spread(len(every), request.windows)]


def other_windows(model: Model, request: HeadRequest) -> Tokens:
    """As many windows, evenly spread over those that are not in `spread_windows`.

    Raises:
        CorpusError: the corpus has fewer windows.
    """
    more = f", and {request.windows} more to measure the loss without heads on"
    every = _all_windows(model, request, 2 * request.windows, more)
    others = np.delete(every, _spread(len(every), request.windows), axis=0)
    return others[_spread(len(others), request.windows)]


def _spread(available: int, count: int) -> NDArray[np.int64]:
    """Places from the first to the last, each once: fewer than the count if there are no more."""
    return np.unique(np.linspace(0, available - 1, count).round().astype(np.int64))


def _all_windows(model: Model, request: HeadRequest, needed: int, more: str) -> Tokens:
    check_context(model, request.model, request.settings)
    tokens, n_ctx = model.tokenize(request.corpus.text), request.settings.n_ctx
    available = len(tokens) // n_ctx
    if available < needed:
        possible = available * request.windows // needed
        fewer = f"Use --gguf-head-windows={possible} or less, or a" if possible > 1 else "Use a"
        raise CorpusError(
            f"Corpus {request.corpus.name!r} has {available} windows of {n_ctx} tokens, --gguf-head-windows asks for"
            f" {request.windows}{more}.",
            f"{fewer} longer text.",
        )
    windows: Tokens = tokens[: available * n_ctx].reshape(available, n_ctx)
    if model.vocabulary.add_bos:
        windows[:, 0] = model.vocabulary.bos
    return windows


def run_head_sweep(
    worker: WorkerContext, request: HeadRequest, heads: Sequence[Head], known: Arrays | None = None
) -> Arrays:
    """Ablate each head alone: its z becomes zero, or its mean over all tokens of the windows.

    Args:
        worker: that the task runs in.
        request: the model.
        heads: to ablate.
        known: what `run_head_screen` has found on some of the windows, which is not decoded again.

    Returns:
        heads, [heads, 2] layer and head; nll, [windows, scored] of the unchanged model; nll_zero, kld_zero, nll_mean
        and kld_mean, [heads, windows, scored], the KLs from the unchanged model.
    """
    model = _Measurement(worker, request)
    _check_heads(model, heads)
    windows, scored = model.clean.shape
    arrays = {
        name: np.empty((len(heads), windows, scored)) for name in ("nll_zero", "kld_zero", "nll_mean", "kld_mean")
    }
    screened = _screened(known)
    jobs: dict[int, list[Job]] = {layer: [] for layer, _ in heads}
    for place, head in enumerate(heads):
        mean = model.values[head[0]][..., model.columns(head)].mean(axis=(0, 1))
        for kind, values in (("zero", np.zeros_like(mean)), ("mean", mean)):
            for window in range(windows):
                into = (arrays[f"nll_{kind}"][place, window], arrays[f"kld_{kind}"][place, window])
                if kind == "zero" and (found := screened.get((head, window))) is not None:
                    into[0][:], into[1][:] = found
                    continue
                variant = Variant(window, (model.change(head, values),))
                jobs[head[0]].append((variant, partial(_keep, model.clean, window, *into)))
    _work(model, jobs)
    return {"heads": _pairs(heads), "nll": model.nll(), **arrays}


def run_head_screen(worker: WorkerContext, request: HeadRequest, count: int) -> Arrays:
    """Ablate every head alone on some of the windows: its z becomes zero.

    Args:
        worker: that the task runs in.
        request: the model.
        count: how many of its windows, from the first to the last.

    Returns:
        heads, [heads, 2] of all; windows, [count] which of the requested ones; nll, [count, scored] of the unchanged
        model; nll_zero and kld_zero, [heads, count, scored].
    """
    model = _Measurement(worker, request)
    heads = model.layout.all
    chosen = _spread(model.clean.shape[0], count)
    nll, kld = np.empty((2, len(heads), len(chosen), model.clean.shape[1]))
    jobs: dict[int, list[Job]] = {layer: [] for layer in model.layout.layers}
    for place, head in enumerate(heads):
        for at, window in enumerate(chosen.tolist()):
            keep = partial(_keep, model.clean, window, nll[place, at], kld[place, at])
            jobs[head[0]].append((model.zeros(window, [head]), keep))
    _work(model, jobs)
    return {"heads": _pairs(heads), "windows": chosen, "nll": model.nll()[chosen], "nll_zero": nll, "kld_zero": kld}


def _screened(known: Arrays | None) -> dict[tuple[Head, int], tuple[NDArray[Any], NDArray[Any]]]:
    """(nll, KL) of each head and window of a screen."""
    if known is None:
        return {}
    return {
        ((layer, head), window): (known["nll_zero"][place, at], known["kld_zero"][place, at])
        for place, (layer, head) in enumerate(known["heads"].tolist())
        for at, window in enumerate(known["windows"].tolist())
    }


def run_head_values(worker: WorkerContext, request: HeadRequest) -> Arrays:
    """Compute the reference's values for comparisons.

    Returns:
        tokens, [windows, n_ctx]; logs, [windows, scored, vocabulary] log-probabilities up to a constant; z0, z1, ...:
        the mixed values of each layer, [windows, n_ctx, width].
    """
    model = _Measurement(worker, request)
    _check_memory(sum(values.nbytes for values in model.values.values()), "Values of all heads")
    values = {f"z{layer}": values for layer, values in model.values.items()}
    return {"tokens": model.clean.windows, "logs": model.clean.logs, **values}


def run_head_interchange(worker: WorkerContext, request: HeadRequest, reference: Path, heads: Sequence[Head]) -> Arrays:
    """Put the reference's z into the candidate, one head at a time and one layer at a time.

    Args:
        worker: that the task runs in.
        request: the candidate.
        reference: the arrays of `run_head_values`.
        heads: heads to replace one at a time.

    Returns:
        heads, [heads, 2]; layers, [layers]; KL(reference || candidate): kld, [windows, scored], unchanged; kld_heads,
        [heads, windows, scored]; kld_layers, [layers, windows, scored].
    """
    stored = load_arrays(reference)
    tokens = stored["tokens"].astype(np.int32)
    model = _Measurement(worker, request, tokens)
    theirs = {layer: stored[f"z{layer}"].astype(np.float32) for layer in model.layout.layers if f"z{layer}" in stored}
    logs = stored["logs"].astype(np.float32, copy=False)
    if logs.shape != model.clean.logs.shape:
        raise VocabularyMismatch(
            f"{request.model} computes logits of {model.clean.logs.shape[2]} tokens, its reference of {logs.shape[2]}.",
            "Compare models that share a vocabulary.",
        )
    if {layer: z.shape for layer, z in theirs.items()} != {layer: z.shape for layer, z in model.values.items()}:
        raise EngineError(
            f"{request.model} has different heads from its reference.",
            "Compare a model with the one that it was made from.",
        )
    _check_heads(model, heads)
    compared = Distributions(tokens, logs.shape[2], logs)
    windows, scored = compared.shape
    layers = model.layout.layers
    of_heads, of_layers = np.empty((len(heads), windows, scored)), np.empty((len(layers), windows, scored))
    # Replacements by layer: the columns, and where to store the KL.
    parts = {layer: [(slice(0, theirs[layer].shape[-1]), of_layers[row])] for row, layer in enumerate(layers)}
    for place, head in enumerate(heads):
        parts[head[0]].append((model.columns(head), of_heads[place]))
    jobs: dict[int, list[Job]] = {layer: [] for layer in layers}
    for layer, (columns, into) in ((layer, part) for layer, of_layer in parts.items() for part in of_layer):
        for window in range(windows):
            change = Change(layer, columns, theirs[layer][window][:, columns])
            jobs[layer].append((Variant(window, (change,)), partial(_keep, compared, window, None, into[window])))
    _work(model, jobs)
    return {
        "heads": _pairs(heads),
        "layers": np.array(layers, dtype=np.int64),
        "kld": np.stack([compared.compare(window, logs)[1] for window, logs in enumerate(model.clean.logs)]),
        "kld_heads": of_heads,
        "kld_layers": of_layers,
    }


def run_head_removal(
    worker: WorkerContext, request: HeadRequest, costs: dict[Head, float], limits: RemovalLimits
) -> Arrays:
    """Remove heads (their z becomes zero) until the loss has risen far enough.

    What goes next is chosen by `greedy_removal` on some of the windows, and the loss is measured on others.

    Returns:
        heads, [removed, 2] in their order; rest, [not removed, 2], by their costs; nll, [removed + 1, windows, scored]
        of `other_windows`, starting with none removed.
    """
    loaded = worker.model(request.files, request.settings.n_gpu_layers)
    windows = spread_windows(loaded, request)
    choosing = _Measurement(worker, request, windows[_spread(len(windows), limits.choosing)])
    judging = _Measurement(worker, request, other_windows(loaded, request))
    path: list[Head] = []
    curve = [judging.nll()]
    with choosing.patched() as one, judging.patched() as other:
        chooser, judge = choosing.removal(one), judging.removal(other)

        def change(heads: tuple[Head, ...]) -> float:
            chooser.go_on(heads[:-1])
            return float(chooser.changes(heads[-1]).mean())

        for head in greedy_removal(costs, change, tries=limits.tries):
            judge.go_on(path)
            curve.append(judge.losses(head))
            path.append(head)
            worker.progress(len(path), len(costs))
            if limits.end(curve):
                break
    rest = sorted(costs.keys() - set(path), key=lambda head: (costs[head], head))
    return {"heads": _pairs(path), "rest": _pairs(rest), "nll": np.stack(curve)}


def run_head_path(worker: WorkerContext, request: HeadRequest, path: Sequence[Head], limits: RemovalLimits) -> Arrays:
    """Remove heads in a given order, such as another model's, until the loss has risen far enough.

    Returns:
        heads and nll, as `run_head_removal` does.
    """
    loaded = worker.model(request.files, request.settings.n_gpu_layers)
    model = _Measurement(worker, request, other_windows(loaded, request))
    _check_heads(model, path)
    curve = [model.nll()]
    with model.patched() as patched:
        removal = model.removal(patched)
        for done, head in enumerate(path):
            removal.go_on(path[:done])
            curve.append(removal.losses(head))
            worker.progress(done + 1, len(path))
            if limits.end(curve):
                break
    return {"heads": _pairs(path[: len(curve) - 1]), "nll": np.stack(curve)}


def _work(model: _Measurement, jobs: Mapping[int, Sequence[Job]]) -> None:
    """Do the jobs layer by layer: a batch is computed from the first layer on that it changes."""
    before, total = 0, sum(len(of_layer) for of_layer in jobs.values())
    with model.patched() as patched:
        for of_layer in jobs.values():
            for done in patched.decode(model.clean, of_layer, model.states):
                model.worker.progress(before + done, total)
            before += len(of_layer)


def _keep(
    kept: Distributions,
    window: int,
    nll: NDArray[np.float64] | None,
    kld: NDArray[np.float64] | None,
    logits: Values,
) -> None:
    comparison = kept.compare(window, logits)
    for into, values in zip((nll, kld), comparison, strict=True):
        if into is not None:
            into[:] = values


def _check_heads(model: _Measurement, heads: Sequence[Head]) -> None:
    unknown = sorted(set(heads) - set(model.layout.all))
    if unknown:
        raise EngineError(
            f"{model.name} has no head {unknown[0][1]} in a layer {unknown[0][0]}.",
            "Compare heads of models with the same shape.",
        )


def _pairs(heads: Sequence[Head]) -> NDArray[np.int64]:
    return np.array(heads, dtype=np.int64).reshape(-1, 2)


def _check_memory(needed: int, what: str) -> None:
    if needed > _MOST_BYTES:
        raise CorpusError(
            f"{what} would take {needed / 1e9:.1f} GB of memory, the limit is {_MOST_BYTES / 1e9:.1f} GB.",
            "Use fewer --gguf-head-windows.",
        )
