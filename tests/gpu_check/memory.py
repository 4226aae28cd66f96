"""Step: the GPU memory of a worker, as the driver counts it, beside llama.cpp's buffers.

A process takes more than its buffers: the CUDA context, code of kernels, cuBLAS's workspace, pools. So a model is
loaded twice, with a short and a long context, and what must agree is by how much both grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.engine.gpu import process_memory
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.sources import expand
from tests.gpu_check.environment import Setup
from tests.gpu_check.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["Reading", "buffers_by_device", "compare", "judge", "load_and_read"]

_LENGTHS: Final = (512, 65_536)
_TOLERANCE: Final = 0.1
_LEAST_TOLERANCE: Final = 64 * 2**20
"""Pools of CUDA grow in steps of 2 to 32 MiB, by device and stream."""

_BUFFER: Final = re.compile(
    r"(?P<device>\w+)\s+(?P<what>model|LoRA|KV|RS|compute|output) buffer size\s*=\s*(?P<mib>[0-9.]+) MiB"
)
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory of a worker, in bytes.

    Attributes:
        own: as the harness reads it in the worker (`process_memory`), None where the driver does not say.
        driver: of the worker's process, as the driver tells this process; None likewise.
        grown: by how much the use of the whole GPU has grown since before the worker started.
        buffers: llama.cpp's on the GPU.
    """

    own: int | None
    driver: int | None
    grown: int
    buffers: int


def compare(setup: Setup) -> Outcome:
    """Two contexts of tiny."""
    readings = [_read(setup, length) for length in _LENGTHS]
    return judge(readings[0], readings[1])


def judge(short: Reading, long: Reading) -> Outcome:
    """Whether the driver, the harness and llama.cpp agree.

    Args:
        short: with a short context.
        long: with a long one.
    """
    numbers: dict[str, Any] = {
        name: {"own": each.own, "driver": each.driver, "grown": each.grown, "buffers": each.buffers}
        for name, each in (("short", short), ("long", long))
    }
    buffers = long.buffers - short.buffers
    allowed = max(_LEAST_TOLERANCE, _TOLERANCE * buffers)
    if buffers < 2 * _LEAST_TOLERANCE:
        return Outcome(
            "fail", f"llama.cpp's buffers grew by {buffers / MIB:.0f} MiB only: nothing can be told", numbers
        )
    if short.driver is None or long.driver is None:
        said = (
            f"the whole GPU grew by {(long.grown - short.grown) / MIB:.0f} MiB, the buffers by {buffers / MIB:.0f} MiB"
        )
        reason = f"the driver names no processes here (a container, or WSL); {said}"
        return Outcome("not run", reason, numbers, absent=True)
    wrong = []
    for name, each in (("short", short), ("long", long)):
        if each.own != each.driver:
            wrong.append(f"{name} context: the worker reads {each.own}, this process {each.driver} bytes")
        if each.driver is not None and each.driver < each.buffers:
            wrong.append(f"{name} context: {each.driver} bytes are less than the buffers' {each.buffers}")
    grown = long.driver - short.driver
    if abs(grown - buffers) > allowed:
        wrong.append(
            f"the process grew by {grown / MIB:.0f} MiB, the buffers by {buffers / MIB:.0f} MiB,"
            f" expected within {allowed / MIB:.0f} MiB"
        )
    if wrong:
        return Outcome("fail", "; ".join(wrong), numbers)
    beside = (short.driver - short.buffers) / MIB
    said = (
        f"process and buffers grow by {grown / MIB:.0f} and {buffers / MIB:.0f} MiB; {beside:.0f} MiB besides buffers"
    )
    return Outcome("pass", said, numbers)


def load_and_read(worker: WorkerContext, files: Sequence[Path], settings: SessionSettings) -> int | None:
    """In a worker: load, decode a batch, and read what the harness would report."""
    context = worker.context(files, settings)
    tokens = context.model.tokenize(b"The quick brown fox jumps over the lazy dog. " * 40)[: settings.n_ubatch]
    context.prefill(tokens)
    return process_memory()


def _read(setup: Setup, length: int) -> Reading:
    (source,) = expand("tiny")
    settings = SessionSettings(n_ctx=length, n_batch=512, threads=1)
    log = setup.path / f"memory-{length}-worker.log"
    log.unlink(missing_ok=True)
    before = _used()
    with Worker("memory", log, gpu=0, timeout_s=40) as worker:
        own = worker.call(load_and_read, None, source.files, settings)
        driver, grown = _of_process(worker.pid), _used() - before
    text = log.read_text(encoding="utf-8", errors="replace")
    return Reading(own, driver, grown, buffers_by_device(text.splitlines()).get("CUDA0", 0))


def buffers_by_device(lines: Iterable[str]) -> dict[str, int]:
    """Bytes of llama.cpp's buffers by device. Of a kind that is told twice, the last: buffers are made again."""
    last: dict[tuple[str, str], float] = {}
    for line in lines:
        if match := _BUFFER.search(line):
            last[match["device"], match["what"]] = float(match["mib"])
    found: dict[str, int] = {}
    for (device, _), mib in last.items():
        found[device] = found.get(device, 0) + round(mib * MIB)
    return found


def _used() -> int:
    """Bytes in use on the first GPU."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


def _of_process(pid: int | None) -> int | None:
    """Bytes of a process on all GPUs, as the driver tells."""
    import pynvml

    pynvml.nvmlInit()
    try:
        used = [
            process.usedGpuMemory
            for index in range(pynvml.nvmlDeviceGetCount())
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
            if process.pid == pid
        ]
    finally:
        pynvml.nvmlShutdown()
    return sum(used) if used and None not in used else None
