"""Graphs: builders against loops over the same data, and what is written."""

from __future__ import annotations

import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gguf_harness import __version__
from gguf_harness.errors import GraphError, MissingExtra, NoData, StoreError
from gguf_harness.gguf.header import GGUFHeader, TensorInfo, read_header
from gguf_harness.gguf.metadata import Metadata
from gguf_harness.graphs import (
    AttentionGraph,
    Column,
    CosineNetwork,
    Graph,
    GraphBuilder,
    LayerTokenFlow,
    ModelStructure,
    upload,
    write_graph,
)
from gguf_harness.graphs.node_layout import principal_plane, spring_layout
from gguf_harness.graphs.view import MOST_EDGES, render_view

HOSTILE = ["</script><img src=x onerror=alert(1)>", '<a href="javascript:alert(1)">', "\x1b[2J", "\ud83d", "&lt;b&gt;"]
PATTERNS = hnp.arrays(np.float32, (2, 3, 5, 5), elements=st.floats(0, 1, width=32))


def _rows(table: Any) -> list[dict[str, Any]]:
    """A table as rows."""
    columns = {name: [_item(value) for value in column.values] for name, column in table.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _attention(tokens: list[str] | None = None) -> Graph:
    pattern = np.full((2, 3, 5, 5), 0.2)
    return AttentionGraph("a model", pattern, tokens or HOSTILE, provenance={"prompt": "fox"}).build()


# -- structure --------------------------------------------------------------------------------------------------------


def test_every_tensor_of_a_file_has_its_node(llama_file: Path) -> None:
    header = read_header(llama_file)
    graph = ModelStructure("m", [header]).build()
    nodes = {row["id"]: row for row in _rows(graph.nodes)}
    leaves = {row["label"]: row for row in nodes.values() if row["kind"] == "tensor"}
    assert set(leaves) == {tensor.name for tensor in header.tensors}
    for tensor in header.tensors:
        row = leaves[tensor.name]
        assert (row["tensor_type"], tuple(row["shape"])) == (tensor.type, tensor.shape)
        assert (row["parameters"], row["bytes"]) == (tensor.parameters, tensor.bytes)
        assert row["bits"] == 32
    assert nodes["model:"]["bytes"] == sum(tensor.bytes for tensor in header.tensors)
    assert {row["label"] for row in nodes.values() if row["kind"] == "block"} == {"blk.0", "blk.1"}
    assert graph.provenance["files"] == [llama_file.name]


def test_weights_are_shares_of_the_parent(llama_file: Path) -> None:
    graph = ModelStructure("m", [read_header(llama_file)]).build()
    edges = _rows(graph.edges)
    assert len(edges) == graph.n_nodes - 1
    for _, group in itertools.groupby(sorted(edges, key=lambda row: row["source"]), key=lambda row: row["source"]):
        assert sum(row["weight"] for row in group) == pytest.approx(1)


def _header(names: list[str]) -> GGUFHeader:
    tensors = tuple(TensorInfo(name, (32, 2), "Q8_0", 0, 68) for name in names)
    return GGUFHeader(Path("m.gguf"), 3, Metadata("m.gguf"), tensors, 0, 0, 32, 0, None)


def test_blocks_are_in_the_order_of_their_numbers() -> None:
    names = ["output.weight", "blk.10.a", "blk.2.a", "enc.blk.0.a", "blk.2.b", "blk.x.a", f"blk.{'9' * 5000}.a"]
    graph = ModelStructure("m", [_header(names[:3]), _header(names[3:])]).build()
    rows = _rows(graph.nodes)
    assert [row["label"] for row in rows if row["kind"] == "block"] == ["blk.2", "blk.10", "enc.blk.0"]
    below = {row["target"]: row["source"] for row in _rows(graph.edges)}
    assert below["tensor:blk.2.b"] == "block:blk.2"
    assert below["tensor:blk.x.a"] == "model:"
    lines = [row["y"] for row in rows if row["kind"] == "tensor"]
    assert sorted(lines) == [float(-line) for line in reversed(range(len(names)))]


def test_names_that_look_like_ids_are_no_danger() -> None:
    graph = ModelStructure("block:blk.0", [_header(["model:", "blk.0", "blk.0.block:blk.0", "tensor:x"])]).build()
    assert graph.n_nodes == 6


def test_a_file_without_tensors_is_no_data() -> None:
    with pytest.raises(NoData, match="has no tensors"):
        ModelStructure("m", [_header([])]).build()


# -- attention and flow -----------------------------------------------------------------------------------------------


def _expected(weights: np.ndarray, threshold: float, k: int) -> set[int]:
    """Keys of one row's edges, by sorting it."""
    order = sorted(range(len(weights)), key=lambda key: (-weights[key], key))[:k]
    return {key for key in order if float(weights[key]) >= threshold and weights[key] > 0}


@given(PATTERNS, st.floats(0, 1), st.integers(1, 6))
def test_attention_edges_are_the_largest_of_each_row(pattern: np.ndarray, threshold: float, k: int) -> None:
    graph = AttentionGraph("m", pattern, list("abcde"), threshold, k).build()
    rows = _rows(graph.edges)
    assert graph.n_nodes == 3 * 5
    for layer, head, query in np.ndindex(2, 3, 5):
        keys = _expected(pattern[layer, head, query], threshold, k)
        target = f"l{layer + 1}.t{query}"
        own = [row for row in rows if (row["layer"], row["head"], row["target"]) == (layer, head, target)]
        assert {row["source"] for row in own} == {f"l{layer}.t{key}" for key in keys}
        assert all(row["weight"] == pattern[layer, head, query, int(row["source"].split("t")[1])] for row in own)


def test_flow_has_cosines_and_the_mean_of_heads() -> None:
    rng = np.random.default_rng(0)
    states, pattern = rng.normal(size=(3, 4, 8)), rng.dirichlet(np.ones(4), size=(2, 3, 4))
    states[1, 2] = 0
    graph = LayerTokenFlow("m", states, pattern, list("abcd"), threshold=0.3, top_k=2).build()
    rows = {(row["kind"], row["source"], row["target"]): row["weight"] for row in _rows(graph.edges)}
    residual = {key: weight for key, weight in rows.items() if key[0] == "residual"}
    # None where the state is zero, before and after it.
    assert len(residual) == 2 * 4 - 2
    for (_, source, target), weight in residual.items():
        a, b = states[int(source[1]), int(source[4])], states[int(target[1]), int(target[4])]
        assert source[4] == target[4]
        assert weight == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    mean = pattern.mean(axis=1)
    wanted = {
        ("attention", f"l{layer}.t{key}", f"l{layer + 1}.t{query}"): mean[layer, query, key]
        for layer, query in np.ndindex(2, 4)
        for key in _expected(mean[layer, query], 0.3, 2)
    }
    assert {key: weight for key, weight in rows.items() if key[0] == "attention"} == pytest.approx(wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_no_data(bad: float) -> None:
    pattern, states = np.full((1, 1, 2, 2), 0.5), np.ones((2, 2, 3))
    broken = pattern.copy()
    broken[0, 0, 1, 0] = bad
    with pytest.raises(NoData, match="not finite"):
        AttentionGraph("m", broken, ["a", "b"]).build()
    states[0, 0, 0] = bad
    with pytest.raises(NoData, match="not finite"):
        LayerTokenFlow("m", states, pattern, ["a", "b"]).build()
    with pytest.raises(NoData, match="Point 0 is zero or not finite"):
        CosineNetwork("m", states[0], ["a", "b"]).build()
    with pytest.raises(NoData, match="no attention"):
        AttentionGraph("m", np.empty((0, 1, 2, 2)), ["a", "b"]).build()


def test_shapes_that_do_not_fit_are_mistakes() -> None:
    pattern = np.full((1, 1, 2, 2), 0.5)
    for build in (
        AttentionGraph("m", pattern, ["a"]).build,
        AttentionGraph("m", pattern[0], ["a", "b"]).build,
        AttentionGraph("m", pattern * 9, ["a", "b"]).build,
        AttentionGraph("m", pattern, ["a", "b"], top_k=0).build,
        LayerTokenFlow("m", np.ones((1, 2, 3)), pattern, ["a", "b"]).build,
        CosineNetwork("m", np.ones((2, 3)), ["a"]).build,
        CosineNetwork("m", np.ones((2, 3)), ["a", "b"], coordinates=np.ones((3, 2))).build,
    ):
        with pytest.raises(ValueError, match=r"shape|weights|top_k|labels"):
            build()


# -- cosine network ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 12), st.floats(-1, 1))
def test_a_network_joins_each_point_with_its_nearest(seed: int, k: int, threshold: float) -> None:
    points = np.random.default_rng(seed).normal(size=(10, 4))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosines = unit @ unit.T
    wanted = set()
    for i in range(10):
        others = sorted((j for j in range(10) if j != i), key=lambda j: -cosines[i, j])[:k]
        wanted |= {(min(i, j), max(i, j)) for j in others if cosines[i, j] >= threshold}
    graph = CosineNetwork("m", points, [f"w{i}" for i in range(10)], k, threshold, coordinates=points[:, :2]).build()
    edges = _rows(graph.edges)
    assert [(int(row["source"][1:]), int(row["target"][1:])) for row in edges] == sorted(wanted)
    for row in edges:
        assert row["weight"] == pytest.approx(cosines[int(row["source"][1:]), int(row["target"][1:])])
    assert (np.asarray(graph.nodes["x"].values) == points[:, 0]).all()
    assert sum(row["degree"] for row in _rows(graph.nodes)) == 2 * len(edges)


def test_springs_put_together_what_belongs_together() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(40) % 4
    points = 3 * np.eye(4)[group] + rng.normal(size=(40, 4)) / 3
    first, second = (CosineNetwork("m", points, ["w"] * 40).build() for _ in range(2))
    place = np.stack([first.nodes["x"].values, first.nodes["y"].values], axis=1).astype(np.float64)
    assert (place == np.stack([second.nodes["x"].values, second.nodes["y"].values], axis=1)).all()
    assert np.abs(place).max() == pytest.approx(1)
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)
    same = group[:, None] == group[None]
    assert apart[same].mean() < apart[~same].mean() / 2


def test_points_in_one_place_part() -> None:
    place = spring_layout(np.zeros((9, 2)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    assert len({tuple(row) for row in place.round(3).tolist()}) == 9
    alone = np.zeros(0, dtype=np.int64)
    assert (spring_layout(np.ones((1, 2)), alone, alone, np.zeros(0)) == 0).all()


def test_many_points_lie_in_their_principal_plane() -> None:
    points = np.random.default_rng(0).normal(size=(1600, 3)) * [5, 1, 0.1]
    graph = CosineNetwork("m", points, [""] * 1600, k=1).build()
    assert graph.provenance["layout"] == "the first two principal axes"
    assert principal_plane(np.ones((5, 3))) == pytest.approx(np.zeros((5, 2)))
    assert principal_plane(np.arange(6.0)[:, None])[:, 1] == pytest.approx(np.zeros(6))


# -- graphs -----------------------------------------------------------------------------------------------------------


def test_every_builder_builds_a_graph_of_its_kind() -> None:
    pattern = np.full((1, 1, 2, 2), 0.5)
    builders: list[GraphBuilder] = [
        ModelStructure("m", [_header(["blk.0.a"])]),
        AttentionGraph("m", pattern, ["a", "b"]),
        LayerTokenFlow("m", np.ones((2, 2, 3)), pattern, ["a", "b"]),
        CosineNetwork("m", np.ones((2, 3)), ["a", "b"]),
    ]
    graphs = [builder.build() for builder in builders]
    assert [graph.kind for graph in graphs] == ["structure", "attention", "flow", "cosine"]
    assert all(graph.n_nodes >= 2 and graph.n_edges >= 1 for graph in graphs)


def test_a_graph_is_whole() -> None:
    good = _attention()
    nodes, edges = dict(good.nodes), dict(good.edges)
    n = good.n_nodes
    for broken, words in (
        ((nodes | {"id": Column("string", ["a"] * n)}, edges), "same id"),
        ((nodes | {"x": Column("float64", [float("nan")] * n)}, edges), "x is not finite"),
        ((nodes | {"x": Column("int64", [0] * n)}, edges), "need a column x of type float64"),
        ((nodes | {"more": Column("int64", [1])}, edges), "differ in length"),
        ((nodes, edges | {"target": Column("string", ["nowhere"] * good.n_edges)}), "a target that is not a node"),
        ((nodes, edges | {"weight": Column("float64", [float("inf")] * good.n_edges)}), "weight is not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            Graph("m", "attention", "", *broken)
    empty = {name: Column(column.type, []) for name, column in nodes.items()}
    nothing = {name: Column(column.type, []) for name, column in edges.items()}
    with pytest.raises(NoData, match="no nodes"):
        Graph("m", "attention", "", empty, nothing)


# -- files ------------------------------------------------------------------------------------------------------------


def test_pyarrow_reads_what_was_written(tmp_path: Path, llama_file: Path) -> None:
    graph = ModelStructure("org/m <1>", [read_header(llama_file)], {"sha256": "ab"}).build()
    files = write_graph(graph, tmp_path / "new")
    assert files.nodes.name == "org_m _1_-41346f55.structure.nodes.parquet"
    nodes, edges = pq.read_table(files.nodes), pq.read_table(files.edges)
    assert nodes.to_pylist() == _rows(graph.nodes)
    assert edges.to_pylist() == _rows(graph.edges)
    assert {name: str(nodes.schema.field(name).type) for name in ("id", "shape", "bytes", "bits")} == {
        "id": "string",
        "shape": "list<element: int64>",
        "bytes": "int64",
        "bits": "double",
    }
    for schema in (nodes.schema, edges.schema):
        told = {key.decode(): value.decode() for key, value in schema.metadata.items()}
        assert told["gguf_harness.schema"] == "1"
        assert told["gguf_harness.version"] == __version__
        assert (told["gguf_harness.kind"], told["gguf_harness.name"]) == ("structure", "org/m <1>")
        assert json.loads(told["gguf_harness.provenance"]) == {"files": [llama_file.name], "sha256": "ab"}


def test_hostile_labels_are_stored_as_they_are(tmp_path: Path) -> None:
    nodes = pq.read_table(write_graph(_attention(), tmp_path).nodes)
    assert nodes["label"].to_pylist()[:5] == [*HOSTILE[:3], "?", HOSTILE[4]]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="could not be written"):
        write_graph(_attention(), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _data(page: str) -> dict[str, Any]:
    start = page.index('id="graph">') + len('id="graph">')
    data: dict[str, Any] = json.loads(page[start : page.index("</script>", start)])
    return data


def test_the_page_has_every_node_and_edge_and_no_foreign_markup() -> None:
    graph = _attention()
    page = render_view(graph)
    assert "<img" not in page.split("Plotly", maxsplit=1)[0]
    data = _data(page)
    assert len(data["nodes"]["x"]) == graph.n_nodes
    assert len(data["edges"]["weight"]) == graph.n_edges
    assert data["facets"] == {"layer": [0, 1], "head": [0, 1, 2]}
    for text in [*data["nodes"]["text"], *data["edges"]["kind"]]:
        assert "<" not in text
        assert ">" not in text
    assert data["nodes"]["text"][:2] == ["&lt;/script&gt;&lt;i…", "&lt;a href=&quot;ja…".replace("&quot;", '"')]
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in data["nodes"]["hover"][0]
    # Made visible, and not taken for the markup that it looks like.
    assert data["nodes"]["text"][2:][:3] == ["\\x1b[2J", "\\xd83d", "&amp;lt;b&amp;gt;"]


def test_many_edges_are_shown_by_strength() -> None:
    n = 160
    pattern = np.random.default_rng(0).uniform(size=(1, 1, n, n))
    graph = AttentionGraph("m", pattern, ["t"] * n, threshold=0, top_k=n).build()
    page = render_view(graph)
    assert f"The {MOST_EDGES:,} strongest edges are shown here" in page
    shown = _data(page)["edges"]["weight"]
    assert len(shown) == MOST_EDGES
    assert min(shown) >= np.sort(pattern.ravel())[-MOST_EDGES] - 1e-6


# -- upload -----------------------------------------------------------------------------------------------------------

ACCOUNT = {"GRAPHISTRY_USERNAME": "me", "GRAPHISTRY_PASSWORD": "hush-hush"}


@pytest.mark.parametrize("environment", [{}, {"GRAPHISTRY_USERNAME": "me"}, {"GRAPHISTRY_PERSONAL_KEY_ID": "x"}])
def test_without_credentials_nothing_is_uploaded(environment: dict[str, str]) -> None:
    with pytest.raises(GraphError, match=r"no credentials(.|\n)*GRAPHISTRY_USERNAME and GRAPHISTRY_PASSWORD, or GRAPH"):
        upload(_attention(), environment)


def test_without_the_package_nothing_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphistry", None)
    with pytest.raises(MissingExtra, match=r"package graphistry, which is not(.|\n)*gguf-harness\[graph\]"):
        upload(_attention(), ACCOUNT)


class _Pretended(types.ModuleType):
    """PyGraphistry's calls, written down; the real one would need a server."""

    def __init__(self, problem: str = "") -> None:
        super().__init__("graphistry")
        self.__spec__ = types.SimpleNamespace(loader=None)  # type: ignore[assignment]
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.problem = problem

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if name == "plot":
                if self.problem:
                    raise RuntimeError(self.problem)
                return "https://graphistry.example/graph"
            return self

        return call


def _pretend(monkeypatch: pytest.MonkeyPatch, problem: str = "") -> _Pretended:
    module = _Pretended(problem)
    monkeypatch.setitem(sys.modules, "graphistry", module)
    # pandas comes with PyGraphistry only.
    monkeypatch.setattr(
        "gguf_harness.graphs.graphistry_upload.to_arrow", lambda _graph, _table: types.SimpleNamespace(to_pandas=list)
    )
    return module


def test_an_upload_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _pretend(monkeypatch)
    keys = {"GRAPHISTRY_PERSONAL_KEY_ID": "id", "GRAPHISTRY_PERSONAL_KEY_SECRET": "s", "GRAPHISTRY_SERVER": "g.example"}
    assert upload(_attention(), keys) == "https://graphistry.example/graph"
    names = [name for name, _, _ in module.calls]
    assert names.index("privacy") < names.index("plot")
    calls = {name: kwargs for name, _, kwargs in module.calls}
    assert calls["privacy"] == {"mode": "private"}
    assert calls["register"] == {
        "api": 3,
        "protocol": "https",
        "server": "g.example",
        "personal_key_id": "id",
        "personal_key_secret": "s",
    }


def test_a_failed_upload_does_not_tell_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, "403 for me with hush-hush")
    with pytest.raises(GraphError, match=r"Not uploaded: RuntimeError: 403 for \*\*\* with \*\*\*") as caught:
        upload(_attention(), ACCOUNT)
    assert caught.value.__suppress_context__
