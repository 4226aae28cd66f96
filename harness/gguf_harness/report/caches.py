"""KV caches of a run: what each pair of types takes and whether it keeps what the file predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import visible
from gguf_harness.gguf.header import TENSOR_TYPES

if TYPE_CHECKING:
    from gguf_harness.report.data import RunView

__all__ = ["CacheOfRun", "cache_share", "caches_of", "smallest_cache"]

_SUITE: Final = "kv"
_COSTS: Final = "kv_kld"
_WORST_FIRST: Final = ("fail", "incomplete", "inconclusive", "pass")
_BITS: Final = {kind.name.lower(): 8 * kind.block_bytes / kind.block for kind in TENSOR_TYPES.values()}
_FULL: Final = ("f16", "f16")


@dataclass(frozen=True, slots=True)
class CacheOfRun:
    """A file that was run with other types of its KV cache.

    Attributes:
        subject: its name.
        file: name of the file.
        k: type of K.
        v: type of V.
        rotated: whether llama.cpp was left to rotate what is quantized.
        verdict: the worst of the suite's gates on it: "fail", "incomplete" (one that was planned was not decided),
            "inconclusive" or "pass"; "" if none was planned or decided.
    """

    subject: str
    file: str
    k: str
    v: str
    rotated: bool
    verdict: str

    @property
    def types(self) -> str:
        """As they are written on the command line."""
        return f"{self.k}/{self.v}{'' if self.rotated else '+norot'}"


def caches_of(view: RunView) -> list[CacheOfRun]:
    """Subjects of suites/kv, in the order of the run."""
    found = []
    for model in view.models:
        if not model.facts or view.row(model.name, _COSTS) is None:
            continue
        context: Mapping[str, Any] = model.facts.get("context") or {}
        k, v = str(context.get("cache_type_k")), str(context.get("cache_type_v"))
        rotated = bool(context.get("rotate_kv", True))
        found.append(
            CacheOfRun(model.name, model.facts.get("file", model.name), k, v, rotated, _verdict(view, model.name))
        )
    return found


def _verdict(view: RunView, subject: str) -> str:
    """Over the gates of suites/kv: those of other suites are about the file that the cache was made with."""
    gates, planned = (
        [gate for gate in view.run.get(table, []) if (gate["model"], gate.get("suite")) == (subject, _SUITE)]
        for table in ("gates", "planned")
    )
    said = {gate["verdict"] for gate in gates}
    if not {gate["metric"] for gate in planned} <= {gate["metric"] for gate in gates}:
        said.add("incomplete")
    return next((verdict for verdict in _WORST_FIRST if verdict in said), "")


def cache_share(k: str, v: str) -> float | None:
    """Size of a cache over that of f16/f16, where K and V are as wide as each other; None for an unknown type."""
    if not {k, v} <= _BITS.keys():
        return None
    return (_BITS[k] + _BITS[v]) / sum(_BITS[cache_type] for cache_type in _FULL)


def smallest_cache(view: RunView) -> str | None:
    """The smallest cache that passes on each file that was run with it, as a sentence.

    None if nothing was gated, or nothing decided.
    """
    caches = [cache for cache in caches_of(view) if cache.verdict]
    incomplete = sum(cache.verdict == "incomplete" for cache in caches)
    if incomplete == len(caches):
        return None
    more = f"; {incomplete} of {len(caches)} incomplete" if incomplete else ""
    by_types: dict[str, list[CacheOfRun]] = {}
    for cache in caches:
        by_types.setdefault(cache.types, []).append(cache)
    passing = {
        types: share
        for types, alike in by_types.items()
        if all(cache.verdict == "pass" for cache in alike)
        and (share := cache_share(alike[0].k, alike[0].v)) is not None
    }
    if not passing:
        return f"No KV cache passes on every file that was run with it ({len(by_types)} tested{more})"
    best = min(passing, key=lambda types: (passing[types], types))
    files = by_types[best]
    count = "both" if len(files) == 2 else f"all {len(files)}"
    where = visible(files[0].file) if len(files) == 1 else f"{count} files"
    return f"Smallest KV cache that passes on {where}: {best}, {100 * passing[best]:.0f} % of f16/f16{more}"
