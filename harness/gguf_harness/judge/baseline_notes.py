"""What a person is told of a comparison with a baseline beside its numbers: who with whom, and who with nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gguf_harness.inputs.pairing import Partner, some_names
from gguf_harness.judge.baselines import Baseline
from gguf_harness.metrics.records import WHOLE

__all__ = ["missing", "no_partner", "notes_of", "nothing_compared", "uncompared"]


def no_partner(model: str, partner: Partner, baseline: Baseline, models: Iterable[str]) -> str:
    """A sentence on why a model of a run was compared with nothing.

    Args:
        model: its name.
        partner: what `gguf_harness.inputs.pairing.pair_up` found.
        baseline: what was to be compared with.
        models: names of the run's candidates.
    """
    return (
        f"nothing was compared: the baseline {baseline.name!r} has no partner of {model}: {partner.reason}."
        f" Models of the baseline: {some_names(baseline.models)}. Candidates of this run: {some_names(models)}."
        f" Say which belong together: --gguf-baseline-map=OLD={model}"
    )


def missing(model: str, metric: str, baseline: str, detail: str) -> dict[str, Any]:
    """A comparison that was asked for and could not be made, beside those of `Comparison.to_json`."""
    return {
        "model": model, "metric": metric, "baseline": baseline, "outcome": "missing", "detail": detail, "changes": [],
        **WHOLE._asdict(),
    }  # fmt: skip


def uncompared(
    partners: Mapping[str, Partner],
    baseline: Baseline,
    comparisons: Iterable[Mapping[str, Any]],
    measured: Iterable[str | None],
) -> list[dict[str, Any]]:
    """What `missing` gives of each candidate that was measured, and compared with nothing.

    Args:
        partners: of the run's candidates.
        baseline: what they were to be compared with.
        comparisons: that were made, or found to be missing.
        measured: models that the run has estimates of.
    """
    known = {one["model"] for one in comparisons}
    seen = set(measured)
    left = [model for model in partners if model in seen and model not in known]
    details = {
        model: f"nothing was compared: no test of this run compared {model} with {partner} of the baseline"
        f" {baseline.name!r}. Run suites/quant/test_baseline.py too"
        if (partner := partners[model].earlier) is not None
        else no_partner(model, partners[model], baseline, partners)
        for model in left
    }
    return [missing(model, "", baseline.name, detail) for model, detail in details.items()]


def nothing_compared(baseline: Baseline, models: Iterable[str]) -> str:
    """A sentence for a run that was to be compared, and of which no test compared anything."""
    return (
        f"nothing was compared with the baseline {baseline.name!r}: no test of this run does. Models of the baseline:"
        f" {some_names(baseline.models)}. Candidates of this run: {some_names(models)}."
        " Run suites/quant/test_baseline.py, or a suite that the baseline has estimates of."
    )


def notes_of(
    partners: Mapping[str, Partner], baseline: Baseline, comparisons: Iterable[Mapping[str, Any]]
) -> list[str]:
    """What a person should know of a comparison with a baseline beside its numbers.

    Args:
        partners: of the run's candidates.
        baseline: what they were compared with.
        comparisons: that were made.
    """
    compared = dict.fromkeys((one["model"], one["partner"]) for one in comparisons if "partner" in one)
    notes = list(baseline.notes)
    notes += [
        f"{model} was compared with {partner} of the baseline: {partners[model].reason}"
        for model, partner in compared
        if model in partners and partners[model].how != "name"
    ]
    notes += [
        f"{partner} itself failed when the baseline was saved: {' '.join(baseline.models[partner].failed)}"
        for partner in dict.fromkeys(partner for _, partner in compared)
        if baseline.models[partner].failed
    ]
    used = {partner for _, partner in compared}
    left = [name for name in baseline.models if name not in used and name != baseline.reference_name]
    if left:
        notes.append(f"no candidate was compared with these models of the baseline: {some_names(left)}")
    return notes
