"""Whole sessions: a model is what its files hold, whatever they are called and whatever paths lead to them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.companions import COMPANIONS
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model


@pytest.mark.shared_cache
def test_a_folder_as_people_have_them(run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path) -> None:
    """A bad file with a good name, a link, a projector, a draft model: each is measured or named, none is replaced."""
    shutil.copy(llama_file, tmp_path / "random-F32.gguf")
    write_random_llama(tmp_path / "random-Q8_0.gguf", text=True, noise=1.0)
    write_random_llama(tmp_path / "a-draft-F32.gguf", text=True, n_layer=1)
    (tmp_path / "a-link.gguf").symlink_to("random-F32.gguf")
    COMPANIONS["projector"].write(tmp_path / "random-Q4_0.gguf")
    result = run_suite(f"--models={tmp_path}", "--gguf-quants=Q8_0", tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "reference: random-F32 (F32) is the reference: *of the 2 models of its vocabulary and shape;"
            " random-Q8_0 has the same, and came later. *",
            "candidates: a-draft-F32, random-Q8_0, random-Q8_0 (quantized here)",
            "note: random-Q4_0.gguf is left out: it is a projector of images or sound (*",
            "note: a-link.gguf is the same file as random-F32.gguf: it is measured once, as random-F32.",
            "note: random-Q8_0 is the name of a given file; the model quantized from random-F32 is called *",
            "note: a-draft-F32 is not compared with random-F32: a-draft-F32 is a model of *1 layers*2 layers*",
        ]
    )
    result.stdout.fnmatch_lines(["a-draft-F32 is not compared with random-F32: *1 layers of width 256*2 layers*"])
    run = read_run()
    verdicts = {(gate["model"], gate["verdict"]) for gate in run["gates"] if gate["metric"] == "kld_mean"}
    assert verdicts == {("random-Q8_0", "fail"), ("random-Q8_0 (quantized here)", "pass")}
    assert len([warning for warning in run["warnings"] if "left out" in warning or "not compared" in warning]) == 2


def test_other_bytes_are_measured_again(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    """Path, size and time of modification are the same, as reproducible images make them."""
    file = tmp_path / "candidate.gguf"
    arguments = [f"--models={os.path.relpath(file)}", f"--reference={llama_file}"]

    def measured(noise: float) -> float:
        write_random_llama(file, text=True, noise=noise)
        os.utime(file, (1, 1))
        run_suite(*arguments, tests="test_divergence.py")
        return next(float(row["value"]) for row in read_run()["estimates"] if row["metric"] == "kld_mean")

    assert measured(0.0) < 1e-5
    assert measured(1.0) > 0.1


@pytest.mark.shared_cache
def test_shapes_that_differ_are_compared_when_asked(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    pruned = write_random_llama(tmp_path / "pruned.gguf", text=True, n_layer=1)
    run_suite(f"--models={pruned}", f"--reference={llama_file}", tests="test_divergence.py")
    run = read_run()
    assert any(row["model"] == "pruned" and row["metric"] == "kld_mean" for row in run["estimates"])
    assert any("because --reference asks for it: pruned is a model of" in warning for warning in run["warnings"])


def test_what_is_no_model_ends_the_session_when_it_is_named(
    run_suite: RunSuite, llama_file: Path, tmp_path: Path
) -> None:
    adapter = COMPANIONS["adapter"].write(tmp_path / "model-Q8_0.gguf")
    result = run_suite(f"--models={llama_file},{adapter}", tests="test_file.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*model-Q8_0.gguf is not a model: model-Q8_0.gguf is an adapter (general.type is adapter).*"]
    )
