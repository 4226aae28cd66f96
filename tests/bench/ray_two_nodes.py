"""The five suites on tiny with six quantizations: on two nodes of a Ray cluster that share nothing, and here.

    python -m tests.bench.ray_two_nodes [--suites quant,attention] [--processes 2]

One thread for each measurement, so that numbers can be compared to the bit. Prints the wall times of both; ends with 1
where a number differs. Timings of models are left out: they are taken by one process alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from tests.ray_cluster import ray_nodes

_SUITES = "quant,attention,heads,layers,embeddings"
_QUANTS = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K"


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", default=_SUITES)
    parser.add_argument("--quants", default=_QUANTS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--options", default="", help="more of pytest's, separated by spaces")
    known = parser.parse_args()
    suites = known.suites.split(",")
    more = [f"--gguf-quants={known.quants}", "-n", str(known.processes), *known.options.split()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here, local_s = _run(folder / "here", suites, more)
        cpus = (known.processes + 1) // 2
        with ray_nodes(folder, left=cpus, right=cpus) as nodes:
            there, ray_s = _run(folder / "there", suites, [*more, f"--gguf-ray={nodes.address}"])
    ours, theirs = _rows(here), _rows(there)
    same = ours == theirs
    made = here["cache"]["misses"]
    print(f"{len(here['models'])} models, {len(suites)} suites, {len(ours)} numbers, {made} measurements")
    print(f"here {local_s:.0f} s, on two nodes {ray_s:.0f} s; numbers {'the same to the bit' if same else 'differ'}")
    for node in there["nodes"]:
        print(f"node {node['node']}: {node['calls']} calls")
    for place in [place for place in ours.keys() | theirs.keys() if ours.get(place) != theirs.get(place)]:
        print(place, ours.get(place), theirs.get(place))
    # With processes that wait for each other, what comes from the cache depends on who was first.
    sys.exit(0 if same and made == there["cache"]["misses"] else 1)


def _run(folder: Path, suites: list[str], arguments: list[str]) -> tuple[dict[str, Any], float]:
    root = Path(str(resources.files("gguf_harness.suites")))
    ini = Path(str(resources.files("gguf_harness.fixtures"))) / "data" / "pytest.ini"
    folder.mkdir()
    command = [sys.executable, "-m", "pytest", *(str(root / suite) for suite in suites), "-c", str(ini)]
    command += [
        "--rootdir",
        str(folder),
        "-q",
        "-p",
        "no:cacheprovider",
        "--models=tiny",
        "--gguf-threads=1",
        *arguments,
    ]
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode not in {0, 1}:
        print(done.stdout[-3000:], done.stderr[-3000:])
        sys.exit(1)
    (file,) = folder.glob("results/runs/*/run.json")
    return json.loads(file.read_text(encoding="utf-8")), took


def _rows(run: dict[str, Any]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    names = ("model", "metric", "prompt", "layer", "head", "part")
    return {
        tuple(row[name] for name in names): tuple(row[name] for name in ("value", "se", "n"))
        for row in run["estimates"]
    }  # fmt: skip


if __name__ == "__main__":
    main()
