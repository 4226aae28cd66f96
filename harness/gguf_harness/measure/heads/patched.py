"""Decodes with changed heads: a batch contains several variants of a model's windows, each with its own changes.

A change replaces columns of `blocks.{i}.attn.z`, the mixed values of one head before the output projection, in the
rows of one sequence. llama.cpp stops only at the changed layers. What comes before the first of them is as in a decode
without the change: it is taken from that one, and not computed again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import EngineError
from gguf_harness.measure.heads.distributions import Distributions, Values
from gguf_harness.measure.heads.layout import HeadLayout, stream_tap, z_tap
from gguf_harness.measure.heads.states import States, decode_windows

if TYPE_CHECKING:
    from gguf_harness.engine.graph_record import GraphRecord
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.taps import Given

__all__ = ["Change", "Job", "Patched", "Variant"]


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
    """A window to decode with some changes.

    Attributes:
        window: its number.
        changes: all that it is decoded with.
        since: the first layer whose z differs from the states that the decode begins with, where some of the changes
            are in these already; None for the first changed layer.
        into: by tap, [windows, n_ctx, width] arrays: what later layers work on is written into this window's part.
    """

    window: int
    changes: tuple[Change, ...] = ()
    since: int | None = None
    into: Mapping[str, Values] | None = None

    @property
    def begins(self) -> int | None:
        """The first layer that differs from the states; None if nothing is changed."""
        return min((change.layer for change in self.changes), default=None) if self.since is None else self.since


Job = tuple[Variant, Callable[[Values], None]]
"""What to decode, and the receiver of its [scored, vocabulary] logits: a view that is valid only during the call, in
any thread.
"""

_Records = dict[int, "GraphRecord | None"]
"""Graphs by number of windows in a batch; None where they cannot be shortened."""


class _Lane(contextlib.AbstractContextManager["_Lane"]):
    """A context whose patches are set before each decode.

    Args:
        model: the loaded model.
        settings: of this context.
        layout: the model's heads.
        records: which all lanes share; None if every layer is to be computed.
    """

    def __init__(self, model: Model, settings: SessionSettings, layout: HeadLayout, records: _Records | None) -> None:
        from gguf_harness.engine.context import Context
        from gguf_harness.engine.taps import Taps

        self._rows = 0
        self._changes: dict[str, list[tuple[slice, slice, Values]]] = {}
        self._receivers: dict[str, list[tuple[slice, Values]]] = {}
        self._records = records
        self._known = [tap(layer) for layer in layout.layers for tap in (z_tap, stream_tap) if layer or tap is z_tap]
        self._taps = Taps(layout.architecture, len(layout.heads), changing=True)
        self._context = Context(model, settings, self._taps)

    def decode(self, windows: Tokens, variants: Sequence[Variant], first: int, states: States | None) -> list[Values]:
        """[scored, vocabulary] logits of each variant: views, valid until the next decode.

        Args:
            windows: [windows, n_ctx] tokens.
            variants: what to decode.
            first: first scored position.
            states: what is known before the first layer that differs; None for nothing.
        """
        from gguf_harness.engine.graph_record import GraphChanged

        tokens = windows[[variant.window for variant in variants]]
        self._prepare(variants, windows.shape[1])
        given = None if states is None else self._given(variants, states)
        if given is not None:
            spared = given.record.spared(given.values)
            places = given.record.places
            self._watch([tap for tap in self._changes if places[tap] not in spared], given)
            try:
                return decode_windows(self._context, tokens, first)
            except GraphChanged:
                self._keep(len(variants), None)
        self._watch(list(self._changes), None)
        logits = decode_windows(self._context, tokens, first)
        if self._records is not None and len(variants) not in self._records:
            self._keep(len(variants), self._taps.record(self._known))
        return logits

    def _prepare(self, variants: Sequence[Variant], n: int) -> None:
        self._rows = n * len(variants)
        self._changes, self._receivers = {}, {}
        for place, variant in enumerate(variants):
            rows = slice(place * n, (place + 1) * n)
            for change in variant.changes:
                self._changes.setdefault(z_tap(change.layer), []).append((rows, change.columns, change.values))
            for tap, into in (variant.into or {}).items():
                self._receivers.setdefault(tap, []).append((rows, into[variant.window]))

    def _watch(self, patched: Sequence[str], given: Given | None) -> None:
        self._taps.watch(
            read=dict.fromkeys(self._receivers, self._read), patch=dict.fromkeys(patched, self._patch), given=given
        )

    def _given(self, variants: Sequence[Variant], states: States) -> Given | None:
        """What is known of a batch before its first changed layer, and z of that layer with its changes."""
        from gguf_harness.engine.taps import Given

        record = None if self._records is None else self._records.get(len(variants))
        begins = [variant.begins for variant in variants]
        layers = [layer for layer in begins if layer is not None]
        if record is None or len(layers) < len(begins):
            return None
        layer = min(layers)
        values = states.known(layer, [variant.window for variant in variants])
        if not (values.keys() | self._changes.keys()) <= record.places.keys():
            return None
        tap = z_tap(layer)
        values[tap] = self._patch(tap, values[tap])
        return Given(record, values)

    def _keep(self, count: int, record: GraphRecord | None) -> None:
        if self._records is not None:
            self._records[count] = record

    def _patch(self, tap: str, values: Values) -> Values:
        self._check(tap, values)
        for rows, columns, new in self._changes[tap]:
            values[rows, columns] = new
        return values

    def _read(self, tap: str, values: Values) -> None:
        self._check(tap, values)
        for rows, into in self._receivers[tap]:
            into[:] = values[rows]

    def _check(self, tap: str, values: Values) -> None:
        if len(values) != self._rows:
            raise EngineError(
                f"{tap} has {len(values)} rows, expected the {self._rows} of the whole batch.",
                "The physical batch has to hold the logical one.",
            )

    def __exit__(self, *_: object) -> None:
        self._context.close()


class Patched(contextlib.AbstractContextManager["Patched"]):
    """Parallel contexts of one loaded model, whose heads can be changed; a context manager, which closes them.

    Args:
        model: the loaded model.
        settings: of all contexts together; the physical batch holds the logical one.
        layout: the model's heads.

    Attributes:
        shortens: whether decodes can begin at the layers that they change. Not where a GPU takes part: its graph has
            parts that cannot be told from one another (`GraphRecord.of`).
    """

    def __init__(self, model: Model, settings: SessionSettings, layout: HeadLayout) -> None:
        self._count = count_lanes(settings)
        lane = settings.lane(self._count)
        self._size = lane.n_seq
        self.shortens = not model.offloads
        records: _Records | None = {} if self.shortens else None
        self._lanes = Lanes(self._count, lambda: _Lane(model, lane, layout, records))

    def decode(self, kept: Distributions, jobs: Sequence[Job], states: States | None = None) -> Iterator[int]:
        """Do all jobs on windows of `kept`, and yield the number of finished jobs now and then.

        Args:
            kept: has the windows.
            jobs: what to decode. A batch is computed from the first layer on that one of its jobs changes, so jobs of
                one layer should follow each other.
            states: what is known of all windows before the first layer that a job changes; None to compute all layers.
        """

        def work(lane: _Lane, group: Sequence[Job]) -> int:
            logits = lane.decode(kept.windows, [variant for variant, _ in group], kept.first, states)
            for (_, take), rows in zip(group, logits, strict=True):
                take(rows)
            return len(group)

        # Few jobs are shared by all lanes.
        size = min(self._size, max(1, -(-len(jobs) // self._count)))
        groups = [jobs[at : at + size] for at in range(0, len(jobs), size)]
        yield from itertools.accumulate(self._lanes.map(work, groups))

    def __exit__(self, *exception: object) -> None:
        self._lanes.__exit__(*exception)
