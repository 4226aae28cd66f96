"""Export the tables of a run for other programs: Parquet or CSV, one file for each table."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from gguf_harness import __version__
from gguf_harness.errors import StoreError, require_extra
from gguf_harness.store.frames import FRAMES, StoredRun
from gguf_harness.store.run_tables import LIST, TABLES, TEXT, Kind
from gguf_harness.store.runs import write_bytes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "export_run"]

FORMATS: Final = ("parquet", "csv")


def export_run(
    run: StoredRun, folder: Path, kind: Literal["parquet", "csv"], *, replace: bool = False
) -> dict[str, Path]:
    """Write <table>.parquet or <table>.csv for each table, including empty ones; each file atomically.

    Columns and types are those of the DataFrames. Lists and tables are written as JSON; bytes of a file name that are
    not UTF-8 are written as escapes. In CSV (UTF-8) a missing value is an empty field, and an empty text `""`. The
    metadata of a Parquet file has `gguf_harness.run` (its id), `gguf_harness.started`, `gguf_harness.schema` (version
    of run.json) and `gguf_harness.version`.

    Args:
        run: what to write.
        folder: created if it does not exist.
        kind: of the files.
        replace: replace existing files.

    Returns:
        The files by table.

    Raises:
        MissingExtra: pyarrow is not installed, which writes CSV too.
        StoreError: a file exists already, no space, or no permission.
    """
    require_extra("parquet", "Exporting a run")
    files = {name: folder / f"{name}.{kind}" for name in FRAMES}
    present = [file.name for file in files.values() if os.path.lexists(file)]
    if present and not replace:
        raise StoreError(
            f"{folder} has {', '.join(present)} already.", "Give --force to replace them, or another folder with -o."
        )
    for name, file in files.items():
        table = _to_arrow(getattr(run, name), name, run)
        write_bytes(file, _parquet(table) if kind == "parquet" else _csv(table))
    return files


def _to_arrow(frame: pd.DataFrame, name: str, run: StoredRun) -> Any:
    """Convert a DataFrame to a `pyarrow.Table`, from which pandas restores the same types."""
    import pyarrow as pa

    storable = frame.assign(**{column: _storable(frame[column], kind) for column, kind in TABLES[name].items()})
    table = pa.Table.from_pandas(storable, preserve_index=False)
    metadata = {
        "gguf_harness.run": _utf8(run.id),
        "gguf_harness.started": run.raw.get("started", ""),
        "gguf_harness.schema": str(run.raw["schema_version"]),
        "gguf_harness.version": __version__,
    }
    return table.replace_schema_metadata({**table.schema.metadata, **metadata})


def _storable(column: pd.Series[Any], kind: Kind) -> pd.Series[Any]:
    import pandas as pd

    if kind.dtype not in {TEXT.dtype, LIST.dtype}:
        return column
    present = [None if missing else value for value, missing in zip(column, column.isna(), strict=True)]
    if kind.dtype == LIST.dtype:
        present = [None if value is None else json.dumps(value, ensure_ascii=False) for value in present]
    return pd.Series([None if text is None else _utf8(text) for text in present], dtype="string")


def _utf8(text: str) -> str:
    r"""Lone surrogates cannot be stored: they are written as `\udcff`, which JSON reads back unchanged."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _parquet(table: Any) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _csv(table: Any) -> bytes:
    from pyarrow import csv

    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    return buffer.getvalue()
