"""Taps: tensors of llama.cpp's graph, read or patched while a context decodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

import llama_cpp
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

__all__ = ["Patcher", "Reader", "Taps"]

Reader = Callable[[str, NDArray[np.float32]], None]
"""Called with (tap, values); values have the shape that `gguf_harness.engine.tap_names.TAPS` states, once per physical
batch.

They are the reader's own, except where `Taps` was told that views will do: those cannot be written to, and hold the
values only until the reader returns.
"""

Patcher = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""Called with (tap, values); returns what the rest of the graph shall see, in the same shape."""


class Taps:
    """The tensors that a context reads or patches, and the callback that llama.cpp calls for each node of its graph.

    llama.cpp asks about every node before it computes it; only nodes that are wanted are computed on their own and
    handed out. An exception in a reader or patcher is kept, and raised by `finish` after the decode: raised inside a
    ctypes callback it would vanish. A tap that is both patched and read is patched first. Taps of an encoder are
    handed out while the context encodes, the others while it decodes.

    Args:
        architecture: `general.architecture` of the model.
        n_layer: number of layers of the model.
        read: function by tap.
        patch: function by tap.
        views: taps whose readers keep nothing of what they are given without copying it. These need not be copied for
            them, where llama.cpp has them in this process's memory.
        some: whether one of these taps is enough; otherwise each has to be there in every decode.
        changing: whether `watch` will be called; llama.cpp is not to call where nothing will ever be wanted.

    Raises:
        TapNotFound: a name that is no tap, a layer that the model does not have, or a tensor that llama.cpp does not
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
        # llama.cpp holds the address only: this object must live as long as the context. With nothing wanted it is
        # null, and llama.cpp does not call at all.
        kind = llama_cpp.ggml_backend_sched_eval_callback
        self.callback = kind(self._on_node) if changing or any(self._graphs.values()) else kind()

    def watch(self, *, read: Mapping[str, Reader] | None = None, patch: Mapping[str, Patcher] | None = None) -> None:
        """From the next decode on, read and patch these taps and no others.

        Raises:
            TapNotFound: as in the constructor.
            EngineError: this was not said to come.
        """
        if not self._changing:
            raise EngineError("These taps cannot be changed.", "Make them with changing=True.")
        self._watch(read or {}, patch or {})

    def _watch(self, read: Mapping[str, Reader], patch: Mapping[str, Patcher]) -> None:
        self._readers, self._patchers = dict(read), dict(patch)
        # By whether it is the encoder's graph: the two give the same names.
        self._graphs: dict[bool, dict[bytes, list[_Wanted]]] = {False: {}, True: {}}
        for tap in dict.fromkeys([*self._readers, *self._patchers]):
            graph = self._graphs[tap.startswith(ENCODER_PREFIX)]
            for node in graph_nodes(tap, self._architecture, self._n_layer):
                operations = frozenset(operation.encode() for operation in node.operations)
                graph.setdefault(node.name.encode(), []).append((tap, operations, node.root.encode()))
        self._wanted = self._graphs[self._encoder]

    def require_possible(self, settings: SessionSettings) -> None:
        """Make sure that a context with these settings can have these taps.

        Raises:
            OptionError: the attention pattern is wanted, which is never formed where the V cache is quantized.
        """
        if any(generic_tap(tap) in NEEDS_FLASH_ATTENTION_OFF for tap in (*self._readers, *self._patchers)):
            settings.require_pattern()

    def begin(self, *, encoder: bool = False) -> None:
        """Called by the context before each decode, and before it encodes."""
        self._encoder, self._wanted = encoder, self._graphs[encoder]
        self._missing = {tap for nodes in self._wanted.values() for tap, *_ in nodes}
        self._offered.clear()
        self._first = self._failure = None

    def finish(self) -> None:
        """Called by the context after each decode, and after it encoded.

        Raises:
            TapNotFound: the graph had no such tensor (lists those that it has), or several.
            Exception: whatever a reader or patcher raised.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        enough = self._some and self._missing != {tap for nodes in self._wanted.values() for tap, *_ in nodes}
        if self._missing and not enough:
            raise TapNotFound(
                f"The graph of this model has no {', '.join(sorted(self._missing))}.",
                self._advice(sorted(self._missing)),
            )

    def _on_node(self, address: int, ask: bool, _: object) -> bool:
        try:
            name = Tensor.from_address(address).name
            if ask:
                self._pass_by(name)
            tap = self._meant(address, name) if self._failure is None else None
            if tap is None:
                # Asked: not wanted. Told: go on with the graph.
                return not ask
            if not ask:
                self._hand_out(tap, address)
        except BaseException as error:
            self._failure = error
        return True

    def _pass_by(self, name: bytes) -> None:
        # llama.cpp runs the graph once per physical batch, from the same first node on.
        if self._first is None or self._first == name:
            self._first = name
            self._handed.clear()
        self._offered.add(name)

    def _meant(self, address: int, name: bytes) -> str | None:
        """The tap that a node is.

        llama.cpp names several nodes alike (Qcur: projection, bias, reshape, rope): operation and root tell them apart.
        Which of them comes last cannot be known when the first is asked about, and a patch of the first would be undone
        or repeated by the others.
        """
        for tap, operations, root in self._wanted.get(name, ()):
            if (not operations or self._describe(address) in operations) and (not root or _root(address) == root):
                return tap
        return None

    def _hand_out(self, tap: str, address: int) -> None:
        if tap in self._handed:
            raise TapNotFound(
                f"{tap} cannot be told apart: llama.cpp's graph of this {self._architecture} model has several such"
                " tensors.",
                "Check that the architecture is the file's own; if it is, read another tap near it.",
            )
        self._handed.add(tap)
        viewed = tap in self._views and tap not in self._patchers
        values = view_tensor(address) if viewed else read_tensor(address)
        shown = values.reshape(values.shape[_leading_ones(values.shape, _RANKS[generic_tap(tap)]) :])
        if tap in self._patchers:
            # The patcher may change its argument in place: the shape is kept beforehand.
            shape = shown.shape
            shown = np.asarray(self._patchers[tap](tap, shown), dtype=np.float32)
            if shown.shape != shape:
                raise EngineError(
                    f"{tap} of shape {shape} cannot be patched with an array of shape {shown.shape}.",
                    "A patcher returns an array of the shape that it was given.",
                )
            write_tensor(address, shown.reshape(values.shape))
        if tap in self._readers:
            self._readers[tap](tap, shown)
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
        """Layers whose part of attention of this name was in the graph: some, of a model that has it in some only."""
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
"""A tap, with the operations and the root of the node that it is: see `gguf_harness.engine.tap_names.GraphNode`."""

_RANKS: Final[dict[str, int]] = {tap: info.shape.count(",") + 1 for tap, info in TAPS.items()}


def _leading_ones(shape: tuple[int, ...], rank: int) -> int:
    """How many leading dimensions of size one to drop, so that `rank` are left; streams of a batch stay."""
    drop = 0
    while len(shape) - drop > rank and shape[drop] == 1:
        drop += 1
    return drop


def _root(address: int) -> bytes:
    """The name of the tensor that following first operands ends at: of a product, the weight or the cached values."""
    tensor = Tensor.from_address(address)
    while tensor.src[0]:
        tensor = tensor.src[0].contents
    return bytes(tensor.name)
