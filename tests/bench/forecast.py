"""How long sessions are forecast to take, and what they take; and a budget of three minutes.

    python -m tests.bench.forecast [--models tiny,smollm2-135m] [--budget 180] [--rounds 1] [--fit] [--quick]

Five suites on each model with one candidate, from an empty cache that has learned nothing, and again with --gguf-fresh
and what the first run has taught: predicted against real seconds, of all and by measurement. At most 25 % apart is the
aim, of the first run too. Then the last model's suites with --gguf-budget, from a cache that has learned nothing: the
aim is that it ends within 15 % of its time, and that its numbers agree with those of the whole run.

`--fit` prints by how much `FITTED` and `TESTS_S` of `measure/forecast/efforts.py` are wrong, by the first runs.
`--quick` is a smoke run on tiny, with few windows and prompts, whose times say nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

SUITES: Final = ("quant", "attention", "heads", "layers", "embeddings")
CANDIDATE: Final = "Q4_K_M"
MOST_WRONG: Final = 0.25
MOST_LATE: Final = 0.15
_QUICK: Final = ("--gguf-chunks=4", "--gguf-ctx=128", "--gguf-head-limit=8", "--gguf-repetitions=2")
_Z: Final = 1.96


def main() -> None:
    """Measure and print; ends with 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,smollm2-135m")
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--budget", type=float, default=180.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("options", nargs="*", help="more options of the sessions, after --")
    known = parser.parse_args()
    models = ["tiny"] if known.quick else known.models.split(",")
    more = [*(_QUICK if known.quick else ()), *known.options]
    suites = known.suites.split(",")
    met = True
    tables: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole: Mapping[str, Any] = {}
        for model in models:
            for count in range(known.rounds):
                place = Path(folder) / f"{model}-{count}"
                whole = _run(model, suites, place, more)
                tables.setdefault(model, []).extend(_table(place))
                met &= _tell(f"{model}, nothing learned", whole)
                met &= _tell(f"{model}, learned", _run(model, suites, place, [*more, "--gguf-fresh"]))
        if known.budget and not known.quick:
            met &= _budget(models[-1], suites, Path(folder) / "budget", known.budget, whole, known.options)
        elif known.quick:
            # Options that are given stay: there is little to leave out.
            _budget("tiny", suites, Path(folder) / "budget", 600.0, whole, ["--gguf-ctx=128"])
    if known.fit:
        _fit(tables)
    sys.exit(0 if met or known.quick else 1)


def _run(model: str, suites: Sequence[str], place: Path, more: Sequence[str]) -> dict[str, Any]:
    """The run.json of a session, with the seconds that the whole process took."""
    package = Path(str(resources.files("gguf_harness")))
    ini = package / "fixtures" / "data" / "pytest.ini"
    place.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "pytest", *(str(package / "suites" / suite) for suite in suites), "-c", str(ini),
        "--rootdir", str(place), "-q", "-p", "no:cacheprovider", f"--models={model}", f"--gguf-quants={CANDIDATE}",
        *more,
    ]  # fmt: skip
    start = time.perf_counter()
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    runs = sorted(place.glob("results/runs/*/run.json"))
    if not runs:
        sys.exit(f"The session wrote no run (exit status {ended.returncode}):\n{ended.stdout}\n{ended.stderr}")
    content: dict[str, Any] = json.loads(runs[-1].read_text(encoding="utf-8"))
    return content | {"process_s": seconds}


def _tell(what: str, run: Mapping[str, Any]) -> bool:
    """Print what was predicted and what it took; whether that is near enough."""
    forecast = run["forecast"]
    if forecast is None:
        print(f"{what}: {run['process_s']:.1f} s, too short to be foreseen", flush=True)
        return True
    ratio = forecast["predicted_s"] / forecast["actual_s"]
    met = bool(abs(1 / ratio - 1) <= MOST_WRONG)
    print(
        f"{what}: predicted {forecast['predicted_s']:.1f} s, took {forecast['actual_s']:.1f} s (the process"
        f" {run['process_s']:.1f} s), ratio {ratio:.2f}; aim 1 +/- {MOST_WRONG}: {'met' if met else 'MISSED'}; timing"
        f" files {forecast['timing_s']:.1f} s",
        flush=True,
    )
    rows = sorted(forecast["measurements"], key=lambda row: -row["actual_s"])
    for row in rows:
        print(f"    {row['name']:24} {row['predicted_s']:8.1f} {row['actual_s']:8.1f}", flush=True)
    return met


def _budget(
    model: str, suites: Sequence[str], place: Path, budget: float, whole: Mapping[str, Any], more: Sequence[str]
) -> bool:
    run = _run(model, suites, place, [*more, f"--gguf-budget={budget:.0f}"])
    _tell(f"{model}, budget of {budget:.0f} s", run)
    late = run["process_s"] / budget - 1
    in_time = bool(late <= MOST_LATE)
    left_out = "; ".join(f"{each['kept']} of {each['of']} {each['what']}" for each in run["budget"]["reduced"])
    print(
        f"  took {run['process_s']:.1f} s, {late:+.0%} of its time; aim at most +{MOST_LATE:.0%}:"
        f" {'met' if in_time else 'MISSED'}; {left_out or 'nothing left out'};"
        f" {len(run['budget']['left_out'])} tests left out",
        flush=True,
    )
    return _agree(run, whole) and in_time


def _agree(run: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Compare estimates over all windows, prompts or heads: differences beyond both errors are one in twenty."""
    other = {_place(row): row for row in whole["estimates"]}
    pairs = [
        (row, other[_place(row)])
        for row in run["estimates"]
        if _place(row) in other and row["se"] and other[_place(row)]["se"] and not _is_timing(row)
    ]
    if not pairs:
        print("  no estimates to compare", flush=True)
        return False
    apart = [
        (abs(mine["value"] - theirs["value"]) / math.hypot(mine["se"], theirs["se"]), mine) for mine, theirs in pairs
    ]
    within = sum(distance <= _Z for distance, _ in apart)
    inside = sum(abs(mine["value"] - theirs["value"]) <= _Z * theirs["se"] for mine, theirs in pairs)
    larger = sum(mine["se"] > theirs["se"] for mine, theirs in pairs)
    print(
        f"  {len(pairs)} estimates: {within / len(pairs):.0%} agree within 1.96 joint errors, {inside / len(pairs):.0%}"
        f" are inside the whole run's 95 % intervals, {larger / len(pairs):.0%} have larger errors",
        flush=True,
    )
    for distance, row in sorted(apart, key=lambda pair: -pair[0])[:5]:
        print(f"    {distance:6.1f} errors: {' '.join(map(str, _place(row)))}", flush=True)
    return bool(within / len(pairs) >= 0.9)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("suite", "model", "metric", "prompt", "layer", "head", "part"))


def _is_timing(row: Mapping[str, Any]) -> bool:
    return any(part in row["metric"] for part in ("tokens_per_s", "load_", "_ratio_s", "speed", "served", "memory"))


def _table(place: Path) -> list[dict[str, Any]]:
    files = place.glob("results/cache/durations/*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _fit(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print total seconds over those expected before anything was learned, by measurement and model."""
    factors: dict[str, dict[str, float]] = {}
    for model, rows in tables.items():
        for name in dict.fromkeys(row["kind"] for row in rows):
            of_name = [row for row in rows if row["kind"] == name]
            taken, expected = (sum(row[key] for row in of_name) for key in ("seconds", "expected"))
            factors.setdefault(name, {})[model] = taken / expected
    for name, by_model in sorted(factors.items()):
        mean = math.exp(sum(map(math.log, by_model.values())) / len(by_model))
        told = ", ".join(f"{model} {factor:.2f}" for model, factor in by_model.items())
        print(f"    {name:24} {mean:5.2f}: {told}", flush=True)


if __name__ == "__main__":
    main()
