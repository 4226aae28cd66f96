"""By position on `tiny`: a fault that begins with distance is found, and a file that is the same is not accused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.inputs.corpora import Corpus, load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.kv.cost_by_depth import ByDepth, Depth
from gguf_harness.metrics.by_position import FIRST_POSITION, SLOPE_FROM, growth_p_value, slope
from gguf_harness.metrics.stats import as_estimate
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.rewritten import rewrite_gguf

pytestmark = pytest.mark.model

WINDOWS = 24
LEVEL = 0.05
RESAMPLES = 1000
_MARGIN = 3 * math.sqrt(LEVEL * (1 - LEVEL) / RESAMPLES)
"""Three standard errors of a share of 5 % of so many."""
TINY = Path(__file__).parents[2] / "fixtures" / "data" / "tiny-F16.gguf"


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    folder = tmp_path_factory.mktemp("depth")
    # The base of its rotary positions is 10000.
    fault = rewrite_gguf(TINY, folder / "fault.gguf", lambda _, values: values, metadata={"llama.rope.freq_base": 5e3})
    copied = rewrite_gguf(TINY, folder / "copied.gguf", lambda _, values: values)
    models = [f"--models={TINY},{fault},{copied}", f"--reference={TINY}", f"--gguf-cache={folder / 'cache'}"]
    options = read_options(parse_command_line(*models, "--gguf-ctx=512", f"--gguf-chunks={WINDOWS}"))
    core = Core(options, SilentProgress())
    yield core
    core.close()


@pytest.fixture(scope="module")
def subjects(core: Core) -> dict[str, Subject]:
    return {planned.name: core.subject(planned) for planned in plan_ladder(core.options).models}


@pytest.fixture(scope="module")
def corpus(subjects: dict[str, Subject]) -> Corpus:
    return load_corpus("pydoc", held_out_topics=subjects["tiny-F16"].info.held_out_topics)


@pytest.fixture(scope="module")
def depth(core: Core, corpus: Corpus) -> Depth:
    return Depth(core, corpus)


def _p_values(found: ByDepth) -> dict[str, float]:
    return {estimate.metric: p_value for estimate, p_value in found.slopes}


def test_a_planted_fault_of_positions_is_found(depth: Depth, subjects: dict[str, Subject]) -> None:
    found = depth(subjects["fault"], subjects["tiny-F16"])
    assert found.candidate["kld"].shape == (WINDOWS, 510)
    assert _p_values(found)["nll_slope"] < 1e-4
    assert _p_values(found)["kld_slope"] < 1e-6
    kld = {each.place.part: each.value for each in found.buckets if each.metric == "kld_by_position"}
    assert list(kld) == ["1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128-255", "256-510"]
    assert list(kld.values()) == sorted(kld.values())
    assert kld["256-510"] > 2 * kld["64-127"]


def test_a_copy_decoded_in_other_batches_is_not_flagged(depth: Depth, subjects: dict[str, Subject]) -> None:
    """The file is the same but for its name: what differs is the order of llama.cpp's sums."""
    plain, copied = subjects["tiny-F16"], subjects["copied"]
    assert copied.files != plain.files
    found = depth(replace(copied, settings=replace(copied.settings, n_ubatch=64)), plain)
    assert 0 < np.abs(_losses(found)).mean() < 0.01
    assert _flagged(_losses(found)) <= LEVEL + _MARGIN


def test_a_cache_that_costs_the_same_at_every_depth_is_not_flagged(depth: Depth, subjects: dict[str, Subject]) -> None:
    """Differences of a size that matters: a cache of 8 bits."""
    plain, copied = subjects["tiny-F16"], subjects["copied"]
    found = depth(replace(copied, settings=replace(copied.settings, cache_type_k="q8_0", cache_type_v="q8_0")), plain)
    differences = _losses(found)
    assert 0.001 < np.abs(differences).mean() < 0.1
    assert 0.005 < _flagged(differences) <= LEVEL + _MARGIN
    # As it is, the cache costs nothing that grows.
    assert _p_values(found)["nll_slope"] > LEVEL


def _losses(found: ByDepth) -> NDArray[np.float64]:
    """[windows, positions from where slopes are taken on] of the loss against the reference's."""
    nll, base = (tokens["nll"].astype(np.float64) for tokens in (found.candidate, found.reference))
    return np.asarray((nll - base)[:, SLOPE_FROM - FIRST_POSITION :])


def _flagged(differences: NDArray[np.float64]) -> float:
    """Share of resamples of windows in which the loss is said to rise with depth, where by construction it does not.

    In each window that is drawn, it is drawn as well which of the two runs is called the reference. So the truth is
    zero, whatever the text does with depth, and the differences are those that these runs have.
    """
    numbers, flags = np.random.default_rng(0), 0
    for _ in range(RESAMPLES):
        some = differences[numbers.integers(0, len(differences), len(differences))]
        swapped = some * numbers.choice([-1.0, 1.0], (len(some), 1))
        flags += growth_p_value(as_estimate("nll_slope", slope(swapped, SLOPE_FROM))) < LEVEL
    return flags / RESAMPLES
