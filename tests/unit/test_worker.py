"""The worker process: results, errors, crashes, timeouts, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gguf_harness.engine.child import log_tail
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import CorpusError, EngineCrashed, EngineError, EngineTimeout


def double(worker: WorkerContext, value: int) -> int:
    worker.progress(1, 2)
    worker.progress(2, 2)
    return 2 * value


def die(_: WorkerContext, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def slow_double(worker: WorkerContext, value: int) -> int:
    worker.progress(0, 1)
    time.sleep(0.3)
    return 2 * value


def forge(worker: WorkerContext) -> int:
    """An answer to a request that is none, before the own one."""
    worker._connection.send((0, "result", 99))
    return 1


def leave(_: WorkerContext) -> None:
    os._exit(3)


def sleep(_: WorkerContext) -> None:
    time.sleep(60)


def fail(_: WorkerContext) -> None:
    raise CorpusError("no such text", "try another")


def broken(_: WorkerContext) -> float:
    return 1 / 0


def visible_gpus(_: WorkerContext) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker("model", tmp_path / "log", timeout_s=30)


def test_results_and_progress_come_back(worker: Worker) -> None:
    seen: list[tuple[int, int]] = []
    with worker:
        assert worker.call(double, lambda done, total: seen.append((done, total)), 21) == 42
        first = worker.pid
        assert worker.call(double, None, 1) == 2
        assert worker.pid == first
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGABRT, "llama.cpp aborted"), (signal.SIGKILL, "killed from outside")]
)
def test_a_death_is_one_error_and_the_next_call_works(worker: Worker, number: int, words: str) -> None:
    with worker:
        with pytest.raises(EngineCrashed, match=words) as caught:
            worker.call(die, None, number)
        assert caught.value.exit_status == -number
        assert worker.call(double, None, 2) == 4


def test_an_exit_is_a_crash(worker: Worker) -> None:
    with worker, pytest.raises(EngineCrashed, match="exited with status 3"):
        worker.call(leave, None)


def test_silence_is_a_timeout(tmp_path: Path) -> None:
    with Worker("slow", tmp_path / "log", timeout_s=0.5) as worker:
        with pytest.raises(EngineTimeout, match=r"the worker sent nothing for 0\.5 s"):
            worker.call(sleep, None)
        assert worker.pid is None


def test_errors_of_a_task_are_its_own(worker: Worker) -> None:
    with worker:
        with pytest.raises(CorpusError, match="no such text"):
            worker.call(fail, None)
        with pytest.raises(EngineError, match="ZeroDivisionError in the worker"):
            worker.call(broken, None)
        assert "ZeroDivisionError" in log_tail(worker.log)


class Enough(BaseException):
    """As pytest's own outcomes are: no Exception."""


@pytest.mark.parametrize("ended_by", [Enough, ValueError, KeyboardInterrupt, EOFError])
def test_an_answer_that_nobody_waited_for_goes_to_no_other_request(
    worker: Worker, ended_by: type[BaseException]
) -> None:
    def stop(_done: int, _total: int) -> None:
        raise ended_by

    with worker:
        with pytest.raises(ended_by):
            worker.call(slow_double, stop, 21)
        assert worker.pid is None
        assert worker.call(slow_double, None, 1) == 2
        time.sleep(0.4)
        assert worker.call(double, None, 2) == 4


def test_a_time_limit_that_strikes_while_waiting_ends_the_request(worker: Worker) -> None:
    def strike(_number: int, _frame: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with worker:
            worker.call(double, None, 1)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Enough):
                worker.call(slow_double, None, 21)
            assert worker.call(double, None, 3) == 6
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_answer_with_another_number_is_refused(worker: Worker) -> None:
    with worker:
        with pytest.raises(EngineError, match="answered request 0, expected 1"):
            worker.call(forge, None)
        assert worker.pid is None
        assert worker.call(double, None, 4) == 8


@pytest.mark.parametrize(
    ("gpu", "allowed", "expected"),
    [
        (0, None, "0"),
        (1, None, "1"),
        (-1, None, ""),
        (0, "2,3", "2"),
        (1, "2, 3", "3"),
        (2, "2,3", ""),
        (0, "", ""),
        (0, "GPU-8a", "GPU-8a"),
    ],
)
def test_each_worker_sees_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: int, allowed: str | None, expected: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    with Worker("m", tmp_path / "log", gpu=gpu) as worker:
        assert worker.call(visible_gpus, None) == expected


def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    worker = Worker("m", tmp_path / ("x" * 300))
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(EngineError, match=r"log .* cannot be written: File name too long"):
            worker.call(double, None, 1)
    assert psutil.Process().num_fds() == before
    worker.close()


def test_nothing_is_left_after_close(worker: Worker) -> None:
    worker.call(double, None, 1)
    child = psutil.Process(worker.pid)
    worker.close()
    worker.close()
    assert not child.is_running()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_parent_ends(tmp_path: Path, number: int) -> None:
    code = (
        # A background job inherits an ignored SIGINT: here it shall end the process, as Ctrl-C does.
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); sys.path.insert(0, '.');"
        "from pathlib import Path; from gguf_harness.engine.worker import Worker;"
        "from tests.unit.test_worker import double;"
        f"w = Worker('m', Path({str(tmp_path / 'log')!r})); w.call(double, None, 1); print(w.pid, flush=True);"
        "time.sleep(60)"
    )
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(timeout=10)
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
