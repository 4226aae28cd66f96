"""Taps: tensors of llama.cpp's graph, read or patched while it decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from harness.engine.binding import Tensor, library, read_tensor, require_supported_engine, write_tensor
from harness.errors import EngineError, TapNotFound
from harness.names import NEEDS_FLASH_ATTENTION_OFF, TAPS, expand_taps, generic_tap, graph_nodes

__all__ = ["Patcher", "Reader", "Taps"]

Reader = Callable[[str, NDArray[np.float32]], None]
"""Called with (tap, values); values have the shape that `harness.names.TAPS` states, once per physical batch."""

Patcher = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""Called with (tap, values); returns what the rest of the graph shall see, in the same shape."""


class Taps:
    """The tensors that a session reads or patches, and the callback that llama.cpp calls for each node of its graph.

    llama.cpp asks about every node before it computes it; only nodes that are wanted are computed on their own and
    handed out. An exception in a reader or patcher is kept, and raised by `finish` after the decode: raised inside a
    ctypes callback it would vanish. A tap that is both patched and read is patched first.

    Args:
        architecture: `general.architecture` of the model.
        n_layer: number of layers of the model.
        read: function by tap.
        patch: function by tap.

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
    ) -> None:
        require_supported_engine()
        self._readers = dict(read or {})
        self._patchers = dict(patch or {})
        self._architecture, self._n_layer = architecture, n_layer
        self._wanted: dict[bytes, tuple[str, frozenset[bytes]]] = {}
        for tap in [*self._readers, *self._patchers]:
            for node in graph_nodes(tap, architecture, n_layer):
                operations = frozenset(operation.encode() for operation in node.operations)
                self._wanted[node.name.encode()] = (tap, operations)
        self._describe = library().ggml_op_desc
        self._failure: BaseException | None = None
        self._missing: set[str] = set()
        self._offered: set[bytes] = set()
        # llama.cpp holds the address only: this object must live as long as the context. With nothing wanted it is
        # null, and llama.cpp does not call at all.
        kind = llama_cpp.ggml_backend_sched_eval_callback
        self.callback = kind(self._on_node) if self._wanted else kind()

    def begin(self) -> None:
        """Called by the session before each decode."""
        self._missing = {tap for tap, _ in self._wanted.values()}

    def finish(self) -> None:
        """Called by the session after each decode.

        Raises:
            TapNotFound: the graph had no such tensor; lists those that it has.
            Exception: whatever a reader or patcher raised.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._missing:
            raise TapNotFound(
                f"The graph of this model has no {', '.join(sorted(self._missing))}.",
                self._advice(sorted(self._missing)),
            )

    def _on_node(self, address: int, ask: bool, _: object) -> bool:
        try:
            name = Tensor.from_address(address).name
            if ask:
                self._offered.add(name)
            entry = self._wanted.get(name)
            if entry is None or self._failure is not None or not self._is_meant(address, entry[1]):
                # Asked: not wanted. Told: go on with the graph.
                return not ask
            if not ask:
                self._hand_out(entry[0], address)
        except BaseException as error:
            self._failure = error
        return True

    def _is_meant(self, address: int, operations: frozenset[bytes]) -> bool:
        """llama.cpp names several nodes alike (Qcur: projection, bias, reshape, rope): the operation tells them apart.

        Which of them comes last cannot be known when the first is asked about, and a patch of the first would be undone
        or repeated by the others.
        """
        return not operations or self._describe(address) in operations

    def _hand_out(self, tap: str, address: int) -> None:
        values = read_tensor(address)
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
        if any(generic_tap(tap) in NEEDS_FLASH_ATTENTION_OFF for tap in missing):
            return "Attention scores and patterns exist only with flash attention off (flash_attention='off')."
        offered = {generic_tap(tap) for tap in expand_taps(["*"], self._n_layer) if self._is_offered(tap)}
        return f"It offers: {', '.join(tap for tap in TAPS if tap in offered) or 'none of the known taps'}."

    def _is_offered(self, tap: str) -> bool:
        try:
            nodes = graph_nodes(tap, self._architecture, self._n_layer)
        except TapNotFound:
            return False
        return any(node.name.encode() in self._offered for node in nodes)


_RANKS: Final[dict[str, int]] = {tap: info.shape.count(",") + 1 for tap, info in TAPS.items()}


def _leading_ones(shape: tuple[int, ...], rank: int) -> int:
    """How many leading dimensions of size one to drop, so that `rank` are left; streams of a batch stay."""
    drop = 0
    while len(shape) - drop > rank and shape[drop] == 1:
        drop += 1
    return drop
