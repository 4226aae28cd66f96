"""`gguf-harness cache`: show the size of the cache, and clear it."""

from __future__ import annotations

import argparse
import pkgutil
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gguf_harness import measure
from gguf_harness.errors import OptionError, StoreError
from gguf_harness.inputs.command_line import DEFAULT_CACHE_LIMIT
from gguf_harness.report.numbers import format_bytes
from gguf_harness.store.cache_space import (
    SCRATCH,
    Item,
    check_cache,
    kinds,
    list_items,
    remove_item,
    scratch_bytes,
    sweep_locks,
    sweep_scratch,
)
from gguf_harness.store.paths import path_argument

__all__ = ["add_cache_command"]

_ALWAYS: Final = ("durations", "engine", "hashes", "logs", "models")
_ACTIONS: Final = ("show", "clear")
_SECONDS: Final = {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def add_cache_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Register the command."""
    cache = commands.add_parser("cache", help="show the size of the cache of measurements, or clear it")
    cache.add_argument("action", nargs="?", choices=_ACTIONS, default=None, help="(default: show)")
    cache.add_argument("kinds", nargs="*", metavar="KIND", help=f"what to clear (default: all): {', '.join(_kinds())}")
    cache.add_argument("--older-than", type=_age, default=None, metavar="AGE",
        help="clear only what was not used for this long, such as 12h, 30d or 8w")  # fmt: skip
    cache.add_argument("--cache", type=path_argument, default=None, metavar="DIR",
        help="folder of the cache (default: cache in the results folder)")  # fmt: skip
    cache.set_defaults(function=_cache)
    return cache


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 12h, 30d or 8w")
    return float(match[1]) * _SECONDS[match[2]]


def _kinds() -> list[str]:
    """Kinds of content of a cache: a folder for each kind of measurement, and those of every session."""
    capabilities = [module.name for module in pkgutil.iter_modules(measure.__path__) if module.ispkg]
    return sorted({*capabilities, *_ALWAYS})


def _cache(known: argparse.Namespace, rest: list[str]) -> int:
    # argparse cannot handle positional arguments after an option: `cache --cache DIR clear passes`.
    action, *wanted = [*filter(None, (known.action, *known.kinds, *rest))] or ["show"]
    if action not in _ACTIONS:
        raise OptionError(f"There is no action {action!r}.", f"Expected {' or '.join(_ACTIONS)}.")
    unknown = sorted(set(wanted) - set(_kinds()))
    if unknown:
        raise OptionError(f"There is no kind {unknown[0]!r} in a cache.", f"Kinds: {', '.join(_kinds())}.")
    if action == "show" and (wanted or known.older_than is not None):
        raise OptionError(
            "Kinds and --older-than say what to clear.", "Give `clear` as well: gguf-harness cache clear."
        )
    root: Path = known.cache or known.results / "cache"
    try:
        problem = check_cache(root)
        if problem is not None:
            raise StoreError(
                f"{root} is not a cache of gguf-harness: {problem}.", "Give its folder with --cache, or --results."
            )
        print(_clear(root, wanted, known.older_than) if action == "clear" else _show(root), end="")
    except OSError as error:
        raise StoreError(f"{error.filename or root} cannot be read: {error.strerror}.") from error
    return 0


def _show(root: Path) -> str:
    items, scratch = list_items(root), scratch_bytes(root)
    rows = [("kind", "entries", "size", "oldest use", "newest use")]
    rows += [_row(kind, [item for item in items if item.kind == kind]) for kind in sorted({*kinds(root), *_kinds()})]
    if scratch:
        rows.append((SCRATCH, "", format_bytes(scratch), "", ""))
    rows.append(_row("total", items, scratch))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
        )
        for row in rows
    ]
    limit = format_bytes(DEFAULT_CACHE_LIMIT)
    notes = [
        f"limit: {limit} of a session, unless --gguf-cache-limit says otherwise; the least recently used "
        f"entries are removed first"
    ]
    return "\n".join(line.rstrip() for line in (f"cache: {root}", "", *lines, "", *notes)) + "\n"


def _row(name: str, items: Sequence[Item], more: int = 0) -> tuple[str, str, str, str, str]:
    uses = [time.strftime("%Y-%m-%d %H:%M", time.localtime(item.last_used)) for item in items]
    size = sum(item.size for item in items) + more
    return name, str(len(items)), format_bytes(size), min(uses, default="-"), max(uses, default="-")


def _clear(root: Path, wanted: Sequence[str], older_than: float | None) -> str:
    latest = time.time() - (older_than or 0.0)
    items = [
        item for item in list_items(root)
        if item.kind in (wanted or kinds(root)) and (older_than is None or item.last_used < latest)
    ]  # fmt: skip
    freed: dict[str, list[int]] = {}
    kept = 0
    for item in items:
        size = remove_item(root, item)
        if size is None:
            kept += 1
        else:
            freed.setdefault(item.kind, []).append(size)
    if not wanted and older_than is None and (left := sweep_scratch(root)):
        freed[SCRATCH] = [left]
    sweep_locks(root)
    total = sum(sum(sizes) for sizes in freed.values())
    count = sum(map(len, freed.values()))
    lines = [f"{kind}: {len(sizes)} removed, {format_bytes(sum(sizes))}" for kind, sizes in sorted(freed.items())]
    lines.append(
        f"{count} removed from {root}, {format_bytes(total)} freed"
        if count
        else f"nothing {'was removed from' if kept else 'to remove in'} {root}"
    )
    if kept:
        lines.append(f"{kept} kept: in use, or not removable")
    return "\n".join(lines) + "\n"
