"""Windows in any order have the same values; one order serves all passes, those that stop early included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings, WindowOrder
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.judge.gates import early_limits, load_gates
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.measure.passes.tasks import CorpusText, PassRequest, run_candidate_pass, run_reference_pass
from gguf_harness.metrics.windows import WindowLimit, decided_so_far
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import save_arrays
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

WINDOWS = 24


@pytest.mark.parametrize("threads", [1, 2])
def test_windows_are_the_same_in_any_order(llama_file: Path, tmp_path: Path, threads: int) -> None:
    text = load_corpus("pydoc").text[:9000]
    candidate = write_random_llama(tmp_path / "candidate.gguf", noise=0.05)
    settings = SessionSettings(n_ctx=64, n_batch=128, threads=threads)

    def request(file: Path, name: str) -> PassRequest:
        order: WindowOrder = "first" if name == "in order" else "sampled"
        corpus = CorpusText("pydoc", text)
        return PassRequest(name, (file,), settings, corpus, WINDOWS, tmp_path / name, order=order)

    reference = tmp_path / "reference"
    with Worker("reference", tmp_path / "log") as worker:
        base = worker.call(run_reference_pass, None, request(llama_file, "reference"), True, 10**9)
        in_order = worker.call(run_reference_pass, None, request(llama_file, "in order"), False, 10**9)
    window: NDArray[np.int64] = base["window"].astype(np.int64)
    assert sorted(set(window)) != list(range(WINDOWS))
    assert (in_order["window"] == np.arange(WINDOWS)).all()
    assert in_order["available"].item() == base["available"].item() > WINDOWS
    both = window < WINDOWS
    assert 0 < both.sum() < WINDOWS
    for name in ("nll", "tokens"):
        assert in_order[name][window[both]] == pytest.approx(base[name][both], rel=1e-4, abs=1e-6), name
    save_arrays(reference / "arrays.npz", base)
    never = (WindowLimit("kld_mean", -1e-300, 0.95, "never"), WindowLimit("ppl", 0.0, 0.95, "at once"))
    soon = (WindowLimit("kld_mean", 1000.0, 0.95, "soon"),)
    with Worker("candidate", tmp_path / "log") as worker:

        def measure(name: str, limits: tuple[WindowLimit, ...]) -> dict[str, np.ndarray]:
            place = reference / "arrays.npz"
            arrays = worker.call(run_candidate_pass, None, request(candidate, name), reference, place, limits)
            return {key: np.asarray(array) for key, array in arrays.items()}

        whole, early = measure("whole", ()), measure("early", soon)
        assert (whole["window"] == window).all()
        done = len(early["nll"])
        assert 4 <= done <= 12
        for name, values in whole.items():
            assert early[name] == pytest.approx(values[:done], rel=1e-4, abs=1e-6), name
        # Limits that are decided by the bounds of the values still leave two windows, for an error to exist.
        assert len(measure("at once", never)["nll"]) == 2
        assert not list(tmp_path.glob("*/partial.npz"))


def test_tiny_is_decided_with_a_quarter_of_the_tokens(tmp_path: Path) -> None:
    """The built-in gates, of a candidate that is clearly good and one that is clearly bad."""
    arguments = ["--models=tiny", "--gguf-quants=Q8_0,Q2_K", f"--gguf-cache={tmp_path}", "--gguf-until-decided"]
    arguments += ["--gguf-ctx=256", "--gguf-chunks=all"]
    options = read_options(parse_command_line(*arguments))
    core, plan = Core(options, SilentProgress()), plan_ladder(options)
    try:
        reference, *candidates = (core.subject(planned) for planned in plan.models)
        corpus = load_corpus("pydoc", held_out_topics=reference.info.held_out_topics)
        limits = early_limits(load_gates(None).values())
        base = CorpusPass(core, corpus).reference(reference, logprobs=True)
        for model, outcome in zip(candidates, ("pass", "fail"), strict=True):
            arrays = CorpusPass(core, corpus, limits=limits).candidate(model, reference)
            assert len(arrays["nll"]) < len(base["nll"]) / 4
            same = {name: base[name][: len(arrays["nll"])] for name in ("nll", "top")}
            decisions = decided_so_far(limits, arrays, same)
            assert len(decisions) == 4
            outcomes = [decision.outcome if decision else None for decision in decisions.values()]
            # One failure is enough: then it does not matter what the other gates would say.
            assert set(outcomes) - ({None} if outcome == "fail" else set()) == {outcome}, model.name
    finally:
        core.close()
