"""Compare two runs: what changed, and whether the changes exceed the errors."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import encodable
from gguf_harness.inputs.pairing import Identity, Partner, identities_of_run, pair_up, some_names
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.registry import Metric, metrics_of_run
from gguf_harness.report.data import RunView, describe_windows, visible
from gguf_harness.report.numbers import format_metric

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Comparison", "Difference", "compare_runs", "render_comparison"]

_BEYOND_ERROR: Final = 2.0
"""Of z: a smaller difference is no difference that the runs could show."""
_MIN_WIDTH: Final = 60
_MEASURED_WIDTH: Final = 400

_UNTOLD: Final = frozenset({
    "models", "reference", "quants", "corpus", "ctx", "chunks", "windows", "prompts", "results", "cache",
    "logprobs_limit", "cache_limit", "timeout_s", "gates", "inconclusive", "holm", "baseline", "baseline_map",
    "save_baseline", "fresh", "map", "shard", "ray", "ray_runtime_env", "budget_s",
})  # fmt: skip
"""Settings that are not told: what they mean for numbers is told as files, texts and windows, or they mean nothing for
them. Every other setting is, a new one too."""


def _text(key: str) -> Callable[[Mapping[str, Any]], str | None]:
    """A text of a run with the beginning of its hash: `pydoc (c140e36dee0a)`."""

    def told(run: Mapping[str, Any]) -> str:
        text = run.get(key)
        return f"{text['name']} ({text['sha256'][:12]})" if text else ""

    return told


def _fact(table: str, key: str) -> Callable[[Mapping[str, Any]], str | None]:
    """A fact of a run; None if the run does not have it."""

    def told(run: Mapping[str, Any]) -> str | None:
        value = (run.get(table) or {}).get(key)
        return None if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return told


_CIRCUMSTANCES: Final[dict[str, Callable[[Mapping[str, Any]], str | None]]] = {
    "corpus": _text("corpus"),
    "prompts": _text("prompts"),
    "engine": _fact("engine", "llama_cpp"),
    "instruction sets": _fact("engine", "system_info"),
    "machine": _fact("machine", "cpu"),
    "number of cores": _fact("machine", "cores"),
    "GPUs": _fact("machine", "gpus"),
    "gguf-harness": lambda run: run.get("harness"),
}
"""What numbers depend on besides the models, by the name that it is told under."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of a model in both runs.

    Attributes:
        z: difference divided by the root of the sum of squared errors, taking the runs as independent; None if an error
            is missing, and for timings. On the same corpus this is conservative: paired errors would be smaller.
        direction: "better", "worse", or "" for no change beyond the error, a neutral metric or a timing: machines
            differ between runs, which the repetitions of one run do not show. Ratios to the reference can be compared.
        verdict: `direction`, or why there is none: "same", "within error", "changed" (neither direction is better, or
            the error is not known), or "not compared" (a timing).
        prompt, layer, head, part: the place in the model; None for the whole.
        partner: the model of the old run.
    """

    model: str
    metric: str
    old: float
    new: float
    z: float | None
    direction: str
    prompt: str | None = None
    layer: int | None = None
    head: int | None = None
    part: str | None = None
    partner: str = ""
    verdict: str = ""

    @property
    def where(self) -> str:
        """`layer 2, head 7`, and the prompt."""
        return visible(str(Place(self.layer, self.head, self.part, self.prompt)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that differs between two runs.

    Attributes:
        problem: why nothing was compared; "" if something was.
        metrics: those of both runs, by name.
    """

    old: str
    new: str
    changes: tuple[str, ...]
    differences: tuple[Difference, ...]
    problem: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return {
            "old": self.old,
            "new": self.new,
            "changes": list(self.changes),
            "differences": [asdict(difference) for difference in self.differences],
            "problem": self.problem,
        }


def compare_runs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Compare two runs, model by model, and by metric and place.

    References are paired with each other, candidates as by `gguf_harness.inputs.pairing.pair_up`.

    Args:
        old: content of a run.json.
        new: content of another.
    """
    partners = _partners(old, new)
    rows_old, rows_new = _rows(old), _rows(new)
    metrics = metrics_of_run(old) | metrics_of_run(new)
    differences = [
        _difference(rows_old[earlier, *key], row, metrics.get(row["metric"]))
        for (model, *key), row in rows_new.items()
        if model in partners and (earlier := partners[model].earlier, *key) in rows_old
    ]
    changes = (*_paired(partners), *_changes(old, new, partners))
    problem = "" if differences else _problem(old, new)
    return Comparison(old["id"], new["id"], changes, tuple(differences), problem, metrics)


def _partners(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Partner]:
    """The partner of each model of the new run."""
    earlier, now = identities_of_run(old), identities_of_run(new)
    # Runs without descriptions of models still have names.
    for run, subjects in ((old, earlier), (new, now)):
        known = {subject.name for subject in subjects}
        others = dict.fromkeys(row["model"] for row in run.get("estimates", []) if row["model"] not in known)
        subjects += [Identity(name, None, None) for name in others]
    partners = pair_up(earlier, now)
    names = {subject.name for subject in earlier}
    before = next((subject.name for subject in earlier if subject.reference), None)
    for subject in now:
        if subject.reference and (subject.name in names or before is not None):
            same = subject.name in names
            reason = "same name" if same else "both are the reference"
            partners[subject.name] = Partner(subject.name if same else before, "name" if same else "told", reason)
    return partners


def _paired(partners: Mapping[str, Partner]) -> list[str]:
    """A line for each pair with different names."""
    return [
        f"{model} is compared with {partner.earlier}: {partner.reason}"
        for model, partner in partners.items()
        if partner.earlier not in {None, model}
    ]


def _problem(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    models = [some_names(dict.fromkeys(row["model"] for row in run.get("estimates", []))) for run in (old, new)]
    return (
        "Nothing was compared: the runs have no model, or no metric of a model, in common."
        f" Models of the old run: {models[0]}. Models of the new run: {models[1]}."
    )


def render_comparison(comparison: Comparison, *, width: int, color: bool, encoding: str | None = None) -> str:
    """What differs between the circumstances of the runs, a table of the main metrics, and what it amounts to.

    Args:
        comparison: what `compare_runs` returned.
        width: of the terminal; the columns of z and of the relative change are left out where they do not fit.
        color: whether escape sequences are wanted.
        encoding: of the terminal; characters that it lacks are written out.
    """
    from rich.console import Console

    width = max(_MIN_WIDTH, width)
    metrics = comparison.metrics
    shown = [
        (difference, metrics[difference.metric])
        for difference in comparison.differences
        if difference.metric in metrics and "comparison" in metrics[difference.metric].tables
    ]
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, color_system="standard" if color else None)
    if shown:
        optional = ["change", "z"]
        while optional and _needed_width(_drawn(shown, optional)) > width:
            optional.pop()
        is_narrow = _needed_width(_drawn(shown, optional)) > width
        console.print(_drawn(shown, optional, is_narrow=is_narrow))
    circumstances = comparison.changes or ("the runs agree in files, texts, windows, settings, engine and machine",)
    blocks = [
        _wrapped([f"{comparison.old} -> {comparison.new}", *circumstances], width),
        file.getvalue().rstrip(),
        _wrapped([comparison.problem] if comparison.problem else _conclusions(comparison, shown), width),
    ]
    return encodable("\n\n".join(block for block in blocks if block) + "\n", encoding)


def _drawn(shown: list[tuple[Difference, Metric]], optional: list[str], *, is_narrow: bool = False) -> Table:
    """The table; if it is narrow, names of models stand above their metrics."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    # Most runs have these metrics only for whole models.
    placed = ["where"] if any(difference.where for difference, _ in shown) else []
    for title in ("metric",) if is_narrow else ("model", "metric"):
        table.add_column(title, overflow="fold")
    for title in placed:
        table.add_column(title)
    for title in ("old", "new", *optional):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    styles, above = {"better": "green", "worse": "red"}, Text()
    for difference, metric in shown:
        is_comparable = difference.old and not metric.is_time
        cells: dict[str, Text | str] = {
            "where": Text(difference.where),
            "change": f"{difference.new / difference.old - 1:+.2%}" if is_comparable else "-",
            "z": "-" if difference.z is None else f"{difference.z:+.1f}",
        }
        model = Text(visible(difference.model))
        if is_narrow and model != above:
            table.add_row(model)
        above = model
        table.add_row(
            *([Text(f"  {metric.title}")] if is_narrow else [model, Text(metric.title)]),
            *(cells[title] for title in placed),
            _number(metric, difference.old),
            _number(metric, difference.new),
            *(cells[title] for title in optional),
            Text(difference.verdict, style=styles.get(difference.verdict, "")),
        )
    return table


def _number(metric: Metric, value: float) -> str:
    return format_metric(replace(metric, decimals=None), value, None)


def _needed_width(table: Table) -> int:
    from rich.console import Console

    return Console(file=io.StringIO(), width=_MEASURED_WIDTH).measure(table).maximum


def _conclusions(comparison: Comparison, shown: list[tuple[Difference, Metric]]) -> list[str]:
    """How many numbers differ beyond their errors, and what the words in the table mean."""
    compared = [difference for difference in comparison.differences if difference.verdict != "not compared"]
    counts = {
        name: sum(difference.verdict == name for difference in compared) for name in ("better", "worse", "changed")
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    total = f"{len(compared)} numbers that both runs have"
    lines = [f"{told}, of {total}" if told else f"no difference beyond the error in {total}"]
    if counts["changed"]:
        lines.append("changed: neither direction is better, or the error of the number is not known")
    if any(difference.verdict == "within error" for difference in compared):
        lines.append(
            f"within error: no difference beyond the error. It is less than {_BEYOND_ERROR:g} times its standard error"
            " (z), taking the runs as independent"
        )
    if any(metric.is_time for _, metric in shown):
        lines.append(
            "times and speeds are not compared, since they were measured at different times; "
            "ratios to the reference are"
        )
    return lines


def _wrapped(lines: Iterable[str], width: int) -> str:
    return "\n".join(
        textwrap.fill(visible(line), width, subsequent_indent="  ", break_on_hyphens=False) for line in lines
    )


def _rows(run: Mapping[str, Any]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    keys = ("model", "metric", *Place._fields)
    rows: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in run.get("estimates", []):
        # The first is of the whole, as in `RunView`; others of the same place differ in their detail (a role).
        rows.setdefault(tuple(row.get(key) for key in keys), row)
    return rows


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], metric: Metric | None) -> Difference:
    change = new["value"] - old["value"]
    z, timed = None, metric is not None and metric.is_time
    if not timed and None not in {old["se"], new["se"]} and (error := math.hypot(old["se"], new["se"])) > 0:
        z = change / error
    better = {"higher": change > 0, "lower": change < 0}.get(new["better"])
    verdict = "changed" if better is None else "better" if better else "worse"
    if timed:
        verdict = "not compared"
    elif change == 0:
        verdict = "same"
    elif z is not None and abs(z) < _BEYOND_ERROR:
        verdict = "within error"
    elif z is None and (metric is None or not metric.is_fact):
        verdict = "changed"  # by an unknown number of errors
    direction = verdict if verdict in {"better", "worse"} else ""
    where = Place.of(new)._asdict()
    return Difference(
        new["model"], new["metric"], old["value"], new["value"], z, direction, **where,
        partner=old["model"], verdict=verdict,
    )  # fmt: skip


def _short_of(run: Mapping[str, Any]) -> str:
    """What a run did not finish."""
    view = RunView(run)
    if view.interrupted is not None:
        return view.interrupted
    names = [model.name for model in view.models if model.standing.undecided]
    return f"incomplete: not all planned gates were decided of {', '.join(names)}" if names else ""


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], partners: Mapping[str, Partner]) -> list[str]:
    changes = [f"the {label} run was {told}" for label, run in (("old", old), ("new", new)) if (told := _short_of(run))]
    for name, read in _CIRCUMSTANCES.items():
        before, after = (read(run) for run in (old, new))
        # What an older version did not record is not known to differ.
        if before != after and None not in {before, after}:
            changes.append(f"changed {name}: {before or 'none'} -> {after or 'none'}")
    before, after = (describe_windows(run["corpus"]) if run.get("corpus") else "none" for run in (old, new))
    if before != after:
        changes.append(f"changed windows: {before} -> {after}")
    settings_old, settings_new = (run.get("settings") or {} for run in (old, new))
    changes += [
        f"changed setting {name}: {settings_old[name]} -> {settings_new[name]}"
        for name in settings_new
        if name in settings_old and name not in _UNTOLD and settings_old[name] != settings_new[name]
    ]
    hashes_old, hashes_new = ({m["name"]: m["sha256"] for m in run.get("models", [])} for run in (old, new))
    both = {
        name: partner.earlier
        for name, partner in partners.items()
        if name in hashes_new and partner.earlier in hashes_old and partner.earlier is not None
    }
    changes += [
        f"changed file: {name} ({hashes_old[earlier][:12]} -> {hashes_new[name][:12]})"
        for name, earlier in both.items()
        if hashes_old[earlier] != hashes_new[name]
    ]
    used = {"old": set(both.values()), "new": set(both)}
    for label, hashes in (("old", hashes_old), ("new", hashes_new)):
        only = [name for name in hashes if name not in used[label]]
        if only:
            changes.append(f"only in the {label} run: {', '.join(only)}")
    return changes
