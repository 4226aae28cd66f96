"""Quantizing: equal to llama-quantize, the table of types, and what happens when it cannot be done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from gguf_harness.engine import quantize
from gguf_harness.engine.quantize import load_imatrix, quantize_file
from gguf_harness.errors import QuantizeError
from gguf_harness.gguf.header import read_header
from gguf_harness.gguf.types import FTYPES, NEEDS_IMATRIX

pytestmark = pytest.mark.model

TOOLS = os.environ.get("GGUF_HARNESS_TOOLS")


def _tensors(file: Path) -> dict[str, tuple[int, bytes]]:
    return {tensor.name: (int(tensor.tensor_type), np.asarray(tensor.data).tobytes())
            for tensor in GGUFReader(file).tensors}  # fmt: skip


def _write_imatrix(file: Path, model: Path) -> None:
    writer = GGUFWriter(file, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    random = np.random.default_rng(1)
    for tensor in read_header(model).tensors:
        if tensor.name.startswith("blk") and len(tensor.shape) == 2:
            writer.add_tensor(f"{tensor.name}.in_sum2", random.gamma(1, 9, (1, tensor.shape[0])).astype(np.float32))
            writer.add_tensor(f"{tensor.name}.counts", np.full((1, 1), 1536, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(TOOLS is None, reason="GGUF_HARNESS_TOOLS names no folder with llama-quantize")
@pytest.mark.parametrize(
    ("quant", "options"),
    [
        ("F16", []), ("BF16", []), ("Q8_0", []), ("Q6_K", []), ("Q5_K_M", []), ("Q4_K_M", []), ("Q3_K_M", []),
        ("Q2_K", []), ("IQ4_XS", []), ("Q4_K_M", ["--pure"]), ("Q4_K_M", ["--imatrix"]), ("IQ2_XS", ["--imatrix"]),
        ("Q4_K_M", ["--tensor-type", "ffn_up=q5_0"]),
    ],
)  # fmt: skip
def test_files_equal_those_of_llama_quantize(llama_file: Path, tmp_path: Path, quant: str, options: list[str]) -> None:
    ours, theirs, matrix = tmp_path / "ours.gguf", tmp_path / "theirs.gguf", tmp_path / "imatrix.gguf"
    _write_imatrix(matrix, llama_file)
    arguments = [*options, str(matrix)] if options == ["--imatrix"] else options
    tool = Path(str(TOOLS)) / "llama-quantize"
    command: list[str | Path] = [tool, "--allow-requantize", *arguments, llama_file, theirs, quant, "2"]
    subprocess.run(command, check=True, capture_output=True)
    quantize_file(
        [llama_file], ours, quant, threads=1,
        imatrix=matrix if options == ["--imatrix"] else None,
        tensor_types={"ffn_up": "q5_0"} if "--tensor-type" in options else None,
        pure=options == ["--pure"],
    )  # fmt: skip
    assert _tensors(ours) == _tensors(theirs)


def test_the_table_of_types_is_llama_cpps() -> None:
    """NVFP4 is in the library, but llama-quantize does not offer it; GUESSED is a flag."""
    names = [name for name in dir(llama_cpp) if name.startswith("LLAMA_FTYPE_")]
    found = {name.split("_", 2)[2].removeprefix("MOSTLY_").removeprefix("ALL_"): getattr(llama_cpp, name)
             for name in names}  # fmt: skip
    assert {name: number for name, number in found.items() if name not in {"NVFP4", "GUESSED"}} == FTYPES


@pytest.mark.parametrize("quant", FTYPES)
def test_types_need_an_importance_matrix_where_llama_cpp_says_so(
    llama_file: Path, tmp_path: Path, quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "NEEDS_IMATRIX", frozenset())
    # IQ3_XS mixes IQ3_XXS into models such as this one.
    if quant not in NEEDS_IMATRIX | {"IQ3_XS"}:
        quantize_file([llama_file], tmp_path / "x.gguf", quant, threads=2)
        return
    with pytest.raises(QuantizeError, match="imatrix") as caught:
        quantize_file([llama_file], tmp_path / "x.gguf", quant, threads=2)
    assert "llama-imatrix" in caught.value.hint


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_K_M", "Q2_K"])
def test_the_size_is_known_beforehand(llama_file: Path, tmp_path: Path, quant: str) -> None:
    parameters, _ = quantize._parameters(quant, 1, None, {}, False)
    planned = quantize._planned_bytes(llama_file, quant, parameters)
    assert not parameters.dry_run
    quantize_file([llama_file], tmp_path / "x.gguf", quant, threads=2)
    assert planned == pytest.approx((tmp_path / "x.gguf").stat().st_size, rel=0.01)


def test_a_small_type_needs_no_room_for_the_source(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = llama_file.stat().st_size // 2
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    quantize_file([llama_file], tmp_path / "x.gguf", "Q4_K_M", threads=1)
    with pytest.raises(QuantizeError, match=r"Quantizing to F16 needs .* are free"):
        quantize_file([llama_file], tmp_path / "y.gguf", "F16", threads=1)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the file size there")
def test_a_disk_that_fills_up_is_said_and_leaves_nothing(llama_file: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from gguf_harness.engine.quantize import quantize_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "quantize_file([Path(sys.argv[1])], Path(sys.argv[2]), 'Q8_0', threads=1)"
    )
    arguments = [sys.executable, "-c", script, str(llama_file), str(tmp_path / "x.gguf")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "NotWritten" in done.stderr
    assert "its disk may be full" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result_is_not_kept(llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some failed writes go unnoticed by llama.cpp: a file cut short after it reported success."""
    run = quantize._run

    def cut(source: Path, destination: Path, *rest: object) -> object:
        log = run(source, destination, *rest)  # type: ignore[arg-type]
        if destination != source:
            os.truncate(destination, destination.stat().st_size // 2)
        return log

    monkeypatch.setattr(quantize, "_run", cut)
    old = tmp_path / "x.gguf"
    old.write_bytes(b"what was there before")
    with pytest.raises(QuantizeError, match=r"Q8_0 file that llama\.cpp wrote is damaged"):
        quantize_file([llama_file], old, "Q8_0", threads=1)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"what was there before"]


@pytest.mark.parametrize("kind", ["Q8_1", "I32", "F64", "q99"])
def test_types_that_weights_cannot_have_are_refused(llama_file: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(QuantizeError, match=f"Unknown tensor type '{kind}'"):
        quantize_file([llama_file], tmp_path / "x.gguf", "Q8_0", threads=1, tensor_types={"ffn_up": kind})
    assert list(tmp_path.iterdir()) == []


def test_a_bad_pattern_is_llama_cpps_message(llama_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="could not quantize"):
        quantize_file([llama_file], tmp_path / "x.gguf", "Q8_0", threads=1, tensor_types={"ffn_(up": "q4_0"})
    assert list(tmp_path.iterdir()) == []


def test_an_importance_matrix_whose_counts_do_not_fit_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "imatrix")
    writer.add_tensor("a.weight.in_sum2", np.ones((1, 5), dtype=np.float32))
    writer.add_tensor("a.weight.counts", np.ones((1, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(QuantizeError, match="5 values for 2 counts"):
        load_imatrix(tmp_path / "m.gguf")
