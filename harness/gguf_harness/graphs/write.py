"""Graphs on disk: two Parquet tables, and a page that shows the graph."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf_harness import __version__
from gguf_harness.errors import require_extra
from gguf_harness.graphs.graph import Column, Graph, Table
from gguf_harness.graphs.view import render_view
from gguf_harness.store.paths import file_name
from gguf_harness.store.runs import write_bytes, write_text

__all__ = ["SCHEMA_VERSION", "GraphFiles", "to_arrow", "write_graph"]

SCHEMA_VERSION: Final = 1
"""Version of the tables; in the metadata of their schemas."""


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """Paths of a written graph."""

    nodes: Path
    edges: Path
    view: Path


def write_graph(graph: Graph, folder: Path) -> GraphFiles:
    """Write <name>.<kind>.nodes.parquet, .edges.parquet and .html, each atomically.

    The metadata of both schemas has `gguf_harness.schema` (version of the tables), `gguf_harness.version`,
    `gguf_harness.kind`, `gguf_harness.name`, `gguf_harness.meaning` and `gguf_harness.provenance` (JSON).

    Raises:
        MissingExtra: pyarrow is not installed.
        StoreError: no space, or no permission.
    """
    require_extra("graph", "A graph", "pyarrow")
    ends = ("nodes.parquet", "edges.parquet", "html")
    files = GraphFiles(*(folder / f"{file_name(graph.name)}.{graph.kind}.{end}" for end in ends))
    page = render_view(graph)
    write_bytes(files.nodes, _parquet(graph, graph.nodes))
    write_bytes(files.edges, _parquet(graph, graph.edges))
    write_text(files.view, page)
    return files


def to_arrow(graph: Graph, table: Table) -> Any:
    """A table of a graph as a `pyarrow.Table` with the graph's metadata."""
    import pyarrow as pa

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "list<int64>": pa.list_(pa.int64())}
    metadata = {
        "gguf_harness.schema": str(SCHEMA_VERSION),
        "gguf_harness.version": __version__,
        "gguf_harness.kind": graph.kind,
        "gguf_harness.name": _utf8(graph.name),
        "gguf_harness.meaning": _utf8(graph.meaning),
        "gguf_harness.provenance": json.dumps(dict(graph.provenance), allow_nan=False),
    }
    schema = pa.schema([(name, types[column.type]) for name, column in table.items()], metadata=metadata)
    return pa.table([pa.array(_storable(column), types[column.type]) for column in table.values()], schema=schema)


def _storable(column: Column) -> Any:
    if column.type != "string" or not isinstance(column.values, list):
        return column.values  # computed ids are ours
    return [_utf8(text) if text is not None else None for text in column.values]


def _utf8(text: str) -> str:
    """Lone surrogates, as pieces of tokens may have, cannot be stored."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _parquet(graph: Graph, table: Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(to_arrow(graph, table), buffer, compression="zstd")
    return buffer.getvalue()
