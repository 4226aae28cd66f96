"""Removal of one head after the other: each decode begins at the layer of the head that goes next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.measure.heads.layout import HeadLayout, stream_tap, z_tap
from gguf_harness.measure.heads.patched import Change, Job, Patched, Variant
from gguf_harness.measure.heads.states import States

if TYPE_CHECKING:
    from gguf_harness.measure.heads.distributions import Distributions, Values
    from gguf_harness.metrics.importance import Head

__all__ = ["Removal", "RemovalLimits"]

_MOST_BYTES: Final = 1 << 30
"""Most bytes of states that are kept for the next step. Beyond, each decode begins at the first removed head."""


@dataclass(frozen=True, slots=True)
class RemovalLimits:
    """How heads are removed one by one.

    Attributes:
        tries: most heads that are measured again at each step.
        choosing: most windows on which these are chosen.
        most: rise of the mean loss, in nats, at which removal ends.
        enough: rise, in nats, at which it ends once the loss of every window has risen so far.
    """

    tries: int
    choosing: int
    most: float
    enough: float

    def end(self, curve: Sequence[NDArray[np.float64]]) -> bool:
        """Whether the loss has risen far enough: [windows, scored] of each number of removed heads."""
        rises = (curve[-1] - curve[0]).mean(axis=1)
        return bool(rises.mean() >= self.most or rises.min() >= self.enough)


class Removal:
    """A model from which heads are removed, and what its layers work on without them.

    Args:
        patched: contexts of the model.
        clean: windows of it.
        states: of the whole model.
        layout: its heads.
    """

    def __init__(self, patched: Patched, clean: Distributions, states: States, layout: HeadLayout) -> None:
        self._patched = patched
        self._clean = clean
        self._layout = layout
        self._whole = self._states = states
        self._removed: tuple[Head, ...] = ()
        self._tried: dict[Head, dict[str, Values]] = {}

    def losses(self, head: Head) -> NDArray[np.float64]:
        """[windows, scored] negative log-likelihood without the removed heads and this one."""
        return self._without(head, self._clean.losses)

    def changes(self, head: Head) -> NDArray[np.float64]:
        """[windows, scored] KL divergence from the whole model without the removed heads and this one."""
        return self._without(head, lambda window, logits: self._clean.compare(window, logits)[1])

    def _without(self, head: Head, measure: Callable[[int, Values], NDArray[np.float64]]) -> NDArray[np.float64]:
        windows, scored = self._clean.shape
        measured = np.empty((windows, scored))

        def take(window: int, logits: Values) -> None:
            measured[window] = measure(window, logits)

        # Without states of the removed heads, a decode begins with those of the whole model.
        since = head[0] if self._states is not self._whole or not self._removed else None
        if since is not None and self._patched.shortens and self._fits(len(self._tried) + 1):
            self._tried[head] = self._room(head)
        changes = tuple(map(self._zero, (*self._removed, head)))
        jobs: list[Job] = [
            (Variant(window, changes, since, self._tried.get(head)), partial(take, window)) for window in range(windows)
        ]
        for _ in self._patched.decode(self._clean, jobs, self._states):
            pass
        return measured

    def go_on(self, removed: Sequence[Head]) -> None:
        """Go on without these heads: those that are removed already, and perhaps one whose loss was computed since."""
        for head in removed[len(self._removed) :]:
            self._remove(head)

    def _remove(self, head: Head) -> None:
        later = self._tried.get(head)
        self._tried = {}
        self._removed = (*self._removed, head)
        if later is None:
            self._states = self._whole
            return
        layer = head[0]
        own = self._states.z[layer].copy()
        own[..., self._layout.columns(*head, own.shape[-1])] = 0
        z = {each: later.get(z_tap(each), values) for each, values in self._states.z.items()}
        streams = {each: later.get(stream_tap(each), values) for each, values in self._states.streams.items()}
        self._states = States(z | {layer: own}, streams)

    def _room(self, head: Head) -> dict[str, Values]:
        """Room for what the layers after a head's work on without it."""
        pairs = [(z_tap(layer), values) for layer, values in self._states.z.items() if layer > head[0]]
        pairs += [(stream_tap(layer), values) for layer, values in self._states.streams.items() if layer > head[0]]
        return {tap: np.empty_like(values) for tap, values in pairs}

    def _fits(self, count: int) -> bool:
        states = (*self._states.z.values(), *self._states.streams.values())
        return count * sum(values.nbytes for values in states) <= _MOST_BYTES

    def _zero(self, head: Head) -> Change:
        columns = self._layout.columns(*head, self._whole.z[head[0]].shape[-1])
        return Change(head[0], columns, np.zeros(1, dtype=np.float32))
