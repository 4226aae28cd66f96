"""A pass that scores every position: the usual one is its second half, and the two are kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.measure.core import Core
from gguf_harness.measure.kv.cost_by_depth import Depth
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.measure.passes.tasks import CorpusText, PassRequest, reference_shape
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model


def test_the_second_half_of_each_window_is_the_usual_pass(llama_file: Path, tmp_path: Path) -> None:
    other = write_random_llama(tmp_path / "other.gguf", noise=0.05)
    text = tmp_path / "text.txt"
    text.write_bytes(load_corpus("pydoc").text[:6000])
    models = [f"--models={llama_file},{other}", f"--reference={llama_file}", f"--gguf-corpus={text}"]
    options = read_options(
        parse_command_line(*models, "--gguf-ctx=64", "--gguf-chunks=4", f"--gguf-cache={tmp_path / 'cache'}")
    )
    core = Core(options, SilentProgress())
    try:
        plain, candidate = (core.subject(planned) for planned in plan_ladder(options).models)
        corpus = load_corpus(str(text))
        usual = CorpusPass(core, corpus).candidate(candidate, plain)
        found = Depth(core, corpus)(candidate, plain)
        assert (usual["kld"].shape, found.candidate["kld"].shape) == ((4, 31), (4, 62))
        half = found.second_half
        assert set(half.candidate) == set(usual)
        for name, values in usual.items():
            assert half.candidate[name] == pytest.approx(values, rel=1e-9, abs=1e-9), name
        base = CorpusPass(core, corpus).reference(plain, logprobs=True)
        assert half.reference["nll"] == pytest.approx(base["nll"], rel=1e-9)
        assert {each.place.part for each in found.buckets} == {"1", "2-3", "4-7", "8-15", "16-31", "32-62"}

        itself = Depth(core, corpus)(plain, plain)
        assert (itself.candidate["nll"] == itself.reference["nll"]).all()
        (slope, p_value), *_ = itself.slopes
        assert (slope.value, slope.se, p_value) == (0, 0, 1)
        same = [each.value for each in itself.buckets if each.metric == "same_top_by_position"]
        assert set(same) == {1.0}
    finally:
        core.close()


@pytest.mark.parametrize(("score_from", "scored"), [(None, 31), (0, 63), (1, 62), (40, 23)])
def test_room_is_made_for_what_is_scored(llama_file: Path, tmp_path: Path, score_from: int | None, scored: int) -> None:
    text = CorpusText("text", load_corpus("pydoc").text[:6000])
    request = PassRequest("m", (llama_file,), SessionSettings(n_ctx=64), text, 4, tmp_path, score_from=score_from)
    with Worker("model", tmp_path / "log") as worker:
        windows, found, vocabulary = worker.call(reference_shape, None, request)
    assert (windows, found) == (4, scored)
    assert vocabulary > np.int64(1)
