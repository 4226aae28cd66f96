"""Decodes with changed heads: a batch contains several variants of a model's windows, each with its own changes.

A change replaces columns of `blocks.{i}.attn.z`, the mixed values of one head before the output projection, in the
rows of one sequence. llama.cpp stops only at the changed layers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import NOT_FINITE_HINT, EngineError, ModelError
from gguf_harness.gguf.header import read_header
from gguf_harness.metrics.divergence import DivergenceKernel

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model, Tokens

__all__ = ["Change", "Distributions", "HeadLayout", "Job", "Patched", "Values", "Variant", "read_layout", "read_values"]

Values = NDArray[np.float32]

_FIRST: Final = 16
"""Positions before this one are not scored: heads have too little context there. All later ones are scored, not only
the second half as in a pass, since a model is compared with itself on the same tokens.
"""


_MOST_HEADS: Final = 1 << 17
"""Most heads of a model: the largest models have 16 thousand."""


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Layout of the query heads of a model; `heads` is their number by layer, 0 for a layer without attention."""

    architecture: str
    heads: tuple[int, ...]

    @property
    def all(self) -> list[tuple[int, int]]:
        """(layer, head) of every head."""
        return [(layer, head) for layer, count in enumerate(self.heads) for head in range(count)]

    @property
    def layers(self) -> list[int]:
        """Layers that have heads."""
        return [layer for layer, count in enumerate(self.heads) if count]

    def columns(self, layer: int, head: int, width: int) -> slice:
        """The columns of z that belong to a head; heads that share keys and values have separate columns."""
        size, rest = divmod(width, self.heads[layer])
        if rest:
            raise EngineError(
                f"Layer {layer} mixes {width} values, which {self.heads[layer]} heads cannot share.",
                f"Heads of the architecture {self.architecture} cannot be distinguished here.",
            )
        return slice(head * size, (head + 1) * size)


def read_layout(file: Path) -> HeadLayout:
    """The heads of a model, from the header of its (first) file.

    Raises:
        ModelError: the file does not say how many heads its layers have.
    """
    metadata = read_header(file).metadata
    architecture = metadata.name("general.architecture") or "none"
    # Checked before use: a header may claim anything.
    layers = metadata.integer(f"{architecture}.block_count", most=_MOST_HEADS)
    heads = metadata.by_layer(f"{architecture}.attention.head_count", layers or 0)
    kv_heads = metadata.by_layer(f"{architecture}.attention.head_count_kv", layers or 0)
    if heads is not None and kv_heads is not None:
        # A layer without keys and values has another mixer, or none: it has no heads.
        heads = tuple(count if kv else 0 for count, kv in zip(heads, kv_heads, strict=True))
    if heads is None or not 0 < sum(heads) <= _MOST_HEADS:
        raise ModelError(
            f"{file.name} has {layers} layers and {heads} heads by its header, expected plausible numbers.",
            "Heads can be measured in models with attention only.",
        )
    return HeadLayout(architecture, heads)


@dataclass(frozen=True, slots=True)
class Change:
    """New values for some columns of a layer's z.

    Attributes:
        layer: whose z.
        columns: of one head, or of all.
        values: the new values, [pos, columns] or broadcastable to that.
    """

    layer: int
    columns: slice
    values: Values


@dataclass(frozen=True, slots=True)
class Variant:
    """A window to decode with some changes."""

    window: int
    changes: tuple[Change, ...] = ()


class Distributions:
    """Next-token distributions of all scored positions, in memory, for comparisons.

    Args:
        windows: [windows, n_ctx] tokens.
        vocabulary: length of a row.
        logs: [windows, scored, vocabulary] log-probabilities up to a constant, the largest 0; empty if not given.
    """

    def __init__(self, windows: Tokens, vocabulary: int, logs: Values | None = None) -> None:
        self.windows = windows
        self.first = min(_FIRST, windows.shape[1] // 2)
        self.shape = (len(windows), windows.shape[1] - 1 - self.first)
        self.logs = np.empty((*self.shape, vocabulary), dtype=np.float32) if logs is None else logs

    def keep(self, window: int, logits: Values) -> None:
        """Keep the distributions of a window, [scored, vocabulary] logits."""
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=self.logs[window])

    def compare(self, window: int, logits: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(negative log-likelihood of the tokens that follow, KL(kept || these)), each [scored], in nats."""
        kernel = DivergenceKernel(logits.shape[1])
        targets = self.windows[window, self.first + 1 :]
        nll, kld = np.empty(self.shape[1]), np.empty(self.shape[1])
        for row, (kept, row_logits, target) in enumerate(zip(self.logs[window], logits, targets, strict=True)):
            compared = kernel(kept, row_logits)
            kld[row] = compared.values[0]
            nll[row] = compared.log_normalizer - float(row_logits[target])
        if not (np.isfinite(nll).all() and np.isfinite(kld).all()):
            raise EngineError(
                f"The logits of window {window} are not finite: the model computes NaN or infinity there.",
                NOT_FINITE_HINT,
            )
        return nll, kld


Job = tuple[Variant, Callable[[Values], None]]
"""What to decode, and the receiver of its [scored, vocabulary] logits: a view that is valid only during the call, in
any thread.
"""


class _Lane(contextlib.AbstractContextManager["_Lane"]):
    """A context whose patches are set before each decode."""

    def __init__(self, model: Model, settings: SessionSettings, layout: HeadLayout) -> None:
        from gguf_harness.engine.context import Context
        from gguf_harness.engine.taps import Taps

        self._changes: dict[str, list[tuple[slice, slice, Values]]] = {}
        self._rows = 0
        self._taps = Taps(layout.architecture, len(layout.heads), changing=True)
        self._context = Context(model, settings, self._taps)

    def decode(self, windows: Tokens, variants: Sequence[Variant], first: int) -> list[Values]:
        """[scored, vocabulary] logits of each variant: views, valid until the next decode."""
        n = windows.shape[1]
        self._changes, self._rows = {}, n * len(variants)
        for place, variant in enumerate(variants):
            rows = slice(place * n, (place + 1) * n)
            for change in variant.changes:
                self._changes.setdefault(_z(change.layer), []).append((rows, change.columns, change.values))
        self._taps.watch(patch=dict.fromkeys(self._changes, self._patch))
        return _decode(self._context, windows[[variant.window for variant in variants]], first)

    def _patch(self, tap: str, values: Values) -> Values:
        if len(values) != self._rows:
            raise EngineError(
                f"{tap} has {len(values)} rows, expected the {self._rows} of the whole batch.",
                "The physical batch has to hold the logical one.",
            )
        for rows, columns, new in self._changes[tap]:
            values[rows, columns] = new
        return values

    def __exit__(self, *_: object) -> None:
        self._context.close()


class Patched(contextlib.AbstractContextManager["Patched"]):
    """Parallel contexts of one loaded model, whose heads can be changed; a context manager, which closes them.

    Args:
        model: the loaded model.
        settings: of all contexts together; the physical batch holds the logical one.
        layout: the model's heads.
    """

    def __init__(self, model: Model, settings: SessionSettings, layout: HeadLayout) -> None:
        count = count_lanes(settings)
        lane = settings.lane(count)
        self._size = lane.n_seq
        self._lanes = Lanes(count, lambda: _Lane(model, lane, layout))

    def decode(self, kept: Distributions, jobs: Sequence[Job]) -> Iterator[int]:
        """Do all jobs on windows of `kept`, and yield the number of finished jobs now and then."""

        def work(lane: _Lane, group: Sequence[Job]) -> int:
            logits = lane.decode(kept.windows, [variant for variant, _ in group], kept.first)
            for (_, take), rows in zip(group, logits, strict=True):
                take(rows)
            return len(group)

        groups = [jobs[at : at + self._size] for at in range(0, len(jobs), self._size)]
        yield from itertools.accumulate(self._lanes.map(work, groups))

    def __exit__(self, *exception: object) -> None:
        self._lanes.__exit__(*exception)


def read_values(model: Model, settings: SessionSettings, layout: HeadLayout, kept: Distributions) -> dict[int, Values]:
    """Decode the unchanged windows: fill the distributions, and yield z by layer, each [windows, n_ctx, width].

    Args:
        model: the loaded model.
        settings: as for `Patched`; batches are those of one of its contexts.
        layout: the model's heads.
        kept: has the windows, and takes the distributions.
    """
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    z: dict[int, list[Values]] = {layer: [] for layer in layout.layers}
    taps = {_z(layer): layer for layer in layout.layers}
    reading = Taps(
        layout.architecture,
        len(layout.heads),
        read=dict.fromkeys(taps, lambda tap, values: z[taps[tap]].append(values)),
    )
    count, n = kept.windows.shape
    settings = settings.lane(count_lanes(settings))
    with Context(model, settings, reading) as context:
        for start in range(0, count, settings.n_seq):
            group = range(start, min(start + settings.n_seq, count))
            for window, logits in zip(group, _decode(context, kept.windows[group], kept.first), strict=True):
                kept.keep(window, logits)
    return {layer: np.concatenate(parts).reshape(count, n, -1) for layer, parts in z.items()}


def _decode(context: Context, tokens: Tokens, first: int) -> list[Values]:
    count, n = tokens.shape
    positions = np.tile(np.arange(n, dtype=np.int32), count)
    outputs = (positions >= first) & (positions < n - 1)
    context.clear()
    context.decode(tokens.ravel(), positions, np.repeat(np.arange(count, dtype=np.int32), n), outputs)
    return list(context.output_logits(int(outputs.sum())).reshape(count, n - 1 - first, -1))


def _z(layer: int) -> str:
    return f"blocks.{layer}.attn.z"
