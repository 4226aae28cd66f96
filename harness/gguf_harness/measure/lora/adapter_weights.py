"""Rank and size of an adapter's changes, from its file and the model's. Runs in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_harness.gguf.groups import layer_of, role_of
from gguf_harness.gguf.lora_files import read_lora
from gguf_harness.gguf.merged import factors_of, write_merged
from gguf_harness.gguf.weights import Weights
from gguf_harness.metrics.low_rank import NO_LAYER, effective_rank, measure_low_rank

if TYPE_CHECKING:
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["measure_changes", "merge_and_quantize"]


def measure_changes(worker: WorkerContext, files: Sequence[Path], adapters: Sequence[tuple[Path, float]]) -> Arrays:
    """Sizes of what adapters change, one by one.

    Args:
        worker: that the task runs in.
        files: of the model.
        adapters: files that fit it, each with its scale.

    Returns:
        [pairs] each: adapter, which of them; tensor, role and layer (-1 outside of layers); rank; effective_rank, of
        experts their mean (NaN for a change of zero); norm, the Frobenius norm of scale * factor * B A; weights, that
        of the matrix itself.
    """
    model = Weights(files)
    loras = [(read_lora(file), scale) for file, scale in adapters]
    rows, norms = [], dict.fromkeys(name for lora, _ in loras for name in lora.pairs)
    squares = {}
    for done, name in enumerate(norms):
        worker.progress(done, len(norms))
        squares[name] = sum(float(np.square(block, dtype=np.float64).sum()) for block in model.blocks(name))
    for index, (lora, scale) in enumerate(loras):
        weights = Weights([lora.header.path])
        for name, pair in lora.pairs.items():
            sizes = [measure_low_rank(a, b) for a, b in factors_of(weights, pair)]
            norm = abs(scale * lora.factor(pair)) * float(np.sqrt(sum(size.norm**2 for size in sizes)))
            ranks = [effective_rank(size.singular) for size in sizes if size.norm > 0]
            layer = layer_of(name)
            rows.append({
                "adapter": index,
                "tensor": name,
                "role": role_of(name),
                "layer": NO_LAYER if layer is None else layer,
                "rank": pair.rank,
                "effective_rank": float(np.mean(ranks)) if ranks else float("nan"),
                "norm": norm,
                "weights": float(np.sqrt(squares[name])),
            })  # fmt: skip
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def merge_and_quantize(
    worker: WorkerContext,
    files: Sequence[Path],
    adapters: Sequence[tuple[Path, float]],
    folder: Path,
    quant: str,
    threads: int,
    imatrix: Path | None,
) -> Path:
    """Merge adapters into a model, and quantize the result; what is between is removed.

    Args:
        worker: that the task runs in.
        files: of the model.
        adapters: files that fit it, each with its scale.
        folder: an empty one.
        quant: a name from `gguf_harness.gguf.types.FTYPES`.
        threads: CPU threads.
        imatrix: importance matrix, if any.

    Returns:
        The quantized model.
    """
    from gguf_harness.engine.quantize import quantize_file

    merged = write_merged(files, [(read_lora(file), scale) for file, scale in adapters], folder)
    destination = folder / f"merged-{quant}.gguf"
    quantize_file(merged, destination, quant, threads=threads, imatrix=imatrix, progress=worker.progress)
    for file in merged:
        file.unlink()
    return destination
