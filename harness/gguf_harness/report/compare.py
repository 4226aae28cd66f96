"""Compare two runs: what changed, and whether the changes exceed the errors."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from gguf_harness.inputs.pairing import Identity, Partner, identities_of_run, pair_up, some_names
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.registry import Metric, metrics_of_run
from gguf_harness.report.data import RunView, describe_windows, visible
from gguf_harness.report.numbers import format_value

__all__ = ["Comparison", "Difference", "compare_runs", "render_comparison"]

_TIMED_UNITS: Final = frozenset({"tokens/s", "s"})


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of a model in both runs.

    Attributes:
        z: difference divided by the root of the sum of squared errors, taking the runs as independent; None if an error
            is missing, and for timings. On the same corpus this is conservative: paired errors would be smaller.
        direction: "better", "worse", or "" for no change, a neutral metric or a timing: machines differ between runs,
            which the repetitions of one run do not show. Ratios to the reference can be compared.
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


def render_comparison(comparison: Comparison, *, width: int, color: bool) -> str:
    """A table of the main metrics, and other changes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    metrics = comparison.metrics
    shown = [
        (difference, metrics[difference.metric])
        for difference in comparison.differences
        if difference.metric in metrics and "comparison" in metrics[difference.metric].tables
    ]
    # Most runs have these metrics only for whole models.
    placed = any(difference.where for difference, _ in shown)
    timed = any(_is_timed(metric) for _, metric in shown)
    for title, justify in (
        ("model", "left"),
        ("metric", "left"),
        *([("where", "left")] if placed else []),
        ("old", "right"),
        ("new", "right"),
        ("change", "right"),
    ):
        table.add_column(
            title, justify="right" if justify == "right" else "left", no_wrap=title not in {"model", "where"}
        )
    table.add_column("z", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    styles = {"better": "green", "worse": "red"}
    for difference, metric in shown:
        is_comparable = difference.old and not _is_timed(metric)
        relative = f"{difference.new / difference.old - 1:+.2%}" if is_comparable else "-"
        table.add_row(
            Text(visible(difference.model)),
            Text(metric.title),
            *([Text(difference.where)] if placed else []),
            format_value(difference.old),
            format_value(difference.new),
            relative,
            "-" if difference.z is None else f"{difference.z:+.1f}",
            Text(difference.direction, style=styles.get(difference.direction, "")),
        )
    file = io.StringIO()
    console = Console(file=file, width=max(80, width), force_terminal=color, color_system="standard" if color else None)
    console.print(Text(f"{comparison.old} -> {comparison.new}"))
    console.print(table)
    lines = [
        *([comparison.problem] if comparison.problem else []),
        *comparison.changes,
        "z: difference divided by its standard error, taking the runs as independent; above 2 is more than chance",
        *(
            [
                "times and speeds are not compared, since they were measured at different times; "
                "ratios to the reference are"
            ]
            * timed
        ),
    ]
    return file.getvalue() + "\n" + "\n".join(visible(line) for line in lines) + "\n"


def _rows(run: Mapping[str, Any]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    keys = ("model", "metric", *Place._fields)
    rows: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in run.get("estimates", []):
        # The first is of the whole, as in `RunView`; others of the same place differ in their detail (a role).
        rows.setdefault(tuple(row.get(key) for key in keys), row)
    return rows


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], metric: Metric | None) -> Difference:
    change = new["value"] - old["value"]
    z, timed = None, metric is not None and _is_timed(metric)
    if not timed and None not in {old["se"], new["se"]} and (error := math.hypot(old["se"], new["se"])) > 0:
        z = change / error
    better = {"higher": change > 0, "lower": change < 0}.get(new["better"])
    direction = "" if timed or change == 0 or better is None else "better" if better else "worse"
    where = Place.of(new)._asdict()
    return Difference(
        new["model"], new["metric"], old["value"], new["value"], z, direction, **where, partner=old["model"]
    )


def _short_of(run: Mapping[str, Any]) -> str:
    """What a run did not finish."""
    view = RunView(run)
    if view.interrupted is not None:
        return view.interrupted
    names = [model.name for model in view.models if model.standing.undecided]
    return f"incomplete: not all planned gates were decided of {', '.join(names)}" if names else ""


def _is_timed(metric: Metric) -> bool:
    """Whether a metric is a time or a speed, not a ratio."""
    return metric.unit in _TIMED_UNITS


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], partners: Mapping[str, Partner]) -> list[str]:
    changes = [f"the {label} run was {told}" for label, run in (("old", old), ("new", new)) if (told := _short_of(run))]
    for name, key in (("corpus", "sha256"), ("prompts", "sha256"), ("engine", "llama_cpp"), ("machine", "cpu")):
        before, after = ((run.get(name) or {}).get(key) for run in (old, new))
        if before != after:
            changes.append(f"changed {name}: {before or 'none'} -> {after or 'none'}")
    before, after = (describe_windows(run["corpus"]) if run.get("corpus") else "none" for run in (old, new))
    if before != after:
        changes.append(f"changed windows: {before} -> {after}")
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
