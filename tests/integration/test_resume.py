"""A pass that is killed goes on where it was, and ends in the same numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import EngineCrashed, StoreError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.measure.passes import decoding
from gguf_harness.measure.passes.decoding import CODES_FILE, Progress
from gguf_harness.measure.passes.observers import ReferenceObserver
from gguf_harness.measure.passes.tasks import (
    CorpusText,
    PassRequest,
    run_candidate_pass,
    run_reference_pass,
)
from gguf_harness.store.arrays import Arrays, load_arrays, save_arrays
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

WINDOWS, KILLED_AT = 12, 6
SETTINGS = SessionSettings(n_ctx=64, n_batch=128, threads=2)


def _die_in_the_middle(worker: WorkerContext) -> None:
    """From here on, save after each group of windows, and die when the seventh window is reached."""
    decoding._SAVE_EVERY_S = -1.0  # type: ignore[misc]
    report = worker.progress

    def progress(done: int, total: int) -> None:
        report(done, total)
        if done > KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    worker.progress = progress  # type: ignore[method-assign]


def killed_reference(worker: WorkerContext, request: PassRequest) -> Arrays:
    _die_in_the_middle(worker)
    return run_reference_pass(worker, request, True, 10**9)


def killed_candidate(worker: WorkerContext, request: PassRequest, reference: Path) -> Arrays:
    _die_in_the_middle(worker)
    return run_candidate_pass(worker, request, reference, reference / "arrays.npz")


def _request(file: Path, folder: Path) -> PassRequest:
    corpus = load_corpus("pydoc")
    return PassRequest("m", (file,), SETTINGS, CorpusText(corpus.name, corpus.text[:9000]), WINDOWS, folder)


def _same(first: Arrays, second: Arrays) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_a_killed_pass_resumes(llama_file: Path, tmp_path: Path) -> None:
    candidate = write_random_llama(tmp_path / "candidate.gguf", noise=0.2)
    seen: list[int] = []

    def progress(done: int, _: int) -> None:
        seen.append(done)

    with Worker("m", tmp_path / "log") as worker:
        whole, killed = _request(llama_file, tmp_path / "whole"), _request(llama_file, tmp_path / "killed")
        expected = worker.call(run_reference_pass, None, whole, True, 10**9)
        with pytest.raises(EngineCrashed, match="died of SIGKILL"):
            worker.call(killed_reference, None, killed)
        assert load_arrays(killed.folder / "partial.npz")["done"].item() == KILLED_AT
        resumed = worker.call(run_reference_pass, progress, killed, True, 10**9)
        assert seen[0] == KILLED_AT
        assert _same(resumed, expected)
        codes = [np.fromfile(request.folder / CODES_FILE, dtype=np.uint16) for request in (whole, killed)]
        assert (codes[0] == codes[1]).all()
        assert not (killed.folder / "partial.npz").exists()

        save_arrays(killed.folder / "arrays.npz", resumed)
        arguments = (killed.folder, killed.folder / "arrays.npz")
        expected = worker.call(run_candidate_pass, None, _request(candidate, tmp_path / "whole-candidate"), *arguments)
        again = _request(candidate, tmp_path / "killed-candidate")
        with pytest.raises(EngineCrashed):
            worker.call(killed_candidate, None, again, killed.folder)
        seen.clear()
        assert _same(worker.call(run_candidate_pass, progress, again, *arguments), expected)
        assert seen[0] == KILLED_AT


def test_progress_whose_log_probabilities_are_gone_is_not_taken_over(llama_file: Path, tmp_path: Path) -> None:
    request = _request(llama_file, tmp_path / "pass")
    kept = {name: np.ones((WINDOWS, 31), kind) for name, kind in (("nll", np.float64), ("top", np.int32))}
    kept |= {name: np.ones((WINDOWS, 31), np.float32) for name in ("scale", "total")}
    save_arrays(request.folder / "partial.npz", {**kept, "done": np.array([2]), "key": np.array([""])})
    seen: list[int] = []
    with Worker("m", tmp_path / "log") as worker:
        arrays = worker.call(run_reference_pass, lambda done, _: seen.append(done), request, True, 10**9)
    assert seen[0] == 0
    assert (arrays["nll"][:2] != 1).all()


NLL, TOP, DONE = np.ones((3, 2)), np.ones((3, 2), np.int32), np.array([2])


@pytest.mark.parametrize(
    ("stored", "done"),
    [
        ({"nll": NLL, "top": TOP, "done": DONE, "key": np.array(["mine"])}, 2),
        ({"nll": NLL, "top": TOP, "done": DONE, "key": np.array(["of another"])}, 0),
        ({"nll": NLL, "top": TOP, "done": DONE}, 0),
        ({"nll": NLL, "top": TOP, "key": np.array(["mine"])}, 0),
        ({"nll": NLL, "done": DONE, "key": np.array(["mine"])}, 0),
        ({"nll": NLL[:2], "top": TOP, "done": DONE, "key": np.array(["mine"])}, 0),
        ({"nll": NLL.astype(np.float32), "top": TOP, "done": DONE, "key": np.array(["mine"])}, 0),
        ({"nll": NLL, "top": TOP, "done": np.array([1, 2]), "key": np.array(["mine"])}, 0),
        (b"damaged", 0),
        (b"", 0),
        (None, 0),
    ],
    ids=range(11),
)
def test_progress_of_another_pass_is_not_taken_over(stored: Arrays | bytes | None, done: int, tmp_path: Path) -> None:
    partial, observer = tmp_path / "partial.npz", ReferenceObserver((3, 2), 4, 1, 1, None)
    if isinstance(stored, bytes):
        partial.write_bytes(stored)
    elif stored is not None:
        save_arrays(partial, stored)
    assert Progress(tmp_path, "mine").resume(observer) == done
    assert (observer.arrays["nll"] == (1 if done else 0)).all()


def test_damaged_log_probabilities_are_noticed(llama_file: Path, tmp_path: Path) -> None:
    request = _request(llama_file, tmp_path / "reference")
    with Worker("m", tmp_path / "log") as worker:
        save_arrays(request.folder / "arrays.npz", worker.call(run_reference_pass, None, request, True, 10**9))
        codes = np.memmap(request.folder / CODES_FILE, dtype=np.uint16, mode="r+")
        codes[len(codes) // 2 : len(codes) // 2 + 4096] = 0
        again = _request(llama_file, tmp_path / "candidate")
        with pytest.raises(StoreError, match="stored log-probabilities of window 6 are damaged"):
            worker.call(run_candidate_pass, None, again, request.folder, request.folder / "arrays.npz")
