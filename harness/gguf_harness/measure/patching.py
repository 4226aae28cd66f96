"""What single layers do, by taking them away or putting another model's in their place. Runs in a worker.

Skipping (ablation): the residual stream passes a block as it came. Interchange (Geiger et al. 2021, "Causal
Abstractions of Neural Networks"): the reference's residual stream takes the place of the candidate's after a layer, and
only the layers behind it are the candidate's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.measure.head import ModelFile
from gguf_harness.measure.layers import STATES_FOLDER, kld_rows, nll_rows, stored_tokens
from gguf_harness.measure.passes import open_lanes
from gguf_harness.measure.states import (
    NOT_ALONE,
    Job,
    LayersRequest,
    StateFiles,
    prompt_tokens,
    short_settings,
    side_by_side,
    tapped,
)

if TYPE_CHECKING:
    from gguf_harness.engine.session import Session
    from gguf_harness.engine.taps import Patcher, Reader
    from gguf_harness.engine.worker import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["EMBED", "measure_importance", "measure_interchange"]

F32 = NDArray[np.float32]

EMBED: Final = -1
"""In place of a layer: the embeddings."""
_ALL_OWN: Final = -2


def measure_importance(
    context: WorkerContext, request: LayersRequest, reference: Path | None, layers: Sequence[int]
) -> Arrays:
    """Next-token loss on the prompts, as it is and without each block.

    Args:
        context: of the worker.
        request: the model.
        reference: folder of the cache entry whose tokens are decoded; None for the model's own.
        layers: blocks to skip, each alone.

    Returns:
        layers [skipped]: those asked for, without the first where its input is not known; starts [prompts + 1] of
        predicted tokens; nll [n] and skipped [skipped, n], in nats.
    """
    session, lanes = open_lanes(context, request.files, request.settings)
    given = prompt_tokens(session, request) if reference is None else stored_tokens(reference)
    weights = ModelFile(request.files)
    n_layer = int(weights.number("block_count") or 0)
    settings = short_settings(request.settings, given.longest, lanes)
    known = [layer for layer in layers if layer > 0 or all(name not in weights for name in NOT_ALONE)]

    def job(layer: int) -> Job[NDArray[np.float64]]:
        read, patch = ({}, {}) if layer == _ALL_OWN else _skip(layer)
        return (
            lambda: tapped(session, settings, weights.architecture, n_layer, read=read, patch=patch),
            lambda lane: np.concatenate([_loss(lane, given.tokens[part]) for part in given.slices]),
        )

    base, *skipped = side_by_side(context.progress, lanes, [job(layer) for layer in (_ALL_OWN, *known)])
    lengths = np.diff(given.starts) - 1
    return {
        "layers": np.array(known, dtype=np.int64),
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "nll": base,
        "skipped": np.array(skipped).reshape(len(known), len(base)),
    }


def measure_interchange(
    context: WorkerContext, request: LayersRequest, reference: Path, layers: Sequence[int]
) -> Arrays:
    """Divergence from the reference with its residual stream put in after each layer.

    Args:
        context: of the worker.
        request: the candidate.
        reference: folder of the reference's cache entry, with its states.
        layers: after which the stream is replaced, each alone.

    Returns:
        layers [replaced], starts [prompts + 1] of tokens, kld [n] of the candidate as it is, embed [n] with the
        reference's embeddings, and replaced [replaced, n]; KL(reference || candidate) in nats.
    """
    session, lanes = open_lanes(context, request.files, request.settings)
    given, base = stored_tokens(reference), StateFiles(reference / STATES_FOLDER)
    weights = ModelFile(request.files)
    n_layer = int(weights.number("block_count") or 0)
    settings = short_settings(request.settings, given.longest, lanes)
    logits = base.load("logits")

    def job(layer: int) -> Job[NDArray[np.float64]]:
        place = _Place(layer, base)
        patch: dict[str, Patcher] = {} if layer == _ALL_OWN else {place.tap: place.patch}

        def divergence(lane: Session) -> NDArray[np.float64]:
            found = []
            for part in given.slices:
                place.at = part.start
                found.append(kld_rows(logits[part], lane.logits(given.tokens[part])))
            return np.concatenate(found)

        return lambda: tapped(session, settings, weights.architecture, n_layer, patch=patch), divergence

    own, embed, *replaced = side_by_side(context.progress, lanes, [job(layer) for layer in (_ALL_OWN, EMBED, *layers)])
    return {
        "layers": np.array(layers, dtype=np.int64),
        "starts": given.starts,
        "kld": own,
        "embed": embed,
        "replaced": np.array(replaced).reshape(len(layers), len(own)),
    }


class _Place:
    """Puts the reference's stream into a tap: its rows from `at` on, as far as a physical batch goes."""

    def __init__(self, layer: int, base: StateFiles) -> None:
        self.tap = "embed" if layer == EMBED else f"blocks.{layer}.resid_post"
        self._states = base.load("embed") if layer == EMBED else base.load("resid_post")[max(layer, 0)]
        self.at = 0

    def patch(self, _: str, values: F32) -> F32:
        start, self.at = self.at, self.at + len(values)
        return self._states[start : self.at]


def _skip(layer: int) -> tuple[dict[str, Reader], dict[str, Patcher]]:
    """What reads the stream in front of a block, and what puts it behind it."""
    kept: list[F32] = []
    before = "embed" if layer == 0 else f"blocks.{layer - 1}.resid_post"
    return (
        {before: lambda _, values: kept.append(values.copy())},
        {f"blocks.{layer}.resid_post": lambda *_: kept.pop()},
    )


def _loss(lane: Session, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """[n - 1] negative log-likelihood of each token but the first."""
    if len(tokens) < 2:
        return np.empty(0)
    return nll_rows(lane.logits(tokens)[:-1], tokens[1:])
