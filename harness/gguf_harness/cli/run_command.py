"""`gguf-harness run`: suites by name, with pytest's options and ours."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from gguf_harness.cli.output import terminal_width
from gguf_harness.inputs.command_line import TYPED, option_attributes, short_name, unknown_options

__all__ = ["OPTIONS_OF_SUITES", "run_suites"]

_USAGE_ERROR: Final = 4
"""pytest's exit code for mistakes on the command line."""
_ALL: Final = "all"
_HELP: Final = frozenset({"-h", "--help"})

OPTIONS_OF_SUITES: Final = {
    "--gguf-pp": ("quant", "kv"),
    "--gguf-tg": ("quant", "kv"),
    "--gguf-repetitions": ("quant", "kv"),
    "--gguf-llama-server": ("quant",),
    "--gguf-gen-tokens": ("quant", "kv", "lora"),
    "--gguf-kv-reference": ("kv",),
    "--gguf-depths": ("kv",),
    "--gguf-haystacks": ("kv",),
    "--gguf-lora": ("lora",),
    "--gguf-lora-corpus": ("lora",),
    "--gguf-words": ("embeddings",),
    "--gguf-map": ("embeddings",),
    "--gguf-head-windows": ("heads",),
    "--gguf-head-limit": ("heads",),
    "--gguf-heads": ("attention",),
    "--gguf-layers": ("layers", "attention", "kv"),
    "--gguf-sensitivity": ("layers",),
}
"""Options that only these suites read; all others are for every suite."""

_OF_PYTEST: Final = """\
options of pytest that help most:
  -k 'file or text'     only tests with these in their names
  -x                    stop at the first failure
  -v, -q                say more, say less
  -n N                  in N processes, with pytest-xdist
  --collect-only -q     list the tests, and measure nothing
All others: pytest --help
"""


def run_suites(words: Sequence[str]) -> int:
    """Become pytest on the named suites; list them, or explain their options, if that is asked for.

    Args:
        words: names of suites or `all`, then options for pytest.

    Returns:
        An exit code, if there is nothing to run: 4 for a mistake.
    """
    known = _suites()
    given, options = _split(words, [*known, _ALL, "list"])
    if given == ["list"]:
        print("\n".join(known))
        return 0
    chosen = list(known) if _ALL in given else list(dict.fromkeys(given))
    problem = next((_unknown_suite(name, known) for name in chosen if name not in known), None)
    if problem is None and _HELP.intersection(options):
        print(_help(chosen, known), end="")
        return 0
    if problem is None and not chosen:
        problem = f"Which suite? {_names(known)}."
    problem = problem or unknown_options(options, also_short=True)
    if problem is not None:
        print(f"gguf-harness: {problem}", file=sys.stderr)
        return _USAGE_ERROR
    return _become_pytest([str(known[name]) for name in chosen], options, typed=words)


def _suites() -> dict[str, Path]:
    folder = Path(str(resources.files("gguf_harness.suites")))
    return {path.name: path for path in sorted(folder.iterdir()) if (path / "__init__.py").is_file()}


def _split(words: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The suites, which come first, and the rest, in which a name counts if no option could want it as its value."""
    count = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    suites, rest = list(words[:count]), list(words[count:])
    options: list[str] = []
    for word in rest:
        wanted = bool(options) and options[-1].startswith("-") and "=" not in options[-1]
        if word in names and not (wanted and suites):
            suites.append(word)
        else:
            options.append(word)
    return suites, options


def _unknown_suite(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [*known, _ALL], n=1)
    advice = f"Did you mean {close[0]!r}? " if close else ""
    return f"There is no suite {name!r}.\n  {advice}{_names(known)}."


def _names(known: Iterable[str]) -> str:
    return f"Suites: {', '.join(known)}; `{_ALL}` runs every one"


def _help(chosen: Sequence[str], known: dict[str, Path]) -> str:
    """Usage, what the suites ask, and the options that they read."""
    parser = argparse.ArgumentParser(
        prog=f"gguf-harness run {' '.join(chosen)}".rstrip(),
        usage=f"gguf-harness run {' '.join(chosen) or 'SUITE [SUITE...]'} [OPTIONS]",
        description="\n".join(_introduced(name) for name in chosen or known),
        epilog=_OF_PYTEST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    group = parser.add_argument_group("options of gguf-harness")
    for name, attributes in option_attributes().items():
        if not chosen or set(OPTIONS_OF_SUITES.get(name, chosen)).intersection(chosen):
            group.add_argument(*dict.fromkeys((short_name(name), name)), **attributes)
    return parser.format_help()


def _introduced(name: str) -> str:
    """A suite, and the first line of its docstring: what it asks."""
    told = importlib.import_module(f"gguf_harness.suites.{name}").__doc__ or ""
    question = told.strip().partition("\n")[0]
    return textwrap.fill(question, terminal_width(), initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)


def _become_pytest(paths: list[str], options: list[str], *, typed: Sequence[str]) -> int:
    # The user's folder is the root: results belong there, not next to the installed suites.
    configuration = resources.files("gguf_harness.fixtures") / "data" / "pytest.ini"
    root = ["--rootdir", str(Path.cwd()), "-c", str(configuration)]
    arguments = ["pytest", *paths, *root, "-p", "gguf_harness.pytest_plugin.plugin", *options]
    # What the run records as its command: pytest gets a longer one.
    os.environ[TYPED] = shlex.join(["gguf-harness", "run", *typed])
    # Replace this process: pytest must see our modules before they are imported, and receive its signals directly.
    os.execv(sys.executable, [sys.executable, "-P", "-m", *arguments])  # noqa: S606
