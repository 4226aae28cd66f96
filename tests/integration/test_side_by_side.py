"""A reference and a candidate in step: the numbers of the stored way, no memory that grows, no hang, nothing left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.shared_rows import make_shared_rows
from gguf_harness.engine.worker import Call, Worker, call_together
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import EngineCrashed, EngineError, EngineTimeout, HarnessError, PeerGone, VocabularyMismatch
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.sources import TINY_FILE
from gguf_harness.measure.passes import decoding, side_by_side
from gguf_harness.measure.passes.side_by_side import compare_side_by_side, reference_part
from gguf_harness.measure.passes.tasks import CorpusText, PassRequest, run_candidate_pass, run_reference_pass
from gguf_harness.metrics.codec import LEVELS
from gguf_harness.metrics.divergence import DivergenceKernel
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from gguf_harness.metrics.windows import WindowLimit
from gguf_harness.store.arrays import Arrays, load_arrays, save_arrays
from tests.loaded import open_context
from tests.random_llama import write_random_llama
from tests.side_by_side_tasks import follow_and_note, lead_and_note, measured_peaks

pytestmark = pytest.mark.model

WINDOWS = 7
SETTINGS = SessionSettings(n_ctx=64, n_batch=128, n_ubatch=64, threads=2)
LONG = SessionSettings(n_ctx=256, n_batch=64, n_ubatch=32, threads=2)


@pytest.fixture(scope="module")
def candidate_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("candidate") / "candidate.gguf", noise=0.2)


def _request(file: Path, folder: Path, settings: SessionSettings = SETTINGS, chunks: int = WINDOWS) -> PassRequest:
    corpus = load_corpus("pydoc")
    text = CorpusText(corpus.name, corpus.text[: 20 * settings.n_ctx * chunks])
    return PassRequest(file.stem, (file,), settings, text, chunks, folder, key="k")


@pytest.fixture
def together(llama_file: Path, candidate_file: Path, tmp_path: Path) -> Iterator[Callable[..., Arrays]]:
    """`together(settings, limits)`: the pass of the candidate beside the reference."""
    with Worker("candidate", tmp_path / "candidate.log") as worker:

        def run(
            settings: SessionSettings = SETTINGS,
            limits: tuple[WindowLimit, ...] = (),
            *,
            show: Callable[[int, int], None] = lambda _done, _total: None,
            timeout_s: float = 60.0,
            reference: SessionSettings | None = None,
        ) -> Arrays:
            return compare_side_by_side(
                show,
                _request(candidate_file, tmp_path / "side", settings),
                _request(llama_file, tmp_path / "unused", reference or settings),
                lambda: Worker("reference", tmp_path / "reference.log"),
                lambda: worker,
                limits,
                timeout_s,
            )

        yield run


@pytest.mark.parametrize("settings", [SETTINGS, LONG], ids=["several windows a batch", "several batches a window"])
def test_it_is_the_stored_way_without_the_codec(
    together: Callable[..., Arrays],
    llama_file: Path,
    candidate_file: Path,
    tmp_path: Path,
    settings: SessionSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Blocks that end anywhere in a batch: 7 rows at a time.
    size = side_by_side._rows
    monkeypatch.setattr(side_by_side, "_rows", lambda *args: replace(size(*args), rows=7))
    arrays = together(settings)
    folder = tmp_path / "reference"
    with Worker("stored", tmp_path / "log") as worker:
        base = worker.call(run_reference_pass, None, _request(llama_file, folder, settings), True, 10**9)
        save_arrays(folder / "arrays.npz", base)
        request = _request(candidate_file, tmp_path / "stored", settings)
        stored = worker.call(run_candidate_pass, None, request, folder, folder / "arrays.npz")
    assert {*arrays} == {*stored, "nll_reference", "top_reference", "tokens", "reference"}
    for name in ("window", "available", "top", "in_top5"):
        assert (arrays[name] == stored[name]).all(), name
    assert arrays["nll"] == pytest.approx(stored["nll"], abs=1e-9)
    part = reference_part(arrays)
    for name in ("nll", "top", "tokens", "window", "available"):
        assert (part[name] == base[name]).all(), name
    exact = _exactly(llama_file, candidate_file, arrays["tokens"].astype(np.int32), settings)
    for name in ("kld", "kld_reverse"):
        assert np.abs(arrays[name].astype(float) - exact[f"{name}_kernel"]).max() < 1e-9, name
        assert arrays[name] == pytest.approx(exact[name], rel=1e-4, abs=2e-6), name
    off = np.abs(arrays["kld"].astype(float) - stored["kld"].astype(float))
    assert (off <= 1.05 * exact["codec"] + 2e-6).all()


def _exactly(reference: Path, candidate: Path, tokens: Any, settings: SessionSettings) -> dict[str, Any]:
    """KL from whole logits that were kept: by the kernel from float32 rows, and in float64 by its definition."""
    logits = []
    for file in (reference, candidate):
        with open_context((file,), decoding.in_one_context(settings)) as context:
            windows: list[list[Any]] = [[] for _ in tokens]
            for block in context.score(tokens):
                windows[block.window].append(block.logits.copy())
        logits.append(np.stack([np.concatenate(parts) for parts in windows]))
    p, q = (log_softmax(each) for each in logits)
    drop = -(logits[0] - logits[0].max(axis=-1, keepdims=True)).astype(float)
    scale = np.sqrt(drop.max(axis=-1, keepdims=True)) / LEVELS
    error = scale * np.sqrt(drop) + scale**2 / 4
    forward = (np.exp(p) * (p - q)).sum(axis=-1)
    rows, kernel = logits[0] - logits[0].max(axis=-1, keepdims=True), DivergenceKernel(logits[0].shape[-1])
    values = np.array(
        [[kernel(rows[w, t], logits[1][w, t]).values for t in range(rows.shape[1])] for w in range(len(rows))]
    )
    return {
        "kld": forward,
        # What the codec may change, to first order: sum p e (ln(p/q) - KL), with its bound of each entry's error e.
        "codec": (np.exp(p) * error * np.abs(p - q - forward[..., None])).sum(axis=-1),
        "kld_reverse": (np.exp(q) * (q - p)).sum(axis=-1),
        "kld_kernel": values[..., 0],
        "kld_reverse_kernel": values[..., 1],
    }


def test_both_sides_may_be_run_in_different_batches(together: Callable[..., Arrays]) -> None:
    same = together()
    other = together(replace(SETTINGS, n_batch=64, n_ubatch=32), reference=SETTINGS)
    # Other physical batches round otherwise.
    assert other["kld"].astype(float).mean() == pytest.approx(same["kld"].astype(float).mean(), rel=0.01)
    assert (other["window"] == same["window"]).all()


def test_one_decodes_at_a_time(
    together: Callable[..., Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "lead", lead_and_note)
    monkeypatch.setattr(side_by_side, "follow", follow_and_note)
    together(LONG)
    decodes = [load_arrays(tmp_path / side / "decodes.npz")["times"].reshape(-1, 2) for side in ("side", "unused")]
    assert len(decodes[0]) == len(decodes[1]) >= 4 * WINDOWS
    start, end = np.sort(np.concatenate(decodes), axis=0).T
    assert (start[1:] >= end[:-1]).all()


def test_it_stops_when_all_is_decided(together: Callable[..., Arrays]) -> None:
    limits = (WindowLimit("kld_mean", -1e-300, 0.95, "never"), WindowLimit("ppl", 0.0, 0.95, "at once"))
    arrays = together(limits=limits)
    assert len(arrays["nll"]) == 2
    assert arrays["planned"].item() == WINDOWS
    assert len(reference_part(arrays)["tokens"]) == 2


def _die_after(windows: int, worker: WorkerContext) -> None:
    decoding._SAVE_EVERY_S = -1.0  # type: ignore[misc]
    report = worker.progress

    def progress(done: int, total: int) -> None:
        report(done, total)
        if done > windows:
            os.kill(os.getpid(), signal.SIGKILL)

    worker.progress = progress  # type: ignore[method-assign]


def _dying_lead(worker: WorkerContext, *args: Any) -> Arrays:
    _die_after(4, worker)
    return side_by_side.lead(worker, *args)


def _dying_follow(worker: WorkerContext, request: PassRequest, windows: Any, size: Any) -> None:
    class Dying(side_by_side._SharingObserver):
        def observe(self, block: Any) -> None:
            if block.window > 3:
                os.kill(os.getpid(), signal.SIGKILL)
            super().observe(block)

    side_by_side._SharingObserver = Dying  # type: ignore[misc]
    side_by_side.follow(worker, request, windows, size)


def _stuck_follow(worker: WorkerContext, *_: object) -> None:
    handles = worker.handles(2)
    time.sleep(600)
    del handles


def _shared_memory() -> list[str]:
    """Shared memory that this process has, and what has a name in /dev/shm."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    names = [line for line in (*maps.splitlines(), *links) if "gguf-harness-rows" in line]
    return [*names, *(path.name for path in Path("/dev/shm").glob("*gguf*"))]  # noqa: S108 - where a name would be


@pytest.mark.parametrize(
    ("task", "dying", "label"), [("lead", _dying_lead, "candidate"), ("follow", _dying_follow, "reference")]
)
def test_a_killed_worker_is_one_message_and_the_pass_goes_on_where_it_was(
    together: Callable[..., Arrays],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    task: str,
    dying: Callable[..., object],
    label: str,
) -> None:
    whole = together(replace(SETTINGS, threads=1))
    with monkeypatch.context() as patch:
        patch.setattr(side_by_side, task, dying)
        patch.setattr(decoding, "_SAVE_EVERY_S", -1.0)
        begun = time.monotonic()
        with pytest.raises(EngineCrashed, match=f"{label}: the worker process died of SIGKILL"):
            together(replace(SETTINGS, threads=1))
        assert time.monotonic() - begun < 30
    assert _shared_memory() == []
    seen: list[int] = []
    again = together(replace(SETTINGS, threads=1), show=lambda done, _: seen.append(done))
    if task == "lead":
        assert seen[0] == 4
        assert not (tmp_path / "side" / "partial.npz").exists()
    assert all((again[name] == whole[name]).all() for name in whole)


def test_silence_and_interruptions_end_both_workers(
    together: Callable[..., Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "follow", _stuck_follow)
    with pytest.raises(EngineTimeout, match="nothing for 3 s"):
        together(timeout_s=3.0)

    def interrupt(_: int, __: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(show=interrupt)
    assert _shared_memory() == []


def _leave(worker: WorkerContext, error: HarnessError | None) -> None:
    worker.handles(2)
    if error is not None:
        raise error


def test_of_two_errors_that_of_the_cause_is_told(tmp_path: Path) -> None:
    with Worker("first", tmp_path / "log") as first, Worker("second", tmp_path / "log") as second:
        for errors in ((PeerGone("the other"), EngineError("why")), (EngineError("why"), PeerGone("the other"))):
            one, two = make_shared_rows(2, 3)
            calls = [Call(first, _leave, (errors[0],), one), Call(second, _leave, (errors[1],), two)]
            with pytest.raises(EngineError, match=r"^why"):
                call_together(calls, None, 10.0)
            assert (first.pid, second.pid) == (None, None)


def test_other_vocabularies_are_refused(llama_file: Path, tmp_path: Path) -> None:
    other = write_random_llama(tmp_path / "other.gguf", extra_tokens=20)
    with Worker("candidate", tmp_path / "log") as worker, pytest.raises(VocabularyMismatch, match="its reference of"):
        compare_side_by_side(
            lambda _done, _total: None,
            _request(other, tmp_path / "b"),
            _request(llama_file, tmp_path / "a"),
            lambda: Worker("reference", tmp_path / "log"),
            lambda: worker,
            (),
            60.0,
        )


def test_models_that_memory_does_not_hold_together_are_an_error_before_any_work(
    together: Callable[..., Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "hold_together", lambda *_, **__: False)
    with pytest.raises(EngineError, match=r"side by side and need .* GB of memory together, .* GB are available"):
        together()


def test_progress_of_another_pass_is_not_taken_over(together: Callable[..., Arrays], tmp_path: Path) -> None:
    whole = together()
    file = tmp_path / "side" / "partial.npz"
    stale = {name: np.zeros_like(whole[name]) for name in whole}
    save_arrays(file, {**stale, "done": np.array([4]), "key": np.array(["another"])})
    again = together()
    assert (again["kld"] == whole["kld"]).all()


def test_peak_memory_does_not_grow_with_the_context(tmp_path: Path) -> None:
    """Besides llama.cpp's own: the KV cache, and the mask of the attention in its buffers for computing."""
    corpus, taken = load_corpus("pydoc"), []
    text = CorpusText(corpus.name, corpus.text[:60_000])
    for n_ctx in (1024, 4096):
        settings = SessionSettings(n_ctx=n_ctx, n_batch=512, n_ubatch=128, threads=1, beyond_context=True)
        candidate, reference = (
            PassRequest(side, (TINY_FILE,), settings, text, 2, tmp_path / f"{side}-{n_ctx}")
            for side in ("ours", "theirs")
        )
        peaks = measured_peaks(candidate, reference, tmp_path / "log")
        taken.append([peak.resident - peak.cache - peak.compute for peak in peaks])
        assert all(peak.cache > 10**6 for peak in peaks)
    (short, short_reference), (long, long_reference) = taken
    assert long == pytest.approx(short, rel=0.05)
    assert long_reference == pytest.approx(short_reference, rel=0.05)
