"""`gguf-harness metrics`: meanings and definitions of metrics."""

from __future__ import annotations

import argparse
import sys

from gguf_harness.cli.output import terminal_width, wants_color
from gguf_harness.errors import OptionError
from gguf_harness.store.paths import path_argument

__all__ = ["add_metrics_command"]


def add_metrics_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser(
        "metrics", help="print what each metric means; for a single one, its definition and source"
    )
    command.add_argument("names", nargs="*", metavar="name", help="name of a metric, such as kld_mean (default: all)")
    command.add_argument("--markdown", action="store_true", help="print a markdown table, with definitions and sources")
    command.add_argument(
        "--run", default=None, help="metrics of a run, including those of plugins: run.json, folder, id or `last`"
    )
    command.add_argument("--results", type=path_argument, default="results", metavar="DIR", help="(default: results)")
    command.set_defaults(function=_print_metrics)
    return command


def _print_metrics(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness.metrics.registry import METRICS, close_to
    from gguf_harness.report.data import RunView
    from gguf_harness.report.glossary import render_glossary, render_metric, render_metrics_markdown
    from gguf_harness.store.runs import find_run, load_run

    metrics = list(METRICS.values())
    if known.run is not None:
        metrics = RunView(load_run(find_run(known.run, known.results))).used_metrics()
    by_name = {metric.name: metric for metric in metrics}
    for name in known.names:
        if name not in by_name:
            raise OptionError(f"There is no metric {name!r}.", close_to(name, by_name))
    chosen = [by_name[name] for name in known.names] or metrics
    width = terminal_width()
    if known.markdown:
        print(render_metrics_markdown(chosen), end="")
    elif known.names:
        print("\n".join(render_metric(metric, width=width) for metric in chosen), end="")
    else:
        print(render_glossary(chosen, width=width, color=wants_color(), encoding=sys.stdout.encoding), end="")
    return 0
