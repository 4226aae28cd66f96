"""How long sessions are forecast to take, and what they take; and a budget of three minutes.

    python -m tests.bench.forecast [--models tiny,smollm2-135m] [--suites quant,...] [--budget 180] [--rounds 1]
                                   [--fit] [--processor-times] [--quick] [-- OPTIONS]

Suites on each model with one candidate, from an empty cache that has learned nothing, and again with --gguf-fresh and
what the first run has taught: predicted against real seconds, of all and by measurement. At most 25 % apart is the aim,
of the first run too. suites/kv and suites/lora are sessions of their own, with two other caches and an adapter. Then
the last model's suites with --gguf-budget, from a cache that has learned nothing: the aim is that it ends within 15 %
of its time, and that its numbers agree with those of the whole run.

`--fit` prints by how much `measure/forecast/fitted.py` is wrong, by the first runs; with `--processor-times` by those
of one thread, which others on the machine hardly change (see `processor_times.py`).
`--quick` is a smoke run on tiny, with few windows and prompts, whose times say nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from gguf_harness.inputs.sources import select
from tests.random_lora import write_random_lora

SUITES: Final = ("quant", "attention", "heads", "layers", "embeddings")
VARIANTS: Final = ("kv", "lora")
"""Suites about other caches and adapters; a session of their own, since --gguf-kv makes candidates for others."""
CACHES: Final = "--gguf-kv=f16/f16,q8_0/q8_0,q4_0/q4_0"
CANDIDATE: Final = "Q4_K_M"
MOST_WRONG: Final = 0.25
MOST_LATE: Final = 0.15
_QUICK: Final = ("--gguf-chunks=4", "--gguf-ctx=128", "--gguf-head-limit=8", "--gguf-repetitions=2")
_PROCESSOR: Final = ("-p", "tests.bench.processor_times", "--gguf-threads=1")
_ROOT: Final = Path(__file__).parent.parent.parent
_Z: Final = 1.96


def main() -> None:
    """Measure and print; ends with 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,smollm2-135m")
    parser.add_argument("--suites", default=",".join((*SUITES, *VARIANTS)))
    parser.add_argument("--budget", type=float, default=180.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--processor-times", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("options", nargs="*", help="more options of the sessions, after --")
    known = parser.parse_args()
    models = ["tiny"] if known.quick else known.models.split(",")
    more = [*(_QUICK if known.quick else ()), *(_PROCESSOR if known.processor_times else ()), *known.options]
    asked = known.suites.split(",")
    groups = [group for every in (SUITES, VARIANTS) if (group := [suite for suite in every if suite in asked])]
    met = True
    tables: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for suites in groups:
            whole: Mapping[str, Any] = {}
            of_suites = f", {'/'.join(suites)}"
            for model in models:
                own = [*more, *_of_variants(model, suites, Path(folder))]
                for count in range(known.rounds):
                    place = Path(folder) / f"{model}-{suites[0]}-{count}"
                    whole = _run(model, suites, place, own)
                    tables.setdefault(model, []).extend(_table(place))
                    again = _run(model, suites, place, [*own, "--gguf-fresh"])
                    for learned, run in (("nothing learned", whole), ("learned", again)):
                        met &= _tell(f"{model}{of_suites}, {learned}", run, by_processor=known.processor_times)
            given, place = _of_variants(models[-1], suites, Path(folder)), Path(folder) / f"budget-{suites[0]}"
            if known.budget and not (known.quick or known.processor_times):
                met &= _budget(models[-1], suites, place, known.budget, whole, [*given, *known.options])
            elif known.quick:
                # Options that are given stay: there is little to leave out.
                _budget("tiny", suites, place, 600.0, whole, [*given, "--gguf-ctx=128"])
    if known.fit:
        _fit(tables)
    sys.exit(0 if met or known.quick else 1)


def _of_variants(model: str, suites: Sequence[str], folder: Path) -> list[str]:
    """Options for suites/kv and suites/lora: two other caches, and an adapter with its text."""
    options = [CACHES] if "kv" in suites else []
    if "lora" not in suites or model == "tiny":
        return options
    (source,) = select([model]).models
    adapter = folder / f"{model}-lora.gguf"
    if not adapter.is_file():
        write_random_lora(adapter, source.files[0], rank=8, alpha=16.0)
    text = resources.files("gguf_harness.fixtures").joinpath("data/voyage-held-out.txt")
    return [*options, f"--gguf-lora={adapter}", f"--gguf-lora-corpus={text}"]


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
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    ended = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    runs = sorted(place.glob("results/runs/*/run.json"))
    if not runs:
        sys.exit(f"The session wrote no run (exit status {ended.returncode}):\n{ended.stdout}\n{ended.stderr}")
    content: dict[str, Any] = json.loads(runs[-1].read_text(encoding="utf-8"))
    return content | {"process_s": seconds}


def _tell(what: str, run: Mapping[str, Any], *, by_processor: bool = False) -> bool:
    """Print what was predicted and what it took, by the clock or by processors; whether that is near enough."""
    forecast = run["forecast"]
    if forecast is None:
        print(f"{what}: {run['process_s']:.1f} s, too short to be foreseen", flush=True)
        return True
    took = sum(row["actual_s"] for row in forecast["measurements"]) if by_processor else forecast["actual_s"]
    ratio = forecast["predicted_s"] / took
    met = bool(abs(1 / ratio - 1) <= MOST_WRONG)
    print(
        f"{what}: predicted {forecast['predicted_s']:.1f} s, took {took:.1f} s (the process"
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
    without = dict.fromkeys(each["model"] for each in run["budget"]["left_out"] if each["model"])
    print(
        f"  took {run['process_s']:.1f} s, {late:+.0%} of its time; aim at most +{MOST_LATE:.0%}:"
        f" {'met' if in_time else 'MISSED'}; {left_out or 'nothing left out'};"
        f" {len(run['budget']['left_out'])} tests left out of {len(without)} subjects",
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
