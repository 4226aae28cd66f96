"""`gguf-harness export`: the tables of a run as files for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from gguf_harness.errors import visible
from gguf_harness.store.paths import file_name, path_argument

__all__ = ["add_export_command"]


def add_export_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Register the command."""
    export = commands.add_parser("export", help="write the tables of a run as Parquet or CSV files")
    export.add_argument("run", nargs="?", default="last", help="run.json, folder, id, or `last` (default)")
    kind = export.add_mutually_exclusive_group()
    kind.add_argument(
        "--parquet", dest="kind", action="store_const", const="parquet", default="parquet", help="Parquet (default)"
    )
    kind.add_argument("--csv", dest="kind", action="store_const", const="csv", help="CSV in UTF-8")
    export.add_argument(
        "-o",
        "--out",
        type=path_argument,
        default=None,
        metavar="FOLDER",
        help="folder for the files (default: named after the run's id, in the current folder)",
    )
    export.add_argument("--force", action="store_true", help="replace existing files")
    export.set_defaults(function=_export)
    return export


def _export(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness.store.export import export_run
    from gguf_harness.store.frames import open_run
    from gguf_harness.store.runs import find_run

    run = open_run(find_run(known.run, known.results))
    folder = known.out or Path(file_name(run.id))
    files = export_run(run, folder, known.kind, replace=known.force)
    width = max(map(len, files))
    for name, file in files.items():
        print(f"{name:<{width}}  {len(getattr(run, name)):>6} rows  {visible(str(file))}")
    return 0
