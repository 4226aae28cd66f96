"""Subjects of a run by what they are about: files, types of the KV cache, adapters. Each group has its own table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from gguf_harness.metrics.registry import Metric
from gguf_harness.report.data import Candidate, RunView

__all__ = ["SECTION_OF_SUITE", "Group", "groups_of"]

SECTION_OF_SUITE: Final = {"quant": "decide", "kv": "cache", "lora": "adapters"}
"""Sections of the report by suite, where they are not called the same."""

_WORDS: Final = {
    "decide": ("model", "Models"),
    "cache": ("KV cache", "KV caches"),
    "adapters": ("adapter", "Adapters"),
}
_VARIANTS: Final = {"kv=": "kv", "lora=": "lora"}
"""Suites whose subjects are compared with the same file run plainly, by what their variant begins with."""


@dataclass(frozen=True, slots=True)
class Group:
    """Subjects that can be compared with each other, of which one table speaks.

    Attributes:
        section: of the report.
        models: the subjects, in the order of the run.
    """

    section: str
    models: tuple[Candidate, ...]

    @property
    def head(self) -> str:
        """What a subject is called at the head of a column."""
        return _WORDS[self.section][0]

    @property
    def title(self) -> str:
        """What the subjects are together."""
        return _WORDS[self.section][1]

    def columns(self, view: RunView, table: str) -> list[Metric]:
        """The metrics of a table that any of the group's subjects has."""
        return [
            metric for metric in view.metrics.values() if table in metric.tables and self.measured(view, metric.name)
        ]

    def measured(self, view: RunView, metric: str) -> bool:
        """Whether any of the group's subjects has a value of a metric, as a whole."""
        return any(view.row(model.name, metric) for model in self.models)


def groups_of(view: RunView) -> list[Group]:
    """The groups of a run: files first, then what only suites/kv and suites/lora measured.

    One group, where files were not measured by other suites: then nothing stands apart from them.
    """
    suites: dict[str, set[str]] = {}
    for table in ("estimates", "gates", "planned"):
        for row in view.run.get(table) or []:
            suites.setdefault(str(row["model"]), set()).add(str(row.get("suite")))
    sections: dict[str, list[Candidate]] = {section: [] for section in _WORDS}
    for model in view.models:
        sections[_section(model, suites.get(model.name, set()))].append(model)
    of_files = (suites.get(model.name, set()) for model in sections["decide"] if not model.is_reference)
    if not any(_others(found) for found in of_files):
        return [Group("decide", tuple(view.models))] if view.models else []
    return [Group(section, tuple(models)) for section, models in sections.items() if models]


def _section(model: Candidate, suites: set[str]) -> str:
    variant = str(model.facts.get("variant") or "")
    suite = next((suite for start, suite in _VARIANTS.items() if variant.startswith(start)), None)
    return "decide" if suite is None or not suites <= {suite} else SECTION_OF_SUITE[suite]


def _others(suites: Iterable[Any]) -> bool:
    return bool(set(suites) - set(_VARIANTS.values()))
