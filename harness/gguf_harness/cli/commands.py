"""Commands of the console script `gguf-harness`: run suites, show runs and models, quantize."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import gguf_harness
from gguf_harness.cli.cache_command import add_cache_command
from gguf_harness.cli.explore_command import add_explore_command
from gguf_harness.cli.export_command import add_export_command
from gguf_harness.cli.history_command import add_history_command
from gguf_harness.cli.merge_command import add_merge_command
from gguf_harness.cli.metrics_command import add_metrics_command
from gguf_harness.cli.output import can_overwrite, terminal_width, wants_color
from gguf_harness.cli.run_command import run_suites
from gguf_harness.errors import OptionError, visible
from gguf_harness.store.paths import path_argument

__all__ = ["run_command"]

_NOTHING_TO_COMPARE = 2

_EXIT_CODES = """\
exit codes of run, which are pytest's:
  0  every gate and test passed
  1  a gate or a test failed, a test ran without deciding its gate, or the results could not be stored
  2  interrupted, or tests could not be collected
  3  an internal error
  4  a mistake on the command line: nothing was measured
  5  no tests: nothing was measured
exit codes of the other commands: 0; 2 for an invalid request, and if `compare` finds nothing that both runs have; 130
after Ctrl-C, 143 after SIGTERM; `merge` ends with 1 where the run that it makes does not pass
"""


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: None for those of the process.

    Raises:
        SystemExit: for --help and --version, and for unknown arguments.
        HarnessError: an invalid request.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["run"]:
        return run_suites(words[1:])
    parser = _parser()
    known, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if known.command != "cache" or word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    known.typed = words
    return int(known.function(known, rest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gguf-harness",
        description="Evaluate quantized language models (GGUF).",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gguf-harness {gguf_harness.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_run_commands(commands)
    _add_model_commands(commands)
    return parser


def _add_run_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Commands that create or read a run."""
    # Only for the list of commands: `run_suites` reads its words, most of which are pytest's.
    commands.add_parser("run", help="run suites, or all: gguf-harness run quant attention --models=...")

    report = commands.add_parser("report", help="rebuild a run's report from its run.json")
    report.add_argument("run", nargs="?", default="last", help="run.json, folder, id, or `last` (default)")
    report.add_argument(
        "--html",
        type=path_argument,
        default=None,
        metavar="FILE",
        help="path of the HTML file (default: next to run.json)",
    )
    report.add_argument("--markdown", action="store_true", help="print markdown instead")
    report.set_defaults(function=_report)

    badge = commands.add_parser("badge", help="print the verdict of a run as an SVG badge")
    badge.add_argument("run", nargs="?", default="last", help="run.json, folder, id, or `last` (default)")
    badge.add_argument(
        "-o", "--output", type=path_argument, default=None, metavar="FILE", help="write it to this file instead"
    )
    badge.set_defaults(function=_badge)

    compare = commands.add_parser("compare", help="compare two runs, metric by metric")
    compare.add_argument("old", help="run.json, folder, id, or `last`")
    compare.add_argument("new", help="run.json, folder, id, or `last`")
    compare.add_argument("--json", action="store_true", help="print a list of differences as JSON")
    compare.set_defaults(function=_compare)

    add_history_command(commands)
    add_merge_command(commands)
    add_metrics_command(commands)
    for command in (report, badge, compare, add_export_command(commands), add_cache_command(commands)):
        command.add_argument(
            "--results", type=path_argument, default="results", metavar="DIR", help="(default: results)"
        )


def _add_model_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Commands that show models, or create one."""
    inspect = commands.add_parser("inspect", help="print what model files hold")
    inspect.add_argument("models", nargs="+", help="paths, globs, folders, aliases, hf:org/repo:file-or-quant")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(function=_inspect)

    heads = commands.add_parser("heads", help="print what each attention head does; for two models, which heads match")
    heads.add_argument("models", nargs="+", metavar="model", help="path, alias, hf:org/repo:file; one or two")
    heads.add_argument(
        "--prompts", type=path_argument, default=None, metavar="FILE", help="TOML file (default: built-in)"
    )
    _add_threads(heads)
    heads.set_defaults(function=_heads)

    quantize = commands.add_parser("quantize", help="quantize a model to one or several types")
    quantize.add_argument("model", help="path, alias, hf:org/repo:file-or-quant")
    quantize.add_argument("types", help="types, such as Q4_K_M or Q8_0,Q4_K_M or default")
    quantize.add_argument(
        "--out", type=path_argument, default=".", metavar="DIR", help="folder for the files (default: current folder)"
    )
    quantize.add_argument(
        "--imatrix", type=path_argument, default=None, metavar="FILE", help="importance matrix (GGUF)"
    )
    _add_threads(quantize)
    quantize.set_defaults(function=_quantize)

    _add_threads(add_explore_command(commands))

    graph = commands.add_parser("graph", help="write a graph of a model as tables (Parquet) and as an interactive page")
    graph.add_argument("model", help="path, alias, hf:org/repo:file-or-quant")
    graph.add_argument(
        "--kind",
        choices=("structure", "attention", "flow", "cosine"),
        default="structure",
        help="structure: its tensors (default); attention: which token looks at which, by layer and head; flow: the"
        " residual stream and what attention brings into it; cosine: words with similar token embeddings",
    )
    graph.add_argument("--prompt", default=None, metavar="TEXT", help="for attention and flow (default: a sentence)")
    graph.add_argument(
        "--words", type=path_argument, default=None, metavar="FILE", help="for cosine (default: built-in list)"
    )
    _add_threads(graph)
    graph.add_argument(
        "-o",
        "--out",
        type=path_argument,
        default=".",
        metavar="DIR",
        help="folder for the files (default: current folder)",
    )
    graph.add_argument(
        "--upload", action="store_true", help="also upload it to Graphistry, with the account from the environment"
    )
    graph.set_defaults(function=_graph)


def _add_threads(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threads", type=_threads, default=None, metavar="N", help="CPU threads (default: physical cores)"
    )


def _threads(text: str) -> int:
    from gguf_harness.inputs.command_line import MOST_THREADS

    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads, expected 1 to {MOST_THREADS}")
    return int(text)


def _report(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness.report.html import write_html
    from gguf_harness.report.markdown import render_markdown
    from gguf_harness.report.terminal import render_terminal
    from gguf_harness.store.runs import find_run, load_run

    path = find_run(known.run, known.results)
    run = load_run(path)
    if known.markdown:
        print(render_markdown(run), end="")
        return 0
    destination = known.html or path.parent / "report.html"
    write_html(run, path.parent, destination)
    print(render_terminal(run, width=terminal_width(), color=wants_color(), encoding=sys.stdout.encoding), end="")
    print(f"\nreport: {visible(str(destination))}")
    return 0


def _badge(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness.report.badge import render_badge
    from gguf_harness.store.runs import find_run, load_run, write_text

    badge = render_badge(load_run(find_run(known.run, known.results)))
    if known.output is None:
        print(badge, end="")
    else:
        write_text(known.output, badge)
    return 0


def _compare(known: argparse.Namespace, _: list[str]) -> int:
    import json

    from gguf_harness.report.compare import compare_runs, render_comparison
    from gguf_harness.store.runs import find_run, load_run

    old, new = (load_run(find_run(spec, known.results)) for spec in (known.old, known.new))
    comparison = compare_runs(old, new)
    if known.json:
        print(json.dumps(comparison.to_json(), indent=1, allow_nan=False))
    else:
        width, encoding = terminal_width(), sys.stdout.encoding
        print(render_comparison(comparison, width=width, color=wants_color(), encoding=encoding), end="")
    if comparison.problem:
        print(f"gguf-harness: {comparison.problem}", file=sys.stderr)
        return _NOTHING_TO_COMPARE
    return 0


def _heads(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness import api
    from gguf_harness.report.head_summary import render_heads, render_matched_heads

    if len(known.models) > 2:
        raise OptionError(f"{len(known.models)} models were given.", "Give one, or two to see side by side.")
    behaviours = [api.heads(model, known.prompts, threads=known.threads) for model in known.models]
    width, color = terminal_width(), wants_color()
    if len(behaviours) == 2:
        print(render_matched_heads(known.models, behaviours[0], behaviours[1], width=width, color=color), end="")
    else:
        print(render_heads(known.models[0], behaviours[0], width=width, color=color), end="")
    return 0


def _inspect(known: argparse.Namespace, _: list[str]) -> int:
    import json

    from gguf_harness.inputs.models import load_info
    from gguf_harness.inputs.sources import parse_specs, select
    from gguf_harness.report.inspect import render_info

    selection = select(parse_specs(known.models))
    for note in selection.notes:
        print(note, file=sys.stderr)
    infos = [load_info(source) for source in selection.models]
    if known.json:
        print(json.dumps([info.to_json() for info in infos], indent=1, allow_nan=False))
    else:
        print("\n".join(render_info(info, color=wants_color()) for info in infos), end="")
    return 0


def _quantize(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness.api.quantizing import quantize_each
    from gguf_harness.gguf.types import parse_quants
    from gguf_harness.inputs.options import default_threads
    from gguf_harness.inputs.sources import expand_one

    source = expand_one(known.model)
    if known.imatrix is not None and not known.imatrix.is_file():
        raise OptionError(f"--imatrix={known.imatrix}: no such file.", "Give the path of an existing file.")
    threads = known.threads or default_threads()
    for path in quantize_each(source, parse_quants(known.types), known.out, known.imatrix, threads, _counter):
        _erase_counter()
        print(f"{visible(str(path))}  {path.stat().st_size / 1e6:,.1f} MB")
    return 0


def _graph(known: argparse.Namespace, _: list[str]) -> int:
    from gguf_harness.cli.graph_sources import graph_of
    from gguf_harness.errors import require_extra
    from gguf_harness.graphs import account_for_upload, upload, write_graph

    # Now, and not when everything has been measured.
    require_extra("graph", "`gguf-harness graph`", "pyarrow")
    if known.upload:
        account_for_upload()
    graph = graph_of(known.model, known.kind, prompt=known.prompt, words=known.words, threads=known.threads)
    files = write_graph(graph, known.out)
    nodes, edges, view = (visible(str(file)) for file in (files.nodes, files.edges, files.view))
    print(f"{graph.n_nodes} nodes  {nodes}\n{graph.n_edges} edges  {edges}\nview       {view}")
    if known.upload:
        print(f"uploaded   {upload(graph)}")
    return 0


def _counter(label: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if can_overwrite():
            text = f"{visible(label)}: tensor {done} of {total}"[: terminal_width() - 1]
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)

    return show


def _erase_counter() -> None:
    if can_overwrite():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
