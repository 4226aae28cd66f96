"""`gguf-harness history`: metrics of a family of files over many runs."""

from __future__ import annotations

import argparse
import sys

from gguf_harness.cli.output import terminal_width, wants_color
from gguf_harness.errors import visible
from gguf_harness.store.paths import path_argument

__all__ = ["add_history_command"]


def add_history_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    history = commands.add_parser("history", help="show metrics over many runs, with regressions marked")
    history.add_argument(
        "runs", nargs="*", metavar="RUN", help="run.json, folder, id, or `last` (default: all runs of the results)"
    )
    history.add_argument(
        *("--gguf-results", "--results"), dest="results", type=path_argument, default="results", metavar="DIR",
        help="folder of the runs (default: results)",
    )  # fmt: skip
    history.add_argument(
        "--models", type=_words, default=[], metavar="NAME,...", help="only these types or names; * and ? match any"
    )
    history.add_argument(
        "--metric", type=_words, default=[], metavar="NAME,...", help="metrics, or `all` (default: the main ones)"
    )
    history.add_argument(
        "--html", type=path_argument, default=None, metavar="FILE", help="write a page with pictures, too"
    )
    form = history.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV, a row for each value")
    history.set_defaults(function=_history)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _history(known: argparse.Namespace, _: list[str]) -> int:
    import json

    from gguf_harness.judge.history import read_history
    from gguf_harness.report.history import history_csv, history_json, render_history, write_history

    history = read_history(known.results, known.runs, models=known.models, metrics=known.metric)
    if known.html is not None:
        write_history(history, known.html)
    if known.json:
        print(json.dumps(history_json(history), indent=1, allow_nan=False))
    elif known.csv:
        print(history_csv(history), end="")
    else:
        width, encoding = terminal_width(), sys.stdout.encoding
        print(render_history(history, width=width, color=wants_color(), encoding=encoding), end="")
    if known.json or known.csv:
        # What is printed is for a program: a person reads this.
        for line in history.left_out:
            print(f"left out: {line}", file=sys.stderr)
    if known.html is not None:
        print(f"page: {visible(str(known.html))}", file=sys.stderr if known.json or known.csv else sys.stdout)
    return 0
