"""The graph of a decode as llama.cpp computed it, and which of its nodes are needed where some values are known.

Two decodes of batches of one shape have the same graph, node by node. If the values of some nodes are known before the
second one, such as the residual stream that enters a layer, whatever only these nodes need does not have to be computed
again. ggml skips nodes without the flag GGML_TENSOR_FLAG_COMPUTE (ggml.h: "must be computed").
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gguf_harness.engine.binding import Tensor, library
from gguf_harness.errors import EngineError

__all__ = ["GraphChanged", "GraphRecord", "Node", "allow", "spare"]

_INPUT: Final = 1
_COMPUTE: Final = 16
"""Flags of a tensor (ggml.h): set from outside before the graph is computed; to be computed with the graph."""

_NO_WRITES: Final = frozenset({b"NONE", b"VIEW", b"RESHAPE", b"PERMUTE", b"TRANSPOSE"})
"""Operations that only look at memory in another way."""


class GraphChanged(EngineError):
    """A decode had another graph than the recorded one: its numbers are of no use."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a graph.

    Attributes:
        name: llama.cpp's.
        sources: the nodes that it is computed from, by index.
        reads: addresses of the tensors whose memory it reads: those of views are of what they show.
        writes: address of the tensor in whose memory it writes in place, such as a layer's cache; None for its own.
    """

    name: bytes
    sources: tuple[int, ...] = ()
    reads: frozenset[int] = frozenset()
    writes: int | None = None


class GraphRecord:
    """The nodes of a graph in the order in which they are computed, and where the taps are.

    Args:
        nodes: all of them.
        places: index of the node by tap.
    """

    def __init__(self, nodes: Sequence[Node], places: Mapping[str, int]) -> None:
        self.nodes = tuple(nodes)
        self.places = dict(places)
        self._spared: dict[frozenset[str], frozenset[int]] = {}

    @classmethod
    def of(cls, addresses: Sequence[int], places: Mapping[str, int]) -> GraphRecord | None:
        """Read the graph that a context has just computed; None if it cannot be told what each node needs.

        That is so where the batch took several graphs, and where parts of a graph run on different devices: llama.cpp
        then puts copies between them, which do not say what they are copies of.

        Args:
            addresses: of the nodes, in order.
            places: index of the node by tap.
        """
        index = {address: at for at, address in enumerate(addresses)}
        tensors = [Tensor.from_address(address) for address in addresses]
        computed = {tensor.buffer for tensor in tensors if not tensor.view_src}
        if len(index) != len(addresses) or any(
            address not in index and source.buffer in computed and not source.flags & _INPUT
            for tensor in tensors
            for address, source in _sources(tensor)
        ):
            return None
        return cls([_node(address, tensor, index) for address, tensor in zip(addresses, tensors, strict=True)], places)

    def spared(self, given: Collection[str]) -> frozenset[int]:
        """Nodes that need not be computed if the values of these taps are given, which are among them.

        All nodes after the last of the given ones are computed, and whatever they need: what they are computed from,
        and what writes in place, such as into the cache, where they read.

        Raises:
            EngineError: the graph has no such tap.
        """
        key = frozenset(given)
        if unknown := sorted(key - self.places.keys()):
            raise EngineError(f"The recorded graph has no {', '.join(unknown)}.", "Give values of taps that it has.")
        if key not in self._spared:
            self._spared[key] = self._find_spared({self.places[tap] for tap in key})
        return self._spared[key]

    def _find_spared(self, given: set[int]) -> frozenset[int]:
        if not given:
            return frozenset()
        first = max(given) + 1
        needed: set[int] = set()
        read: set[int] = set()
        waiting = list(range(first, len(self.nodes)))
        while waiting:
            while waiting:
                at = waiting.pop()
                if at in needed:
                    continue
                needed.add(at)
                read |= self.nodes[at].reads
                waiting += [source for source in self.nodes[at].sources if source not in given]
            waiting = [
                at for at in range(first) if at not in needed and at not in given and self.nodes[at].writes in read
            ]
        return frozenset(range(len(self.nodes))) - needed

    def check(self, at: int, name: bytes) -> None:
        """Make sure that a decode's node is the recorded one.

        Raises:
            GraphChanged: it is not.
        """
        if at >= len(self.nodes) or self.nodes[at].name != name:
            there = self.nodes[at].name.decode("utf-8", "replace") if at < len(self.nodes) else "nothing"
            raise GraphChanged(
                f"Node {at} of the graph is {name.decode('utf-8', 'replace')}, and was {there} when it was recorded.",
                "Decode without given values.",
            )


def spare(address: int) -> bool:
    """Let ggml skip a node; whether it would have been computed."""
    tensor = Tensor.from_address(address)
    if not tensor.flags & _COMPUTE:
        return False
    tensor.flags &= ~_COMPUTE
    return True


def allow(addresses: Iterable[int]) -> None:
    """Undo `spare`: llama.cpp may use the graph again."""
    for address in addresses:
        Tensor.from_address(address).flags |= _COMPUTE


def _sources(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    for pointer in tensor.src:
        if pointer:
            source = pointer.contents
            yield ctypes.addressof(source), source


def _node(address: int, tensor: Tensor, index: Mapping[int, int]) -> Node:
    sources = list(_sources(tensor))
    reads = frozenset(at for place, source in sources for at in (place, source.view_src) if at)
    writes = tensor.view_src if library().ggml_op_desc(address) not in _NO_WRITES else None
    return Node(tensor.name, tuple(index[at] for at, _ in sources if at in index), reads, writes)
