"""Which nodes of a graph are needed where some are given: graphs are run with and without the others."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.engine.graph_record import GraphChanged, GraphRecord, Node
from gguf_harness.errors import EngineError

CACHE = (1001, 1002)
"""Addresses of two tensors in which nodes write in place."""


def _run(
    nodes: list[Node], skipped: Collection[int], known: dict[int, object]
) -> tuple[dict[int, object], list[object]]:
    """Values of nodes, and what the cache holds in the end. A node's value tells what it was computed from."""
    values: dict[int, object] = dict.fromkeys(range(len(nodes)), "garbage")
    cache: dict[int, object] = dict.fromkeys(CACHE, "empty")
    for at, node in enumerate(nodes):
        if at in skipped:
            values[at] = known.get(at, "garbage")
            continue
        read = [values[source] for source in node.sources] + [cache[place] for place in sorted(node.reads)]
        values[at] = hash((at, *read))
        if node.writes is not None:
            cache[node.writes] = values[at]
    return values, [cache[place] for place in CACHE]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Node], list[int]]:
    """Nodes of earlier ones, some of which read or write a cache; and the nodes that are given."""
    count = draw(st.integers(1, 14))
    nodes = [
        Node(
            f"n{at}".encode(),
            tuple(sorted(draw(st.sets(st.integers(0, at - 1), max_size=3)))) if at else (),
            draw(st.frozensets(st.sampled_from(CACHE), max_size=1)),
            draw(st.sampled_from([None, None, *CACHE])),
        )
        for at in range(count)
    ]
    plain = [at for at, node in enumerate(nodes) if node.writes is None]
    return nodes, draw(st.lists(st.sampled_from(plain), max_size=3, unique=True)) if plain else []


@given(graphs())
def test_what_comes_after_the_given_nodes_is_the_same(graph: tuple[list[Node], list[int]]) -> None:
    nodes, places = graph
    record = GraphRecord(nodes, {f"tap{at}": at for at in places})
    spared = record.spared([f"tap{at}" for at in places])
    whole, _ = _run(nodes, (), {})
    shortened, _ = _run(nodes, spared, {at: whole[at] for at in places})
    assert spared >= set(places)
    for at in range(max(places, default=-1) + 1, len(nodes)):
        assert at not in spared
        assert shortened[at] == whole[at]


def test_of_a_chain_only_the_end_is_needed() -> None:
    """Two layers with a cache each: stream, keys into the cache, attention, stream."""
    first, second = CACHE
    nodes = [
        Node(b"embd"),
        Node(b"k-0", (0,)),
        Node(b"store-0", (1,), writes=first),
        Node(b"z-0", (0,), frozenset({first})),
        Node(b"l_out-0", (0, 3)),
        Node(b"k-1", (4,)),
        Node(b"store-1", (5,), writes=second),
        Node(b"z-1", (4,), frozenset({second})),
        Node(b"l_out-1", (4, 7)),
    ]
    record = GraphRecord(nodes, {"stream": 4, "z": 7})
    assert record.spared(["stream"]) == {0, 1, 2, 3, 4}
    assert record.spared(["stream", "z"]) == set(range(8))
    # Without the stream, everything before it is needed, but for the keys of the given z.
    assert record.spared(["z"]) == {5, 6, 7}
    assert record.spared([]) == frozenset()
    # A later layer that reads the first one's cache needs what is written there.
    shared = [*nodes[:7], Node(b"z-1", (4,), frozenset({first})), nodes[8]]
    assert GraphRecord(shared, {"stream": 4}).spared(["stream"]) == {3, 4}


def test_other_graphs_are_noticed() -> None:
    record = GraphRecord([Node(b"a"), Node(b"b", (0,))], {"tap": 0})
    record.check(1, b"b")
    with pytest.raises(GraphChanged, match="Node 0 of the graph is c, and was a"):
        record.check(0, b"c")
    with pytest.raises(GraphChanged, match="was nothing"):
        record.check(2, b"c")
    with pytest.raises(EngineError, match="has no other"):
        record.spared(["tap", "other"])
