"""Registry entries: everything that tables, gates, baselines and early decisions need to know about a metric."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

from gguf_harness.errors import GateError, visible

__all__ = [
    "ESTIMATED",
    "Better",
    "Column",
    "Estimated",
    "GatedBy",
    "Metric",
    "Part",
    "Table",
    "WindowMean",
]

Better = Literal["higher", "lower", "neutral"]
Part = Literal["layer", "head", "tensors", "position", "scale", "prompt"]
Table = Literal["brief", "html", "markdown", "comparison"]
Estimated = Literal[
    "corpus", "cache", "floor", "prompts", "repeats", "words", "vocabulary", "head windows", "group windows", "timing",
    "requests", "memory", "file", "weights", "once", "positions", "needles", "adapter windows", "adapter file",
]  # fmt: skip

ESTIMATED: Final[Mapping[Estimated, str]] = {
    "corpus": "Over the scored tokens of the corpus's windows; the standard error is clustered by window (CR1).",
    "cache": "Over the scored tokens of the corpus's windows, in pairs with the same file run otherwise; the standard "
    "error is clustered by window (CR1).",
    "floor": "Over the scored tokens of the corpus's windows, of the reference decoded once more in other batches.",
    "prompts": "Over the prompts, or their tokens; the standard error is clustered by prompt.",
    "repeats": "Over a repeated sequence of random tokens.",
    "words": "Over groups of words of the word list; the standard error is clustered by group.",
    "vocabulary": "Over a fixed random sample of the vocabulary's tokens.",
    "head windows": "Over a few windows of the corpus (--gguf-head-windows), with heads changed.",
    "group windows": "Over four windows of the corpus, with groups of tensors exchanged between two files.",
    "timing": "Mean of repetitions after a warm-up; the standard error is over repetitions.",
    "requests": "Over requests of all clients, of repetitions after a warm-up.",
    "memory": "Read once, in a fresh process; it has no standard error.",
    "file": "A fact of the file; it has no standard error.",
    "weights": "Over all weights of the tensors that both files have; it has no standard error.",
    "adapter windows": "Over the scored tokens of eight windows at most, of a text that the adapter is for"
    " (--gguf-lora-corpus) or of the corpus; the standard error is clustered by window (CR1).",
    "adapter file": "From the factors in the adapter's file; it has no standard error.",
    "once": "One value for the whole; it has no standard error.",
    "positions": "Over all positions of the corpus's windows but the first; the standard error is clustered by window.",
    "needles": "Over facts that were hidden in texts of the corpus; the standard error is clustered by fact.",
}
"""Ways of estimating metrics, a sentence each."""

_TIMED: Final = frozenset({"tokens/s", "s"})
_FACTS: Final[frozenset[Estimated]] = frozenset({"file", "weights", "adapter file"})
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{1,63}")
_MOST_CHARACTERS: Final = 1000
_TEXTS: Final = ("title", "unit", "meaning", "definition", "source")
_UNIT_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "fraction": (0.0, 1.0),
    "0-100": (0.0, 100.0),
    **dict.fromkeys(("bytes", "tokens/s", "s", "tokens", "bits"), (0.0, math.inf)),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the terminal's table, which is narrow.

    Attributes:
        head: its heading; the metric's title if empty.
        rank: if columns do not fit, those of highest rank are dropped first.
        error: whether the standard error is shown.
        decimals: of a value without its error; None for four significant digits.
    """

    head: str = ""
    rank: int = 100
    error: bool = True
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class GatedBy:
    """The test that checks a metric against its limit.

    Attributes:
        suite: name of the folder of the test's file.
        test: name of the test function.
        any_model: whether it also runs for the reference, which is checked against absolute limits if it is the only
            model.
        relative: whether a limit may be relative to the reference's value.
        of: what is checked, as the test's fixture is called: candidates; files with other types of the KV cache; or
            with adapters, all of them or those that are no reference.
    """

    suite: str
    test: str
    any_model: bool = False
    relative: bool = False
    of: Literal["candidate", "cached", "adapted", "adapted_candidate"] = "candidate"


@dataclass(frozen=True, slots=True)
class WindowMean:
    """How a limit on the metric becomes one on a mean over windows, which can be decided during a pass.

    Attributes:
        of: the samples: `kld` and `kld_reverse` of a token, its `nll`, that less the reference's, whether the most
            likely token is the reference's, or the change of the correct token's probability.
        by: how the metric comes from the mean: it is the mean; exp of it; the root of the mean square; or, for a
            quantile, the limit that a share of the samples is below.
        share: of a quantile.
    """

    of: Literal["kld", "kld_reverse", "nll", "nll_difference", "agreement", "change"]
    by: Literal["mean", "exp", "rms", "quantile"] = "mean"
    share: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Everything known about a metric. Tables show metrics in the order of the registry.

    Attributes:
        name: its name in estimates, gates and files.
        title: a short readable name, for table headings and axis titles.
        unit: of the value ("nats", "tokens/s", "bytes", "fraction", "" for a pure number).
        better: the good direction; "neutral" if neither is.
        meaning: one sentence for the report.
        definition: the formula, in words or signs.
        source: the paper or the tool that defines it.
        estimated: a key of `ESTIMATED`.
        values: the least and the largest value that it can have; infinite where nothing is known.
        parts: what it is recorded for besides whole models.
        decimals: decimal places of an exact value, in every table; None to derive them from the error.
        column: its column in the terminal's table of models; None for none.
        tables: other tables that show it: of models in the report (`brief`: without asking for more columns) and in
            markdown, and of two runs.
        gate: the test that decides on it; None if no limit can be planned.
        ratio: the metric of its ratio to the reference, measured in pairs, by which a relative limit is decided.
        early: how it is decided before the end of a pass; None if it needs all windows.
        window_means: the smallest and largest mean of a window, if a baseline compares it by window.
        compared: whether a baseline compares it at all.
        loss: rank among the losses by which models are weighed against their size, from 1; 0 if it is not one.
    """

    name: str
    title: str
    unit: str = ""
    better: Better = "neutral"
    meaning: str
    definition: str
    source: str
    estimated: Estimated
    values: tuple[float, float] = (-math.inf, math.inf)
    parts: tuple[Part, ...] = ()
    decimals: int | None = None
    column: Column | None = None
    tables: frozenset[Table] = field(default_factory=frozenset)
    gate: GatedBy | None = None
    ratio: str = ""
    early: WindowMean | None = None
    window_means: tuple[float, float] | None = None
    compared: bool = True
    loss: int = 0

    def __post_init__(self) -> None:
        if self.values == (-math.inf, math.inf):
            object.__setattr__(self, "values", _UNIT_RANGES.get(self.unit, self.values))

    @property
    def of_corpus(self) -> bool:
        """Whether it comes from the pass over the corpus: then a pass must not stop before its gate is decided."""
        return self.estimated == "corpus"

    @property
    def is_time(self) -> bool:
        """Whether it is a time or a speed, not a ratio of two.

        These are not compared between runs: what else a machine did differs, which the repetitions of one run do not
        show.
        """
        return self.unit in _TIMED

    @property
    def is_fact(self) -> bool:
        """Whether it is certain: a difference of two values is one, without any error."""
        return self.estimated in _FACTS

    def check(self) -> None:
        """Check the entry of a plugin.

        Raises:
            GateError: the first thing that is wrong, with its value and what was expected.
        """
        name: object = self.name  # from a plugin, it may be anything
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise GateError(f"name is {_shown(self.name)}, expected 2 to 64 letters a-z, digits and _.")
        for field_name in _TEXTS:
            self._check_text(field_name, getattr(self, field_name), needed=field_name != "unit")
        for field_name, kind in (("better", Better), ("estimated", Estimated)):
            if getattr(self, field_name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise GateError(
                    f"{field_name} of {self.name} is {_shown(getattr(self, field_name))}, expected one of {known}."
                )
        if not _is_range(self.values):
            raise GateError(f"values of {self.name} is {_shown(self.values)}, expected (least, largest).")
        for field_name, allowed in (("parts", get_args(Part)), ("tables", get_args(Table))):
            value = getattr(self, field_name)
            if not isinstance(value, tuple | frozenset | set) or not set(value) <= set(allowed):
                raise GateError(f"{field_name} of {self.name} is {_shown(value)}, expected some of {allowed}.")
        self._check_records()

    def _check_text(self, what: str, text: object, *, needed: bool) -> None:
        """Part of `check`: a line that any table can show."""
        if not isinstance(text, str) or (needed and not text.strip()):
            raise GateError(f"{what} of {self.name} is {_shown(text)}, expected a text.")
        if not text.isprintable():
            raise GateError(f"{what} of {self.name} is {_shown(text)}, expected a line of printable characters.")
        if len(text) > _MOST_CHARACTERS:
            raise GateError(f"{what} of {self.name} has {len(text)} characters, expected a sentence.")

    def _check_records(self) -> None:
        """Part of `check`: the nested records."""
        if not isinstance(self.column, Column | None):
            raise GateError(f"column of {self.name} is {_shown(self.column)}, expected a Column or None.")
        if not isinstance(self.gate, GatedBy | None):
            raise GateError(f"gate of {self.name} is {_shown(self.gate)}, expected a GatedBy or None.")
        if self.gate is not None and self.better == "neutral":
            raise GateError(f"{self.name} has a gate, but neither direction is better: better is 'neutral'.")
        if self.gate is not None:
            for what in ("suite", "test"):
                self._check_text(f"{what} of the gate", getattr(self.gate, what), needed=True)
        if self.column is not None:
            self._check_text("head of its column", self.column.head, needed=False)
        numbers = [("decimals", self.decimals)]
        if self.column is not None:
            numbers += [("decimals of its column", self.column.decimals), ("rank of its column", self.column.rank)]
        for what, number in numbers:
            if number is not None and (type(number) is not int or not 0 <= number <= _MOST_CHARACTERS):
                raise GateError(f"{what} of {self.name} is {_shown(number)}, expected a whole number from 0.")
        if self.early is not None or self.window_means is not None or self.ratio or self.loss:
            raise GateError(
                f"{self.name} sets early, window_means, ratio or loss, which need the arrays of the harness's own pass."
            )

    def to_json(self) -> dict[str, Any]:
        """The entry of a plugin metric as stored in a run, as JSON types."""
        entry = {name: getattr(self, name) for name in ("name", *_TEXTS, "better", "estimated", "decimals", "compared")}
        return entry | {
            "values": [None if math.isinf(value) else value for value in self.values],
            "parts": list(self.parts),
            "tables": sorted(self.tables),
            "column": None if self.column is None else asdict(self.column),
            "gate": None if self.gate is None else asdict(self.gate),
        }

    @classmethod
    def from_json(cls, entry: object) -> Metric:
        """Inverse of `to_json`, for a file that may come from anywhere.

        Raises:
            GateError: it is not a valid entry; the message says why.
        """
        if not isinstance(entry, dict):
            raise GateError(f"{_shown(entry)} is not an entry of a metric.")
        try:
            least, most = entry["values"]
            column, gate = entry["column"], entry["gate"]
            metric = cls(
                **{name: entry[name] for name in ("name", *_TEXTS, "better", "estimated", "decimals", "compared")},
                values=(-math.inf if least is None else least, math.inf if most is None else most),
                parts=tuple(entry["parts"]),
                tables=frozenset(entry["tables"]),
                column=None if column is None else Column(**column),
                gate=None if gate is None else GatedBy(**gate),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise GateError(f"{_shown(entry.get('name'))} is not an entry of a metric: {_shown(error)}.") from None
        metric.check()
        return metric


def _is_range(values: object) -> bool:
    if not isinstance(values, tuple) or len(values) != 2:
        return False
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and values[0] < values[1]


def _shown(value: object) -> str:
    return visible(repr(value)[:100] if not isinstance(value, Exception) else str(value)[:100])
