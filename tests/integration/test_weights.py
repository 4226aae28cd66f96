"""Weights of real files: errors by type, mixtures that llama.cpp decodes, and a matrix larger than memory should be."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray

from gguf_harness.engine.quantize import quantize_file
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import ModelError
from gguf_harness.gguf.groups import by_role
from gguf_harness.gguf.mixture import differing_tensors, write_mixture
from gguf_harness.gguf.types import DEFAULT_QUANTS
from gguf_harness.gguf.weights import Weights
from gguf_harness.measure.weights.tasks import measure_weight_errors
from gguf_harness.metrics.weight_errors import TensorError
from tests.loaded import open_context

pytestmark = pytest.mark.model

TINY = Path(__file__).parents[2] / "fixtures/data/tiny-F16.gguf"


class Quiet:
    """What a task is given, without a parent to tell."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []

    def progress(self, done: int, total: int) -> None:
        self.shown.append((done, total))


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ladder")
    files = {quant: folder / f"{quant}.gguf" for quant in DEFAULT_QUANTS}
    for quant, file in files.items():
        quantize_file([TINY], file, quant, threads=2)
    return files


def test_errors_fall_with_bits(ladder: dict[str, Path]) -> None:
    """Of every tensor: never up where the type is the same or larger, and down from Q2_K to Q8_0."""
    errors: dict[str, dict[str, TensorError]] = {}
    for quant, file in ladder.items():
        context = Quiet()
        found = measure_weight_errors(context, [file], [TINY])  # type: ignore[arg-type]
        assert context.shown[-1] == (4, 4)  # millions of weights
        errors[quant] = {error.name: error for error in found}
    names = [name for name, error in errors["Q8_0"].items() if error.type != error.reference_type]
    assert len(names) == 1 + 5 * 7
    for name in names:
        steps = [errors[quant][name] for quant in reversed(DEFAULT_QUANTS)]
        assert steps[0].type != steps[-1].type == "Q8_0"
        rmse = [step.relative_rmse or 0.0 for step in steps]
        assert rmse[0] > rmse[-1] > 0, name
        for low, high in itertools.pairwise(steps):
            assert low.relative_rmse is not None
            assert high.relative_rmse is not None
            if high.bits > low.bits:
                assert high.relative_rmse < low.relative_rmse, (name, low.type, high.type)
            elif high.type == low.type:
                assert high.relative_rmse == low.relative_rmse
        # 6 dB per bit, roughly, is what scalar quantization gives.
        assert all(4 < (step.snr_db or 0) / step.bits < 7 for step in steps), name
    for name in set(errors["Q2_K"]) - set(names):
        assert all(errors[quant][name].max_error == 0 for quant in errors)


def test_other_models_have_nothing_in_common(llama_file: Path, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("another", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="no tensor in common"):
        measure_weight_errors(Quiet(), [tmp_path / "x.gguf"], [llama_file])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"has shape \[4096, 256\], in the reference \[258, 256\]"):
        measure_weight_errors(Quiet(), [TINY], [llama_file])  # type: ignore[arg-type]


def _logits(*files: Path) -> NDArray[np.float32]:
    tokens = np.random.default_rng(0).integers(2, 4096, 64).astype(np.int32)
    with open_context(files, SessionSettings(n_ctx=64, threads=1)) as context:
        return np.array(context.logits(tokens))


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_mixtures_are_both_models(ladder: dict[str, Path], tmp_path: Path, quant: str) -> None:
    """Bit for bit: with nothing exchanged the one, with everything the other; with a group neither."""
    changed = differing_tensors([TINY], [ladder[quant]])
    found = []
    for label, names in (("none", []), ("all", list(changed)), ("some", by_role(changed)["ffn_up"])):
        (tmp_path / label).mkdir()
        (file,) = write_mixture([TINY], [ladder[quant]], names, tmp_path / label)
        found.append(_logits(file))
    reference, candidate = _logits(TINY), _logits(ladder[quant])
    np.testing.assert_array_equal(found[0], reference)
    np.testing.assert_array_equal(found[1], candidate)
    distances = [np.linalg.norm(logits - reference) for logits in (found[2], candidate)]
    assert 0 < distances[0] < distances[1]


def test_dequantized_weights_compute_the_same(ladder: dict[str, Path], tmp_path: Path) -> None:
    """An F32 file of the dequantized weights: llama.cpp rounds activations with quantized weights, hence near only."""
    opened = Weights([ladder["Q6_K"]])
    source = tmp_path / "f32.gguf"
    writer = GGUFWriter(source, "llama")
    for name in opened.names:
        writer.add_tensor(name, opened.tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "out").mkdir()
    (file,) = write_mixture([TINY], [source], opened.names, tmp_path / "out")
    expected, found = _logits(ladder["Q6_K"]), _logits(file)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    assert np.linalg.norm(found - expected) < 0.5 * np.linalg.norm(_logits(TINY) - expected)


ROWS, WIDTH = 1 << 18, 2048


def _write_large(path: Path, kind: GGMLQuantizationType, piece: NDArray[np.float32]) -> Path:
    """A matrix [256k, 2048] of one piece over and over."""
    raw = quants.quantize(piece, kind).view(np.uint8)
    writer = GGUFWriter(path, "llama")
    size = raw.nbytes * (ROWS // len(piece))
    shape = (ROWS, raw.shape[1])
    writer.add_tensor_info("token_embd.weight", shape, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % 32))
        for _ in range(ROWS // len(piece)):
            file.write(raw.data)
    return path


MEASURE = """
import sys
from pathlib import Path
from gguf_harness.measure.weights.tasks import compare_weights
from gguf_harness.gguf.weights import Weights

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

a, b = (Weights([Path(name)]) for name in sys.argv[1:3])
a.rows("token_embd.weight", 0, 1)  # gguf is imported
before = peak()
error = compare_weights(a, b, "token_embd.weight")
print(error.weights, error.relative_rmse, before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_large_matrix_takes_little_memory(tmp_path: Path) -> None:
    """Half a billion weights: 2 GB as float32, 1 GB and 0.6 GB in the files."""
    piece = np.random.default_rng(0).standard_normal((4096, WIDTH), dtype=np.float32)
    reference = _write_large(tmp_path / "F16.gguf", GGMLQuantizationType.F16, piece)
    candidate = _write_large(tmp_path / "Q8_0.gguf", GGMLQuantizationType.Q8_0, piece)
    try:
        command = [sys.executable, "-c", MEASURE, str(candidate), str(reference)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    finally:
        candidate.unlink()
        reference.unlink()
    weights, rmse, before, peak = map(float, done.stdout.split())
    assert weights == ROWS * WIDTH
    assert 0.004 < rmse < 0.006
    # In kB. Measured: 9 MB; the tensor in memory would take 2000.
    assert peak - before < 40_000
    print(f"peak memory {peak / 1e3:.0f} MB, {(peak - before) / 1e3:.1f} MB of it for the matrix")
