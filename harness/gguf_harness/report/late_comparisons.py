"""Compare a run with a baseline where its parts are merged: by the means of windows and the rows that they stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import OptionError
from gguf_harness.inputs.pairing import FAMILY, Partner, pair_up, read_pairs
from gguf_harness.judge.baseline_notes import missing, no_partner
from gguf_harness.judge.baseline_reader import load_baseline
from gguf_harness.judge.baselines import Baseline, Facts
from gguf_harness.judge.regressions import CONFIDENCE, Now, compare, compare_row, is_compared
from gguf_harness.judge.shards import identities_in
from gguf_harness.metrics.records import Row
from gguf_harness.metrics.registry import compared_by_window
from gguf_harness.report.shard_runs import Part, Parts
from gguf_harness.store.arrays import load_arrays
from gguf_harness.store.file_hashes import hash_files
from gguf_harness.store.runs import BASELINE_COPY, run_file

__all__ = ["Against", "compare_late", "find_against"]

_MEANS: Final = "window_means"


@dataclass(frozen=True, slots=True)
class Against:
    """The baseline that merged parts are compared with.

    Attributes:
        baseline: its content.
        partners: the model of the baseline for each candidate.
        compared: whether the sessions have compared already, so that only the verdicts are left to decide.
        file: name of its file, where it was named for the merge; None for the copy that the parts have.
        settings: as in `Baseline.settings`, those of the parts.
        confidences: of comparisons, by metric; 0.95 for metrics without a gate.
    """

    baseline: Baseline
    partners: Mapping[str, Partner]
    compared: bool
    file: str | None
    settings: Mapping[str, str]
    confidences: Mapping[str, float]


def find_against(parts: Parts, given: Path | None, pairs: Sequence[str]) -> Against | None:
    """The baseline of a merge: the one that is given, or else the one that the sessions were compared with.

    Args:
        parts: checked.
        given: file of --gguf-baseline.
        pairs: of --gguf-baseline-map.

    Raises:
        OptionError: the sessions compared with another one, or pairs name unknown models.
        StoreError: the baseline cannot be read.
    """
    plan = parts.plan
    used = plan.get("baseline")
    if given is None and used is None:
        if pairs:
            raise OptionError("--gguf-baseline-map without --gguf-baseline compares nothing.", "Give both.")
        return None
    if used is not None and pairs:
        raise OptionError(
            "--gguf-baseline-map comes too late: the sessions have compared with the baseline.",
            "Give it to each of them.",
        )
    if used is not None and given is not None and hash_files([given], None) != used:
        raise OptionError(
            f"--gguf-baseline={given}: the sessions compared with another one.",
            "Leave it out: the parts hold a copy of theirs.",
        )
    if used is None and given is not None:
        baseline = load_baseline(given)
    else:
        holding = parts.parts[0]
        baseline = load_baseline(run_file(holding.path.parent, BASELINE_COPY))
        baseline = replace(baseline, name=str((holding.run.get("baseline") or {}).get("name") or baseline.name))
    now = identities_in(plan)
    told = pairs or plan["settings"].get("baseline_map") or ()
    return Against(
        baseline,
        pair_up(baseline.identities, now, read_pairs(told, baseline.identities, now)),
        compared=used is not None,
        file=None if given is None else given.name,
        settings=plan["compared_with"],
        confidences={metric: gate["confidence"] for metric, gate in plan["gates"].items()},
    )


def compare_late(parts: Iterable[Part], against: Against, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons that a session with --gguf-baseline would have made; they belong to no test.

    Args:
        parts: of the run, with their means of windows.
        against: the baseline.
        rows: all estimates.

    Raises:
        StoreError: a file of a part is missing or damaged.
    """
    made: list[dict[str, Any]] = []
    for part in parts:
        candidates = {one["model"] for one in part.plan["comparisons"]}
        for entry in part.run["arrays"]:
            if entry["name"] == _MEANS and entry["model"] in candidates:
                made += _by_window(part, entry, against)
    return made + _by_row(against, rows)


def _by_window(part: Part, entry: Mapping[str, Any], against: Against) -> list[dict[str, Any]]:
    model, baseline = str(entry["model"]), against.baseline
    partner = against.partners.get(model)
    if partner is None:
        return []
    if partner.earlier is None:
        told = no_partner(model, partner, baseline, against.partners)
        return [missing(model, metric, baseline.name, told) for metric in compared_by_window()]
    now = _now(part, entry)
    made = []
    for metric in compared_by_window():
        found = compare(metric, now, baseline, against.confidences.get(metric, CONFIDENCE), partner.earlier)
        if found is None:
            told = (
                f"nothing was compared: the baseline {baseline.name!r} has no {metric} with an error of"
                f" {partner.earlier}. Save it again from a run of suites/quant."
            )
            made.append(missing(model, metric, baseline.name, told))
        else:
            made.append(found.to_json())
    return made


def _now(part: Part, entry: Mapping[str, Any]) -> Now:
    """What a session knows of a candidate when it compares it."""
    run, model = part.run, str(entry["model"])
    arrays = load_arrays(run_file(part.path.parent, entry["file"]))
    facts = {one["name"]: one for one in run["models"]}
    known, reference = facts[model], facts.get(str(run["reference"]))
    means = {name: tuple(arrays[name].tolist()) for name in compared_by_window() if name in arrays}
    return Now(
        name=model,
        facts=Facts(
            known["sha256"],
            {key: str(known.get(key)) for key in FAMILY},
            {},
            tuple(arrays["window"].tolist()),
            means,
            quantization=known.get("quantization"),
        ),
        engine=(run.get("engine") or {}).get("llama_cpp"),
        corpus=(run["corpus"]["sha256"], run["corpus"]["n_ctx"]),
        reference=None if reference is None else reference["sha256"],
    )


def _by_row(against: Against, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for content in rows:
        row = Row(**{field.name: content[field.name] for field in fields(Row) if field.name in content})
        partner = against.partners.get(row.model)
        if partner is None or partner.earlier is None or not is_compared(row):
            continue
        confidence = against.confidences.get(row.metric, CONFIDENCE)
        found = compare_row(row, against.baseline, partner.earlier, confidence, against.settings)
        made += [] if found is None else [found.to_json()]
    return made
