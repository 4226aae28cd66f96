"""Notes on a comparison with a baseline: which models were paired, and which were not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gguf_harness.inputs.pairing import Partner, some_names
from gguf_harness.judge.baselines import Baseline
from gguf_harness.metrics.records import WHOLE

__all__ = ["missing", "no_partner", "notes_of", "nothing_compared", "uncompared"]


def no_partner(model: str, partner: Partner, baseline: Baseline, models: Iterable[str]) -> str:
    """A sentence that explains why a model of a run was not compared.

    Args:
        model: its name.
        partner: result of `gguf_harness.inputs.pairing.pair_up`.
        baseline: the baseline to compare with.
        models: names of the run's candidates.
    """
    return (
        f"nothing was compared: the baseline {baseline.name!r} has no partner for {model}: {partner.reason}."
        f" Models of the baseline: {some_names(baseline.models)}. Candidates of this run: {some_names(models)}."
        f" Choose the pair: --gguf-baseline-map=OLD={model}"
    )


def missing(model: str, metric: str, baseline: str, detail: str) -> dict[str, Any]:
    """A requested comparison that could not be made, in a form like `Comparison.to_json`."""
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
    """The result of `missing` for each candidate that was measured but not compared.

    Args:
        partners: partners of the run's candidates.
        baseline: the baseline to compare with.
        comparisons: comparisons that were made, or found to be missing.
        measured: models with estimates in the run.
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
    """A sentence for a run in which a comparison was requested but no test compared anything."""
    return (
        f"nothing was compared with the baseline {baseline.name!r}: no test of this run does. Models of the baseline:"
        f" {some_names(baseline.models)}. Candidates of this run: {some_names(models)}."
        " Run suites/quant/test_baseline.py, or a suite whose estimates the baseline has."
    )


def notes_of(
    partners: Mapping[str, Partner], baseline: Baseline, comparisons: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Notes on a comparison with a baseline, besides its numbers.

    Args:
        partners: partners of the run's candidates.
        baseline: the baseline compared with.
        comparisons: comparisons that were made.
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
