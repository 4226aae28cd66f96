"""What numbers depend on, and what they do not: parts of cache keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.engine.machine import describe_machine, identify_machine
from gguf_harness.engine.worker_tasks import build_files, ggml_environment, identify_engine
from gguf_harness.store.file_hashes import hash_files

CPU = {"name": "CPU", "description": "AMD EPYC 7763", "memory_bytes": 16 * 2**30}
DESCRIPTION: dict[str, Any] = {
    "llama_cpp_python": "0.3.36",
    "llama_cpp": "0c1e570 (ggml 0.25.3)",
    "backends": [CPU],
    "system_info": "CPU : AVX2 = 1 | FMA = 1 | OPENMP = 1 | ",
}


def test_another_processor_or_memory_computes_alike() -> None:
    other = {"name": "CPU", "description": "Intel Xeon", "memory_bytes": 64 * 2**30}
    assert identify_engine(DESCRIPTION | {"backends": [other]}, "b") == identify_engine(DESCRIPTION, "b")


@pytest.mark.parametrize(
    "change",
    [
        {"llama_cpp_python": "0.3.37"},
        {"llama_cpp": "1234567 (ggml 0.25.3)"},
        {"system_info": "CPU : AVX2 = 1 | FMA = 1 | AVX512 = 1 | OPENMP = 1 | "},
        {"backends": [CPU, {"name": "CUDA0", "description": "NVIDIA H100", "memory_bytes": 2**36}]},
        {"backends": [CPU, {"name": "BLAS", "description": "OpenBLAS", "memory_bytes": 0}]},
    ],
    ids=str,
)
def test_another_engine_is_told_apart(change: dict[str, Any]) -> None:
    assert identify_engine(DESCRIPTION | change, "b") != identify_engine(DESCRIPTION, "b")
    assert identify_engine(DESCRIPTION, "another build") != identify_engine(DESCRIPTION, "b")


def test_a_gpu_counts_and_its_free_memory_does_not() -> None:
    gpus = [
        {"name": "CUDA0", "description": name, "memory_bytes": size} for name, size in (("A", 1), ("A", 2), ("B", 1))
    ]
    first, same, other = (identify_engine(DESCRIPTION | {"backends": [gpu, CPU]}, "b") for gpu in gpus)
    assert first == same
    assert first != other


def test_settings_of_ggml_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify_engine(DESCRIPTION, "b")
    monkeypatch.setenv("GGML_NO_BACKTRACE", "1")
    assert identify_engine(DESCRIPTION, "b") == before
    monkeypatch.setenv("GGML_CUDA_FORCE_CUBLAS", "1")
    assert identify_engine(DESCRIPTION, "b") != before
    assert ggml_environment()["GGML_CUDA_FORCE_CUBLAS"] == "1"
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    assert ggml_environment().keys() >= {"GGML_CUDA_FORCE_CUBLAS", "LLAMA_ATTN_ROT_DISABLE"}
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert ggml_environment()["NVIDIA_TF32_OVERRIDE"] == "0"


def test_a_build_is_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same wheel on two machines is one build; a library built again is another, at the same size and time."""

    def build(name: str, content: bytes) -> str:
        folder = tmp_path / name
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "llama-server").write_bytes(b"program")
        (folder / "lib").mkdir()
        (folder / "lib" / "libggml-cpu.so").write_bytes(content)
        (folder / "lib" / "libllama.so.0").write_bytes(b"llama")
        (folder / "lib" / "libllama.so").symlink_to("libllama.so.0")
        (folder / "lib" / "libother.so").write_bytes(name.encode())
        for file in folder.rglob("*"):
            os.utime(file, (1, 1), follow_symlinks=False)
        (tmp_path / f"{name}-server").symlink_to(folder / "bin" / "llama-server")
        hashes = [
            hash_files(build_files(binary), tmp_path / f"{name}-cache")
            for binary in (folder / "bin" / "llama-server", tmp_path / f"{name}-server")
        ]
        assert hashes[0] == hashes[1]
        monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder / "lib"))
        assert [file.name for file in build_files()] == ["libggml-cpu.so", "libllama.so.0"]
        return hashes[0]

    assert build("a", b"one") == build("b", b"one") != build("c", b"two")


def test_the_installed_build_is_found() -> None:
    files = build_files()
    assert any("libggml-cpu" in file.name or "libggml-metal" in file.name for file in files)
    assert any(file.name.startswith("libllama") for file in files)


def test_a_machine_is_what_its_speed_depends_on() -> None:
    machine, again = identify_machine(), identify_machine()
    assert machine == again
    assert machine["cpu"] == describe_machine()["cpu"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] == round(describe_machine()["memory_bytes"] / 2**30)
    if hasattr(os, "sched_getaffinity"):
        assert machine["usable"] == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_fewer_cores_are_another_machine() -> None:
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        pytest.skip("there is one core")
    before = identify_machine()
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert identify_machine() != before
    finally:
        os.sched_setaffinity(0, usable)
