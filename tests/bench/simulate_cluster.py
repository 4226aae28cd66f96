"""How long a family of files would take on a cluster, under the scheduler of `pytest -n`: nothing is measured.

    python -m tests.bench.simulate_cluster --parameters 70e9 --gpus 8,16,64 --gpus-per-process 2 [--price 2.5]

A reference in F16 and its candidates, of the sizes that llama.cpp's types have; seven suites for each, with the seconds
that they took on two cores (`SUITES`), divided by how much faster a GPU is. Prints the
makespan beside what no scheduler can beat, and what this bound is due to: that is what gives way first when GPUs are
added. `--docs` writes the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gguf_harness.pytest_plugin.schedule import Piece
from tests.bench.cluster import Cluster, Outcome, Work, simulate
from tests.bench.lower_bounds import lower_bounds

__all__ = ["BITS", "PAGE", "Family", "family_work", "surprising", "with_tables"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "scale.md"
"""What the tables are for."""

BITS: Final[Mapping[str, float]] = {
    "Q8_0": 8.5008, "Q6_K": 6.5633, "Q5_1": 6.0, "Q5_K_M": 5.7036, "Q5_K_S": 5.5704, "Q5_0": 5.5, "Q4_1": 5.0,
    "Q4_K_M": 4.8944, "IQ4_NL": 4.6818, "Q4_K_S": 4.6672, "Q4_0": 4.5, "IQ4_XS": 4.4597, "Q3_K_L": 4.2979,
    "Q3_K_M": 3.9960, "IQ3_M": 3.7628, "IQ3_S": 3.6606, "Q3_K_S": 3.6429, "IQ3_XS": 3.4977, "IQ3_XXS": 3.2548,
    "Q2_K": 3.1593, "Q2_K_S": 2.9697, "IQ2_M": 2.9294, "IQ2_S": 2.7403, "IQ2_XS": 2.5882, "IQ2_XXS": 2.3824,
    "IQ1_M": 2.1460, "TQ2_0": 2.0625, "IQ1_S": 2.0042, "TQ1_0": 1.6875, "BF16": 16.0,
}  # fmt: skip
"""Bits per weight of Llama 3.1 8B, from llama.cpp's tools/quantize/README.md; of one block for types not listed."""

SUITES: Final[Mapping[str, tuple[float, float]]] = {
    "attention": (3.0, 800.0),
    "embeddings": (1.5, 140.0),
    "heads": (3.0, 2800.0),
    "kv": (10.0, 80.0),
    "layers": (8.0, 1000.0),
    "lora": (5.0, 300.0),
    "quant": (12.0, 400.0),
}
"""Seconds that a suite takes for one model on two cores: for any model, and for each 10^9 parameters.

From runs of tiny (5 million parameters) and SmolLM2-135M in several types, with the default settings. Types of a model
differ by less than a factor of two, and not in the order of their sizes. Other things ran on those cores, and that of
suites/lora is from tiny alone. So they are good to a factor of two.
"""

_REFERENCE_BITS: Final = 16.0005
_CORES: Final = 2 * 134.5e6 * 655
"""FLOP per second of the two cores that `SUITES` is from: SmolLM2-135M in F16 reads a prompt with 655 tokens a second
(tests/data/run-smollm2), at two FLOP per parameter and token."""
_WINDOWS: Final = 16
"""Windows of 512 tokens that `SUITES` is from."""
_GIGABIT: Final = 1e9 / 8
_SEEDS: Final = 5


@dataclass(frozen=True, slots=True)
class Family:
    """A reference with its candidates, and how much of the corpus is read.

    Attributes:
        parameters: of each file.
        candidates: how many; the types of `BITS` in turn.
        windows: of 512 tokens.
        flops: of a process, in FLOP per second, as llama.cpp uses it.
        vocabulary: tokens, for the size of the reference's log-probabilities.
    """

    parameters: float
    candidates: int = 30
    windows: int = 128
    flops: float = 128e12
    vocabulary: int = 128256


def family_work(family: Family) -> Work:
    """The pieces of a family: suites of files, each of a candidate after the reference's."""
    types = list(BITS)
    names = [types[index % len(types)] + "'" * (index // len(types)) for index in range(family.candidates)]
    sizes = {"F16": int(family.parameters * _REFERENCE_BITS / 8)}
    sizes |= {name: int(family.parameters * BITS[name.rstrip("'")] / 8) for name in names}
    scale = family.parameters / 1e9 * family.windows / _WINDOWS * _CORES / family.flops
    seconds = {suite: fixed + each * scale for suite, (fixed, each) in SUITES.items()}
    pieces = [
        Piece(f"{file}/{suite}", file, seconds[suite], None if file == "F16" else f"F16/{suite}")
        for file in sizes
        for suite in seconds
    ]
    # 16 bits for each entry of the scored half of each window.
    results = {"F16/quant": family.windows * 256 * family.vocabulary * 2}
    return Work(tuple(pieces), sizes, results=results)


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a row of a table is about. Rates in Gbit/s, times in hours.

    Attributes:
        per_process: GPUs that the largest file needs.
    """

    gpus: int
    per_process: int = 1
    per_node: int = 8
    network: float = 10.0
    store: float = 40.0
    crash_every: float = 24.0
    preempted_every: float = 12.0
    price: float = 2.5

    def cluster(self, *, fails: bool) -> Cluster:
        """The cluster, with or without failures."""
        on_node = min(self.gpus, self.per_node)
        return Cluster(
            nodes=self.gpus // on_node,
            processes=on_node // self.per_process,
            network=self.network * _GIGABIT,
            store=self.store * _GIGABIT,
            crash_every=self.crash_every * 3600 if fails else math.inf,
            preempted_every=self.preempted_every * 3600 if fails else math.inf,
        )


_HEAD: Final = (
    "| GPUs | time | bound | above it | what the bound is | moved | GPU hours | cost | with failures | cost | again |",
    "|-:|-:|-:|-:|---|-:|-:|-:|-:|-:|-:|",
)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=8e9)
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--tflops", type=float, default=128.0, help="of one process, as llama.cpp uses it")
    parser.add_argument("--gpus", default="1,2,4,8,16,64")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--gpus-per-process", type=int, default=1, help="that the largest file needs")
    parser.add_argument("--network", type=float, default=10.0, help="Gbit/s that a node receives")
    parser.add_argument("--store", type=float, default=40.0, help="Gbit/s that the store of the files sends in all")
    parser.add_argument("--crash-every", type=float, default=24.0, help="hours between crashes of a process")
    parser.add_argument("--preempted-every", type=float, default=12.0, help="hours between preemptions of a node")
    parser.add_argument("--price", type=float, default=2.5, help="of a GPU for an hour")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/scale.md")
    known = parser.parse_args()
    if known.docs:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    setup = _Setup(
        0, known.gpus_per_process, known.gpus_per_node, known.network, known.store,
        known.crash_every, known.preempted_every, known.price,
    )  # fmt: skip
    family = Family(known.parameters, known.candidates, known.windows, known.tflops * 1e12)
    numbers = [int(number) for number in known.gpus.split(",")]
    sys.stdout.write(_table(family, [replace(setup, gpus=number) for number in numbers]) + "\n")


def with_tables(page: str) -> str:
    """A page with the tables of today, each behind the comment that names it."""
    numbers = (1, 2, 4, 8, 16, 64)
    tables: dict[str, Callable[[], str]] = {
        "8B": lambda: _table(Family(8e9), [_Setup(gpus) for gpus in numbers]),
        "70B": lambda: _table(Family(70e9), [_Setup(gpus, per_process=2) for gpus in numbers]),
        "changes": lambda: _changes(Family(70e9), _Setup(64, per_process=2)),
    }
    for name, table in tables.items():
        comment = f"<!-- simulated: {name} -->"
        if comment not in page:
            raise ValueError(f"The page has no {comment}.")
        # Markdown wants an empty line before a table.
        text = f"{comment}\n\n{table()}\n\n"
        page = re.sub(rf"{comment}\n+(\|.*\n)*\n*", text, page)
    return page


def _table(family: Family, setups: Sequence[_Setup]) -> str:
    work = family_work(family)
    return "\n".join([*_HEAD, *(_row(work, setup) for setup in setups)])


def _row(work: Work, setup: _Setup) -> str:
    if setup.gpus < setup.per_process:
        return f"| {setup.gpus} | the largest file does not fit |" + " |" * 9
    whole = setup.cluster(fails=False)
    outcome = simulate(work, whole)
    reason, bound = _bound(work, whole)
    failing = [simulate(work, setup.cluster(fails=True), seed) for seed in range(_SEEDS)]
    cells = (
        str(setup.gpus),
        _hours(outcome.makespan),
        _hours(bound),
        _above(outcome, bound),
        reason,
        f"{outcome.moved / 1e12:.2f} TB",
        f"{_gpu_hours(outcome, setup):.1f}",
        f"{_gpu_hours(outcome, setup) * setup.price:.0f} $",
        _hours(statistics.mean(each.makespan for each in failing)),
        f"{statistics.mean(_gpu_hours(each, setup) for each in failing) * setup.price:.0f} $",
        f"{statistics.mean(each.retried for each in failing):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _changes(family: Family, setup: _Setup) -> str:
    """What one change at a time does."""
    work = family_work(family)
    fewer = {piece.name: piece.seconds / 2 for piece in work.pieces if piece.name.endswith("/heads")}
    halves = tuple(replace(piece, seconds=fewer.get(piece.name, piece.seconds)) for piece in work.pieces)
    cases = {
        "as above": (work, setup),
        "the store sends 400 Gbit/s, not 40": (work, replace(setup, store=400.0)),
        "nodes receive 100 Gbit/s, the store sends 400": (work, replace(setup, network=100.0, store=400.0)),
        "every node has every file": (work, replace(setup, network=1e6, store=math.inf)),
        "the reference has been measured before": (_alone(work), setup),
        "half as many heads (`--gguf-head-limit=32`)": (replace(work, pieces=halves), setup),
        "suites take half to twice what is expected": (surprising(work), setup),
        "10 candidates, not 30": (family_work(replace(family, candidates=10)), setup),
        "16 windows, not 128": (family_work(replace(family, windows=16)), setup),
        "16 windows, and every node has every file": (
            family_work(replace(family, windows=16)),
            replace(setup, network=1e6, store=math.inf),
        ),
    }
    lines = ["| what is changed | time | bound | above it | what the bound is |", "|---|-:|-:|-:|---|"]
    for name, (changed, where) in cases.items():
        outcome = simulate(changed, where.cluster(fails=False))
        reason, bound = _bound(changed, where.cluster(fails=False))
        cells = (name, _hours(outcome.makespan), _hours(bound), _above(outcome, bound), reason)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def surprising(work: Work, seed: int = 0) -> Work:
    """The same, but each piece takes between half and twice the seconds that the scheduler expects."""
    draw = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    return replace(work, seconds={piece.name: piece.seconds * 2 ** draw.uniform(-1, 1) for piece in work.pieces})


def _alone(work: Work) -> Work:
    """The candidates, whose reference is in the cache of every node."""
    pieces = tuple(replace(piece, after=None) for piece in work.pieces if piece.after is not None)
    return replace(work, pieces=pieces, results={})


def _bound(work: Work, cluster: Cluster) -> tuple[str, float]:
    bounds = lower_bounds(work, cluster)
    reason = max(bounds, key=bounds.__getitem__)
    return reason, bounds[reason]


def _above(outcome: Outcome, bound: float) -> str:
    # The same sum in another order may be less in its last bit.
    return f"{max(outcome.makespan / bound - 1, 0.0):.0%}"


def _gpu_hours(outcome: Outcome, setup: _Setup) -> float:
    return outcome.held * setup.per_process / 3600


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    main()
