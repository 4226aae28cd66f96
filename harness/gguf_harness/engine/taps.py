"""Taps: tensors of llama.cpp's graph, read or patched while a context decodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.binding import (
    Tensor,
    library,
    read_tensor,
    require_supported_engine,
    view_tensor,
    write_tensor,
)
from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.graph_record import GraphRecord, allow, spare
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.tap_names import (
    ENCODER_PREFIX,
    NEEDS_FLASH_ATTENTION_OFF,
    TAPS,
    expand_taps,
    generic_tap,
    graph_nodes,
)
from gguf_harness.errors import EngineError, TapNotFound

__all__ = ["Given", "Patcher", "Reader", "Taps"]

Reader = Callable[[str, NDArray[np.float32]], None]
"""Called with (tap, values); values have the shape that `gguf_harness.engine.tap_names.TAPS` states, once per physical
batch.

They are copies, unless `Taps` was told that views are enough: views are read-only and valid only until the reader
returns.
"""

Patcher = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""Called with (tap, values); returns the new values for the rest of the graph, in the same shape."""


@dataclass(frozen=True, slots=True)
class Given:
    """Values that a decode takes in place of computing them, and whatever only they need.

    Attributes:
        record: the graph of an earlier decode of a batch of the same shape, from `Taps.record`.
        values: by tap, in the shape that a reader of it would receive.
    """

    record: GraphRecord
    values: Mapping[str, NDArray[np.float32]]


class Taps:
    """Tensors that a context reads or patches, and the callback that llama.cpp calls for each graph node.

    llama.cpp asks about every node before it computes it; only wanted nodes are computed separately and passed to
    readers. An exception in a reader or patcher is raised by `finish` after the decode, since it would be lost inside a
    ctypes callback. A tap that is both patched and read is patched first. Taps of an encoder are read while the context
    encodes, the others while it decodes.

    Args:
        architecture: `general.architecture` of the model.
        n_layer: number of layers of the model.
        read: function by tap.
        patch: function by tap.
        views: taps whose readers copy whatever they keep. These are not copied for them if llama.cpp has them in this
            process's memory.
        some: whether one of these taps is enough; otherwise each must occur in every decode.
        changing: whether `watch` will be called; otherwise, without wanted taps, no callback is installed.

    Raises:
        TapNotFound: an unknown tap, a layer that the model does not have, or a tensor that llama.cpp does not
            name in this architecture.
    """

    def __init__(
        self,
        architecture: str,
        n_layer: int,
        *,
        read: Mapping[str, Reader] | None = None,
        patch: Mapping[str, Patcher] | None = None,
        views: Collection[str] = (),
        some: bool = False,
        changing: bool = False,
    ) -> None:
        require_supported_engine()
        self._views = frozenset(views)
        self._some = some
        self._changing = changing
        self._architecture, self._n_layer = architecture, n_layer
        self._encoder = False
        self._watch(read or {}, patch or {})
        self._describe = library().ggml_op_desc
        self._failure: BaseException | None = None
        self._missing: set[str] = set()
        self._offered: set[bytes] = set()
        self._first: bytes | None = None
        self._handed: set[str] = set()
        # Addresses of the graph's nodes in order, and of those that ggml was told to skip.
        self._nodes: list[int] = []
        self._skipped: list[int] = []
        # llama.cpp only stores the address: this object must live as long as the context. If nothing is wanted it is
        # null, and llama.cpp does not call back.
        kind = llama_cpp.ggml_backend_sched_eval_callback
        self.callback = kind(self._on_node) if changing or any(self._graphs.values()) else kind()

    def watch(
        self,
        *,
        read: Mapping[str, Reader] | None = None,
        patch: Mapping[str, Patcher] | None = None,
        given: Given | None = None,
    ) -> None:
        """From the next decode on, read and patch only these taps.

        Args:
            read: function by tap.
            patch: function by tap.
            given: values that are known. Whatever only they need is not computed, and cannot be read or patched. A
                decode with another graph than the recorded one raises `GraphChanged`.

        Raises:
            TapNotFound: as in the constructor.
            EngineError: `changing` was not set; or a tap is wanted that the given values make superfluous.
        """
        if not self._changing:
            raise EngineError("These taps cannot be changed.", "Make them with changing=True.")
        self._watch(read or {}, patch or {}, given)

    def _watch(self, read: Mapping[str, Reader], patch: Mapping[str, Patcher], given: Given | None = None) -> None:
        self._readers, self._patchers = dict(read), dict(patch)
        self._given = given.values if given else {}
        self._record = given.record if given else None
        self._spared = given.record.spared(given.values) if given else frozenset()
        wanted = dict.fromkeys([*self._readers, *self._patchers])
        if given and (lost := [tap for tap in wanted if given.record.places.get(tap) in self._spared]):
            raise EngineError(f"{lost[0]} is not computed in a decode that is given {', '.join(given.values)}.")
        # By encoder or decoder: both graphs use the same names.
        self._graphs = {encoder: self._nodes_of([*wanted, *self._given], encoder=encoder) for encoder in (False, True)}
        self._wanted = self._graphs[self._encoder]

    def _nodes_of(self, taps: Iterable[str], *, encoder: bool) -> dict[bytes, list[_Wanted]]:
        """Candidate nodes of taps, by name."""
        graph: dict[bytes, list[_Wanted]] = {}
        for tap in dict.fromkeys(taps):
            if tap.startswith(ENCODER_PREFIX) is encoder:
                for node in graph_nodes(tap, self._architecture, self._n_layer):
                    operations = frozenset(operation.encode() for operation in node.operations)
                    graph.setdefault(node.name.encode(), []).append((tap, operations, node.root.encode()))
        return graph

    def record(self, taps: Iterable[str]) -> GraphRecord | None:
        """The graph of the last decode, for later ones of the same shape; None if they cannot be shortened.

        Call it before the next decode, and before the context is closed.

        Args:
            taps: those whose values will be known. Taps that the graph does not have exactly once are left out.
        """
        known: list[str] = []
        for tap in taps:
            with contextlib.suppress(TapNotFound):
                graph_nodes(tap, self._architecture, self._n_layer)
                known.append(tap)
        wanted = self._nodes_of(known, encoder=self._encoder)
        found: dict[str, list[int]] = {}
        for place, address in enumerate(self._nodes):
            name = Tensor.from_address(address).name
            meant = self._meant(address, wanted.get(name, ()))
            if meant is not None:
                found.setdefault(meant, []).append(place)
        return GraphRecord.of(self._nodes, {tap: places[0] for tap, places in found.items() if len(places) == 1})

    def require_possible(self, settings: SessionSettings) -> None:
        """Check that a context with these settings can have these taps.

        Raises:
            OptionError: the attention pattern is wanted, which is never computed with a quantized V cache.
        """
        if any(generic_tap(tap) in NEEDS_FLASH_ATTENTION_OFF for tap in (*self._readers, *self._patchers)):
            settings.require_pattern()

    def begin(self, *, encoder: bool = False) -> None:
        """Called by the context before each decode, and before it encodes."""
        self._encoder, self._wanted = encoder, self._graphs[encoder]
        self._missing = {tap for nodes in self._wanted.values() for tap, *_ in nodes}
        self._offered.clear()
        self._nodes.clear()
        self._allow_all()
        self._first = self._failure = None

    def finish(self) -> None:
        """Called by the context after each decode, and after it encoded.

        Raises:
            TapNotFound: the graph had no such tensor (the message lists the available ones), or several.
            Exception: whatever a reader or patcher raised.
        """
        self._allow_all()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        enough = self._some and self._missing != {tap for nodes in self._wanted.values() for tap, *_ in nodes}
        if self._missing and not enough:
            raise TapNotFound(
                f"The graph of this model has no {', '.join(sorted(self._missing))}.",
                self._advice(sorted(self._missing)),
            )

    def _allow_all(self) -> None:
        allow(self._skipped)
        self._skipped.clear()

    def _on_node(self, address: int, ask: bool, _: object) -> bool:
        try:
            name = Tensor.from_address(address).name
            if ask:
                self._pass_by(address, name)
            tap = self._meant(address, self._wanted.get(name, ())) if self._failure is None else None
            if tap is None:
                # When asked: not wanted. When told: continue the graph.
                return not ask
            if not ask:
                self._hand_out(tap, address)
        except BaseException as error:
            self._failure = error
        return True

    def _pass_by(self, address: int, name: bytes) -> None:
        if self._failure is not None and self._record is not None:
            # Nothing more is computed from what was skipped.
            self._skip(address)
            return
        # llama.cpp runs the graph once per physical batch, starting with the same node.
        if self._first is None or self._first == name:
            self._first = name
            self._handed.clear()
        self._offered.add(name)
        place = len(self._nodes)
        self._nodes.append(address)
        if self._record is not None:
            self._record.check(place, name)
            if place in self._spared:
                self._skip(address)

    def _skip(self, address: int) -> None:
        if spare(address):
            self._skipped.append(address)

    def _meant(self, address: int, candidates: Iterable[_Wanted]) -> str | None:
        """The tap of a node, of those that its name may mean.

        llama.cpp gives several nodes the same name (Qcur: projection, bias, reshape, rope): operation and root
        distinguish them. The last one is not known when the first is asked about, and a patch of the first would be
        undone or repeated by the others.
        """
        for tap, operations, root in candidates:
            if (not operations or self._describe(address) in operations) and (not root or _root(address) == root):
                return tap
        return None

    def _hand_out(self, tap: str, address: int) -> None:
        if tap in self._handed:
            raise TapNotFound(
                f"{tap} is ambiguous: llama.cpp's graph of this {self._architecture} model has several such tensors.",
                "Check that the architecture is that of the file; if it is, read another tap nearby.",
            )
        self._handed.add(tap)
        if tap in self._given:
            self._put(tap, address)
            return
        viewed = tap in self._views and tap not in self._patchers
        values = view_tensor(address) if viewed else read_tensor(address)
        shown = values.reshape(values.shape[_leading_ones(values.shape, _RANKS[generic_tap(tap)]) :])
        if tap in self._patchers:
            # The patcher may change its argument in place: store the shape first.
            shape = shown.shape
            shown = np.asarray(self._patchers[tap](tap, shown), dtype=np.float32)
            if shown.shape != shape:
                raise EngineError(
                    f"{tap} of shape {shape} cannot be patched with an array of shape {shown.shape}.",
                    "A patcher must return an array of the shape that it receives.",
                )
            write_tensor(address, shown.reshape(values.shape))
        if tap in self._readers:
            self._readers[tap](tap, shown)
        self._missing.discard(tap)

    def _put(self, tap: str, address: int) -> None:
        shape = tuple(reversed(Tensor.from_address(address).ne))
        values = np.asarray(self._given[tap], dtype=np.float32)
        if shape[_leading_ones(shape, values.ndim) :] != values.shape:
            raise EngineError(f"{tap} of shape {shape} cannot be given values of shape {values.shape}.")
        write_tensor(address, values.reshape(shape))
        self._missing.discard(tap)

    def _advice(self, missing: list[str]) -> str:
        if layers := self._layers_with(missing[0]):
            return f"Layers that have it: {', '.join(map(str, layers))}. The others mix tokens without attention."
        if any(generic_tap(tap) in NEEDS_FLASH_ATTENTION_OFF and not self._is_offered(tap) for tap in missing):
            return "Attention scores and patterns exist only with flash attention off (flash_attention='off')."
        prefix = ENCODER_PREFIX if self._encoder else ""
        offered = {generic_tap(tap) for tap in expand_taps([f"{prefix}*"], self._n_layer) if self._is_offered(tap)}
        return f"It offers: {', '.join(prefix + tap for tap in TAPS if tap in offered) or 'none of the known taps'}."

    def _layers_with(self, tap: str) -> list[int]:
        """Layers whose graph had this attention tensor: only some layers in hybrid models."""
        before, part, name = tap.partition(".attn.")
        # A layer that is not there at all has no other way to mix tokens.
        if not part or not self._is_offered(f"{before}.mlp_out"):
            return []
        block = before.rpartition(".")[0]
        return [layer for layer in range(self._n_layer) if self._is_offered(f"{block}.{layer}{part}{name}")]

    def _is_offered(self, tap: str) -> bool:
        try:
            nodes = graph_nodes(tap, self._architecture, self._n_layer)
        except TapNotFound:
            return False
        return any(node.name.encode() in self._offered for node in nodes)


_Wanted = tuple[str, frozenset[bytes], bytes]
"""A tap, with the operations and root of its node: see `gguf_harness.engine.tap_names.GraphNode`."""

_RANKS: Final[dict[str, int]] = {tap: info.shape.count(",") + 1 for tap, info in TAPS.items()}


def _leading_ones(shape: tuple[int, ...], rank: int) -> int:
    """Number of leading dimensions of size one to drop to keep `rank`; streams of a batch are kept."""
    drop = 0
    while len(shape) - drop > rank and shape[drop] == 1:
        drop += 1
    return drop


def _root(address: int) -> bytes:
    """Name of the tensor at the end of the chain of first operands: for a product, the weight or the cached values."""
    tensor = Tensor.from_address(address)
    while tensor.src[0]:
        tensor = tensor.src[0].contents
    return bytes(tensor.name)
