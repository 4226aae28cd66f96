"""`gguf-harness merge`: one run of the parts that sessions with --gguf-shard have measured."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.cli.output import terminal_width, wants_color
from gguf_harness.errors import OptionError, StoreError, visible
from gguf_harness.store.paths import path_argument

__all__ = ["add_merge_command"]

_FAILED: Final = 1
_EPILOG: Final = """\
exit codes: 0 where everything passes; 1 where a gate or a test failed, a planned gate was not decided, or a part is
missing; 2 for parts that do not belong together and other mistakes: nothing was written
"""


def add_merge_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    merge = commands.add_parser(
        "merge",
        help="make one run of the parts that `--gguf-shard` measured",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    merge.add_argument("runs", nargs="+", metavar="RUN", help="run.json, folder, id; or a folder of downloaded runs")
    merge.add_argument(
        *("--gguf-results", "--results"),
        dest="results",
        type=path_argument,
        default="results",
        metavar="DIR",
        help="folder to write the run to (default: results)",
    )
    merge.add_argument(
        "--gguf-holm",
        action="store_true",
        help="decide gates together, by Holm's correction over all parts (default: as the sessions were told)",
    )
    merge.add_argument(
        "--gguf-baseline",
        metavar="NAME|FILE",
        default=None,
        help="fail candidates that are worse than this baseline says they were (default: the one that the sessions"
        " compared with, if any)",
    )
    merge.add_argument(
        "--gguf-baseline-map",
        action="append",
        metavar="OLD=NEW[,OLD=NEW...]",
        default=[],
        help="as for a session",
    )
    merge.add_argument(
        "--gguf-save-baseline", metavar="NAME", default=None, help="save DIR/baselines/NAME.json (default: off)"
    )
    merge.set_defaults(function=_merge)


def _merge(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness.inputs.baseline_names import check_name, find_baseline
    from gguf_harness.inputs.typed_command import typed_command
    from gguf_harness.report.late_comparisons import find_against
    from gguf_harness.report.merging import merge_parts
    from gguf_harness.report.shard_runs import check_parts, find_parts
    from gguf_harness.report.terminal import render_terminal
    from gguf_harness.store.runs import prepare_folder

    results = Path(known.results)
    if known.gguf_baseline is not None and not known.gguf_baseline.strip():
        raise OptionError("--gguf-baseline is empty.", "Give a name or a file; an unset shell variable is empty.")
    given = None if known.gguf_baseline is None else find_baseline(known.gguf_baseline, results)
    save = None if known.gguf_save_baseline is None else check_name(known.gguf_save_baseline)
    parts = check_parts(*find_parts(known.runs, results))
    against = find_against(parts, given, known.gguf_baseline_map)
    prepare_folder(results, "--gguf-results")
    command = typed_command((), shlex.join(["gguf-harness", *known.typed]), None)
    merged = merge_parts(parts, results, command, holm=known.gguf_holm, against=against, save=save)
    print(render_terminal(merged.run, width=terminal_width(), color=wants_color(), encoding=sys.stdout.encoding))
    for note in merged.notes:
        print(f"note: {visible(note)}")
    print(f"report: {visible(str(merged.folder / 'report.html'))}")
    print(f"run:    {visible(str(merged.folder / 'run.json'))}")
    if merged.baseline is not None:
        print(f"saved:  {visible(str(merged.baseline))}")
    _tell_github(merged.run)
    for problem in merged.problems:
        print(f"gguf-harness: {visible(problem)}", file=sys.stderr)
    return 0 if merged.passes else _FAILED


def _tell_github(run: Mapping[str, Any]) -> None:
    """In a workflow: the step's summary, and annotations."""
    from gguf_harness.report.github import annotation_lines, append_summary

    if file := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            append_summary(run, Path(file))
        except StoreError as error:  # the run is complete without it
            print(f"There is no step summary. {error}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(annotation_lines(run)))
