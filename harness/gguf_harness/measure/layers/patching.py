"""Effect of single layers, by skipping them or replacing their output by another model's. Runs in a worker.

Skipping (ablation): the residual stream passes a block unchanged. Interchange (Geiger et al. 2021, "Causal
Abstractions of Neural Networks"): the reference's residual stream replaces the candidate's after a layer, so that only
later layers are the candidate's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.measure.layers.states import (
    NOT_ALONE,
    LayersRequest,
    PromptTokens,
    StateFiles,
    prompt_tokens,
    short_settings,
)
from gguf_harness.measure.layers.tasks import STATES_FOLDER, kld_rows, nll_rows, stored_tokens
from gguf_harness.measure.layers.unembedding import ModelFile

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["EMBED", "measure_importance", "measure_interchange"]

F32 = NDArray[np.float32]

EMBED: Final = -1
"""Stands for the embeddings instead of a layer."""
_ALL_OWN: Final = -2


def measure_importance(
    worker: WorkerContext, request: LayersRequest, reference: Path | None, layers: Sequence[int]
) -> Arrays:
    """Next-token loss on the prompts, with all blocks and without each.

    Args:
        worker: that the task runs in.
        request: the model.
        reference: folder of the cache entry whose tokens are decoded; None for the model's own.
        layers: blocks to skip, each alone.

    Returns:
        layers [skipped]: the requested ones, without the first if its input is not known; starts [prompts + 1] of
        predicted tokens; nll [n] and skipped [skipped, n], in nats.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    given = prompt_tokens(model, request) if reference is None else stored_tokens(reference)
    weights = ModelFile(request.files)
    known = [layer for layer in layers if layer > 0 or all(name not in weights for name in NOT_ALONE)]

    def loss(lane: _Lane, layer: int) -> NDArray[np.float64]:
        lane.skip(None if layer == _ALL_OWN else layer)
        return np.concatenate([_loss(lane.context, given.tokens[part]) for part in given.slices])

    with _lanes(model, request, given, weights) as lanes:
        base, *skipped = lanes.map(loss, (_ALL_OWN, *known), worker.progress)
    lengths = np.diff(given.starts) - 1
    return {
        "layers": np.array(known, dtype=np.int64),
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "nll": base,
        "skipped": np.array(skipped).reshape(len(known), len(base)),
    }


def measure_interchange(
    worker: WorkerContext, request: LayersRequest, reference: Path, layers: Sequence[int]
) -> Arrays:
    """Divergence from the reference with its residual stream put in after each layer.

    Args:
        worker: that the task runs in.
        request: the candidate.
        reference: folder of the reference's cache entry, with its states.
        layers: after which the stream is replaced, each alone.

    Returns:
        layers [replaced], starts [prompts + 1] of tokens, kld [n] of the unchanged candidate, embed [n] with the
        reference's embeddings, and replaced [replaced, n]; KL(reference || candidate) in nats.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    given, base = stored_tokens(reference), StateFiles(reference / STATES_FOLDER)
    logits = base.load("logits")

    def divergence(lane: _Lane, layer: int) -> NDArray[np.float64]:
        place = _Place(layer, base)
        lane.replace(None if layer == _ALL_OWN else place)
        divergences = []
        for part in given.slices:
            place.at = part.start
            divergences.append(kld_rows(logits[part], lane.context.logits(given.tokens[part])))
        return np.concatenate(divergences)

    with _lanes(model, request, given, ModelFile(request.files)) as lanes:
        own, embed, *replaced = lanes.map(divergence, (_ALL_OWN, EMBED, *layers), worker.progress)
    return {
        "layers": np.array(layers, dtype=np.int64),
        "starts": given.starts,
        "kld": own,
        "embed": embed,
        "replaced": np.array(replaced).reshape(len(layers), len(own)),
    }


class _Place:
    """Puts the reference's stream into a tap: its rows from `at` on, for one physical batch."""

    def __init__(self, layer: int, base: StateFiles) -> None:
        self.tap = "embed" if layer == EMBED else f"blocks.{layer}.resid_post"
        self._states = base.load("embed") if layer == EMBED else base.load("resid_post")[max(layer, 0)]
        self.at = 0

    def patch(self, _: str, values: F32) -> F32:
        start, self.at = self.at, self.at + len(values)
        return self._states[start : self.at]


class _Lane(contextlib.AbstractContextManager["_Lane"]):
    """A context in which one layer is skipped, or gets another model's stream."""

    def __init__(self, model: Model, settings: SessionSettings, architecture: str, n_layer: int) -> None:
        from gguf_harness.engine.context import Context
        from gguf_harness.engine.taps import Taps

        self._taps = Taps(architecture, n_layer, changing=True)
        self._stream: list[F32] = []
        self.context = Context(model, settings, self._taps)

    def skip(self, layer: int | None) -> None:
        """From now on, copy the stream before a block to its output; None for no change."""
        if layer is None:
            self._taps.watch()
            return
        before = "embed" if layer == 0 else f"blocks.{layer - 1}.resid_post"
        self._taps.watch(
            read={before: lambda _, values: self._stream.append(values.copy())},
            patch={f"blocks.{layer}.resid_post": lambda *_: self._stream.pop()},
        )

    def replace(self, place: _Place | None) -> None:
        """From now on, put another model's stream in a place; None for no change."""
        self._taps.watch(patch={} if place is None else {place.tap: place.patch})

    def __exit__(self, *_: object) -> None:
        self.context.close()


def _lanes(model: Model, request: LayersRequest, given: PromptTokens, weights: ModelFile) -> Lanes[_Lane]:
    count, n_layer = count_lanes(request.settings), int(weights.number("block_count") or 0)
    settings = short_settings(request.settings, given.longest, count)
    return Lanes(count, lambda: _Lane(model, settings, weights.architecture, n_layer))


def _loss(context: Context, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """[n - 1] negative log-likelihood of each token but the first."""
    if len(tokens) < 2:
        return np.empty(0)
    return nll_rows(context.logits(tokens)[:-1], tokens[1:])
