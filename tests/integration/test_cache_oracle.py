"""What suites/kv reports, against a llama in float64 numpy whose keys and values are rounded by gguf-py.

Nothing of the expected side comes from llama.cpp or from this harness: a row of a token is cut into blocks of 32 and
quantized, queries are rounded as the product with such keys needs it (8 bits), and all statistics are written out.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import hadamard

from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import Ladder, plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.kv.calls import CacheCost
from gguf_harness.measure.kv.cost_by_depth import Depth
from gguf_harness.metrics.records import Estimate
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.integration.live_oracle import Array
from tests.integration.pass_oracle import TINY, Expected, cut, expect, in_coarse_f32, in_f32, stored
from tests.random_llama import write_random_llama
from tests.rewritten import rewrite_gguf

pytestmark = pytest.mark.model

CONTEXT, WINDOWS = 64, 4
PAIRS = ("q8_0/q8_0", "q4_0/q8_0")


@dataclass(frozen=True, slots=True)
class Session:
    """Files with weights in F32, so that activations are not rounded: tiny, and tiny after Q4_0."""

    core: Core
    ladder: Ladder
    cost: CacheCost
    files: dict[str, Path]
    windows: NDArray[np.int32]

    def subject(self, name: str) -> Subject:
        (planned,) = (each for each in self.ladder.subjects if each.name == name)
        return self.core.subject(planned)

    def full(self, name: str) -> Subject:
        """The same file with a full cache."""
        (planned,) = (each for each in self.ladder.subjects if each.name == name)
        return self.core.subject(self.ladder.with_full_cache(planned))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("oracle")
    files = {
        "plain": rewrite_gguf(TINY, folder / "plain.gguf", in_f32),
        "coarse": rewrite_gguf(TINY, folder / "coarse.gguf", in_coarse_f32),
    }
    options = read_options(
        parse_command_line(
            f"--models={files['plain']},{files['coarse']}", f"--reference={files['plain']}",
            f"--gguf-kv={','.join(PAIRS)}", f"--gguf-cache={folder / 'cache'}", f"--gguf-ctx={CONTEXT}",
            f"--gguf-chunks={WINDOWS}",
        )
    )  # fmt: skip
    core, ladder = Core(options, SilentProgress()), plan_ladder(options)
    plain = core.subject(ladder.models[0])
    corpus = load_corpus("pydoc", held_out_topics=plain.info.held_out_topics)
    cost, first = CacheCost(core, Depth(core, corpus), ladder), core.subject(ladder.cached[0])
    measured = cost.by_depth(first, core.subject(ladder.with_full_cache(ladder.cached[0])))
    windows = cut(files["plain"], corpus.text, measured.candidate["window"], CONTEXT)
    yield Session(core, ladder, cost, files, windows)
    core.close()


@pytest.fixture(scope="module")
def expected(session: Session) -> dict[tuple[str, str], Expected]:
    return {
        (name, kinds): expect(file, session.windows, stored(kinds))
        for name, file in session.files.items()
        for kinds in ("f16/f16", *PAIRS)
    }


def _later(values: Array) -> Array:
    """Of the second half of each window, which llama-perplexity scores: positions CONTEXT / 2 on."""
    return values[:, CONTEXT // 2 - 1 :]


def _close(estimate: Estimate, by_window: Array, value: float, slope: float, rel: float, absolute: float = 0.0) -> None:
    """The value, and its error by the delta method from the means of windows.

    Args:
        estimate: what the suite reports.
        by_window: [windows] whose mean the value is a function of.
        value: expected.
        slope: derivative of that function.
        rel: tolerance of the value, relative; of its error a fifth.
        absolute: of both.
    """
    assert estimate.value == pytest.approx(value, rel=rel, abs=absolute), estimate.metric
    assert estimate.se == pytest.approx(abs(slope) * stats.sem(by_window), rel=0.2, abs=absolute), estimate.metric
    assert estimate.clusters == WINDOWS


@pytest.mark.parametrize("kinds", PAIRS)
@pytest.mark.parametrize("file", ["plain", "coarse"])
def test_cost_of_a_cache(session: Session, expected: dict[tuple[str, str], Expected], file: str, kinds: str) -> None:
    """Each token within what a key or value on the border between two steps changes; means to 2 %."""
    cached = session.subject(f"{file} [kv={kinds}]")
    tokens = session.cost.by_depth(cached, session.full(cached.name))
    want, full = expected[file, kinds], expected[file, "f16/f16"]
    kld, nll = (tokens.candidate[name].astype(np.float64) for name in ("kld", "nll"))
    assert np.corrcoef(want.kld(full).ravel(), kld.ravel())[0, 1] > 0.998
    assert np.median(np.abs(want.nll - nll)) < 1e-4
    found = {each.metric: each for each in session.cost.alone(cached, session.full(cached.name))}
    kld, same = _later(want.kld(full)), _later((want.top == full.top).astype(np.float64))
    change = _later(np.exp(-want.nll) - np.exp(-full.nll))
    loss = _later(want.nll - full.nll).mean(axis=1)
    _close(found["kv_kld"], kld.mean(axis=1), kld.mean(), 1.0, 0.02)
    assert found["kv_kld_p99"].value == pytest.approx(np.quantile(kld, 0.99), rel=0.1)
    _close(found["kv_same_top"], same.mean(axis=1), same.mean(), 1.0, 0.01)
    squares = (change**2).mean(axis=1)
    rms = math.sqrt(squares.mean())
    _close(found["kv_delta_p_rms"], squares, rms, 0.5 / rms, 0.02)
    ratio = math.exp(loss.mean())
    _close(found["kv_ppl_ratio"], loss, ratio, ratio, 3e-3, 1e-3)


@pytest.mark.parametrize("kinds", PAIRS)
def test_weights_and_cache_together(session: Session, expected: dict[tuple[str, str], Expected], kinds: str) -> None:
    reference = session.full(f"plain [kv={kinds}]")
    cached = session.subject(f"coarse [kv={kinds}]")
    found = {each.metric: each for each in session.cost.together(cached, session.full(cached.name), reference)}
    base = expected["plain", "f16/f16"]
    both, weights, cache = (expected[key] for key in (("coarse", kinds), ("coarse", "f16/f16"), ("plain", kinds)))
    total, alone = (_later(each.kld(base)).mean(axis=1) for each in (both, weights))
    _close(found["kv_total_kld"], total, total.mean(), 1.0, 0.01)
    _close(found["kv_weights_kld"], alone, alone.mean(), 1.0, 0.01)
    kld = total - alone - _later(cache.kld(base)).mean(axis=1)
    loss = _later(both.nll - weights.nll - cache.nll + base.nll).mean(axis=1)
    for name, windows in (("kld", kld), ("loss", loss)):
        interaction = found[f"kv_interaction_{name}"]
        _close(interaction, windows, windows.mean(), 1.0, 0.02, 2e-3)
        p_value = re.search(r"p = ([0-9.e-]+), t test over 4 windows", interaction.detail or "")
        assert p_value is not None
        assert float(p_value[1]) == pytest.approx(stats.ttest_1samp(windows, 0.0).pvalue, abs=0.05)
    # The reference's own weights cost nothing: both together is the cache.
    own = session.subject(f"plain [kv={kinds}]")
    (alone_there,) = session.cost.together(own, reference, reference)
    assert (alone_there.metric, alone_there.value) == ("kv_total_kld", session.cost.alone(own, reference)[0].value)


@pytest.mark.parametrize("kinds", PAIRS)
def test_cost_by_depth(session: Session, expected: dict[tuple[str, str], Expected], kinds: str) -> None:
    """Octaves by hand; slopes of each window by scipy, then their mean."""
    cached = session.subject(f"coarse [kv={kinds}]")
    found = session.cost.by_depth(cached, session.full(cached.name))
    want, full = expected["coarse", kinds], expected["coarse", "f16/f16"]
    kld, loss = want.kld(full), want.nll - full.nll
    octaves = [[1], [2, 3], range(4, 8), range(8, 16), range(16, 32), range(32, 63)]
    names = ["1", "2-3", "4-7", "8-15", "16-31", "32-62"]
    told = {(each.metric, each.place.part): each for each in found.buckets}
    for name, positions in zip(names, octaves, strict=True):
        columns = [position - 1 for position in positions]
        windows = kld[:, columns].mean(axis=1)
        _close(told["kld_by_position", name], windows, windows.mean(), 1.0, 0.04)
        same = (want.top == full.top)[:, columns].astype(np.float64).mean(axis=1)
        _close(told["same_top_by_position", name], same, same.mean(), 1.0, 0.01)
        ratio = math.exp(loss[:, columns].mean())
        _close(told["ppl_ratio_by_position", name], loss[:, columns].mean(axis=1), ratio, ratio, 2e-3, 1e-3)
        squares = ((np.exp(-want.nll) - np.exp(-full.nll))[:, columns] ** 2).mean(axis=1)
        rms = math.sqrt(squares.mean())
        _close(told["delta_p_rms_by_position", name], squares, rms, 0.5 / rms, 0.04)
    log2 = np.log2(np.arange(16, 63))
    for name, values in (("nll_slope", loss), ("kld_slope", kld)):
        rises = np.array([stats.linregress(log2, window[15:]).slope for window in values])
        (slope,) = (each for each, _ in found.slopes if each.metric == name)
        _close(slope, rises, rises.mean(), 1.0, 0.03, 2e-4)


@pytest.mark.parametrize("kinds", ["q4_0/q4_0", "q4_0/q4_0+norot"])
def test_a_rotated_cache(tmp_path: Path, kinds: str) -> None:
    """Heads of 64 values: llama.cpp turns them by a Walsh-Hadamard matrix before it rounds them, unless told not to."""
    file = write_random_llama(tmp_path / "wide.gguf", text=True)
    options = read_options(
        parse_command_line(
            f"--models={file}", f"--gguf-kv={kinds}", f"--gguf-cache={tmp_path / 'cache'}", f"--gguf-ctx={CONTEXT}",
            f"--gguf-chunks={WINDOWS}",
        )
    )  # fmt: skip
    ladder, corpus = plan_ladder(options), load_corpus("pydoc")
    with contextlib.closing(Core(options, SilentProgress())) as core:
        (cached,) = ladder.cached
        found = Depth(core, corpus)(core.subject(cached), core.subject(ladder.with_full_cache(cached))).candidate
    windows = cut(file, corpus.text, found["window"], CONTEXT, start=None)
    turn = hadamard(64) / 8 if kinds == "q4_0/q4_0" else np.eye(64)
    # The other way is farther from what is measured than this one.
    full, want, other = (
        expect(file, windows, rounded)
        for rounded in (stored("f16/f16"), stored("q4_0/q4_0", turn), stored("q4_0/q4_0", hadamard(64) / 8 @ turn))
    )
    measured = found["kld"].astype(np.float64)
    assert np.corrcoef(want.kld(full).ravel(), measured.ravel())[0, 1] > 0.995
    assert measured.mean() == pytest.approx(want.kld(full).mean(), rel=0.02)
    assert np.corrcoef(other.kld(full).ravel(), measured.ravel())[0, 1] < 0.95
