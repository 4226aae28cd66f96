"""Plans of any family on any cluster, from a seed."""

from __future__ import annotations

import math
import random

from gguf_harness.pytest_plugin.schedule import Piece
from tests.bench.cluster import Cluster, Work
from tests.bench.simulate_cluster import BITS

__all__ = ["random_plan"]


def random_plan(seed: int) -> tuple[Work, Cluster]:
    """A plan: a reference and 1 to 30 candidates of 1 to 70 B parameters, 1 to 8 suites, 1 to 64 processes.

    Suites differ by up to a factor of a hundred, candidates by two, and one suite in five reads nothing of the
    reference's.
    """
    draw = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    parameters = math.exp(draw.uniform(math.log(1e9), math.log(70e9)))
    names = draw.sample(sorted(BITS), draw.randint(1, 30))
    bits = {"reference": 16.0} | {name: BITS[name] for name in names}
    sizes = {name: int(parameters * value / 8) for name, value in bits.items()}
    # Seconds for a model of 10^9 parameters on a GPU.
    suites = {
        f"suite {number}": math.exp(draw.uniform(math.log(2), math.log(200))) for number in range(draw.randint(1, 8))
    }
    alone = {suite for suite in suites if draw.random() < 0.2}
    pieces = []
    for file in sizes:
        speed = draw.uniform(0.7, 1.4)
        for suite, seconds in suites.items():
            reads = None if file == "reference" or suite in alone else f"reference/{suite}"
            pieces.append(Piece(f"{file}/{suite}", file, 1 + seconds * speed * parameters / 1e9, reads))
    nodes = draw.choice([1, 1, 1, 2, 3, 4, 6, 8])
    network = draw.choice([1.25e9, 3e9, 12.5e9])
    cluster = Cluster(
        nodes,
        draw.choice([1, 2, 4, 8]),
        network=network,
        store=network * draw.choice([1, 2, 4, math.inf]),
        crash_every=draw.uniform(2, 48) * 3600,
        preempted_every=draw.uniform(2, 48) * 3600,
    )
    results = {f"reference/{suite}": draw.choice([0, 0, int(4e9)]) for suite in suites}
    return Work(tuple(pieces), sizes, results=results), cluster
