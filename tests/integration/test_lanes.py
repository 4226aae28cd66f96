"""Contexts side by side: the numbers of one, and the errors of any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_harness.engine.context import Context, LogitsBlock
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import StoreError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.measure.passes import tasks as passes
from gguf_harness.measure.passes.decoding import CODES_FILE
from gguf_harness.measure.passes.observers import ReferenceObserver
from gguf_harness.measure.passes.tasks import (
    CorpusText,
    PassRequest,
    run_candidate_pass,
    run_reference_pass,
)
from gguf_harness.store.arrays import Arrays, save_arrays
from tests.devices import near
from tests.loaded import open_context

pytestmark = pytest.mark.model

WINDOWS = 11  # the last group is smaller than the others


def _request(file: Path, folder: Path, threads: int, windows: int = WINDOWS) -> PassRequest:
    corpus = load_corpus("pydoc")
    settings = SessionSettings(n_ctx=64, n_batch=256, threads=threads)
    return PassRequest("m", (file,), settings, CorpusText(corpus.name, corpus.text[:9000]), windows, folder)


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_numbers_are_those_of_one_context(llama_file: Path, tmp_path: Path, threads: int) -> None:
    found: list[tuple[Arrays, Arrays, bytes]] = []
    with Worker("m", tmp_path / "log") as worker:
        for count in (1, threads):
            folder = tmp_path / str(count)
            base = worker.call(run_reference_pass, None, _request(llama_file, folder, count), True, 10**9)
            save_arrays(folder / "arrays.npz", base)
            request = _request(llama_file, tmp_path / f"{count}-candidate", count)
            arrays = worker.call(run_candidate_pass, None, request, folder, folder / "arrays.npz")
            found.append((base, arrays, (folder / CODES_FILE).read_bytes()))
    for first, second in zip(found[0][:2], found[1][:2], strict=True):
        assert first.keys() == second.keys()
        assert all((first[name] == second[name]).all() for name in first)
    assert found[0][2] == found[1][2]


def fail_in_a_lane(worker: WorkerContext, request: PassRequest, seen: Path) -> Arrays:
    """A pass in which the block of one window fails."""

    class Failing(ReferenceObserver):
        def observe(self, block: LogitsBlock) -> None:
            with seen.open("a") as file:
                file.write(f"{block.window}\n")
            if block.window == 3:
                raise StoreError("window 3 cannot be stored")
            super().observe(block)

    passes.ReferenceObserver = Failing  # type: ignore[attr-defined]
    return run_reference_pass(worker, request, False, 10**9)


def test_an_error_in_a_lane_ends_the_pass_and_leaves_the_worker_usable(llama_file: Path, tmp_path: Path) -> None:
    many = 120
    request = _request(llama_file, tmp_path / "pass", 4, many)
    with Worker("m", tmp_path / "log") as worker:
        with pytest.raises(StoreError, match="window 3 cannot be stored"):
            worker.call(fail_in_a_lane, None, request, tmp_path / "seen")
        pid = worker.pid
        seen = {int(line) for line in (tmp_path / "seen").read_text().split()}
        assert 3 in seen
        assert len(seen) < many
        with pytest.raises(StoreError):
            worker.call(fail_in_a_lane, None, request, tmp_path / "seen")
        assert worker.pid == pid


def test_another_context_outlives_nothing_of_the_first(llama_file: Path) -> None:
    tokens = np.arange(40, dtype=np.int32)
    with open_context([llama_file], SessionSettings(n_ctx=64)) as context:
        expected = context.logits(tokens)
        for _ in range(2):
            with Context(context.model, context.settings) as other:
                assert (other.logits(tokens) == expected).all()
        assert (context.logits(tokens) == expected).all()


@pytest.mark.parametrize("rows", [1, 40, 100])
def test_numbers_do_not_depend_on_how_many_logits_a_batch_may_keep(llama_file: Path, rows: int) -> None:
    """Fewer windows share a batch, and a window is cut where a physical batch ends."""
    settings = SessionSettings(n_ctx=128, n_batch=256, n_ubatch=32)
    with open_context((llama_file,), settings) as context:
        tokens = context.model.tokenize(load_corpus("pydoc").text[:4000])
        windows = tokens[: 3 * 128].reshape(3, 128).astype(np.int32)

        def logits(most_bytes: int) -> tuple[int, dict[int, np.ndarray]]:
            found: dict[int, list[np.ndarray]] = {}
            largest = 0
            for block in context.score(windows, most_bytes=most_bytes):
                assert block.row == sum(map(len, found.get(block.window, [])))
                found.setdefault(block.window, []).append(block.logits.copy())
                largest = max(largest, len(block.logits))
            return largest, {window: np.concatenate(parts) for window, parts in found.items()}

        _, whole = logits(10**9)
        largest, parts = logits(4 * rows * context.model.vocabulary.n_tokens)
    assert largest <= max(rows, settings.n_ubatch)
    assert whole.keys() == parts.keys() == {0, 1, 2}
    for window, values in whole.items():
        assert values.shape == (63, values.shape[1])
        assert parts[window] == pytest.approx(values, abs=near(1e-4, "logits"), rel=1e-4), window
