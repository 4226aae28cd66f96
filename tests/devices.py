"""How near numbers of these tests must be: on the CPU as each test says, on a GPU no nearer than its products are.

llama.cpp's backend for CUDA lets cuBLAS round F32 products to TF32 (11 bits: 4.9e-4) and adds F16 products up in half
precision; its own kernels for quantized matrices round activations to 8 bits in blocks of 32, where the CPU has blocks
of 256 for K-quants; and a batch of another size takes another kernel. So on a GPU "the same in other batches" is never
to the bit. The values are about twice what an H200 (CUDA 13.0, llama-cpp-python 0.3.36) showed in 218 of these tests,
157 of which passed with the CPU's tolerances. No other kind of GPU has been measured.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["ON_GPU", "Kind", "near", "near_taps", "on_gpu"]

Kind = Literal["logits", "kl", "taps", "pattern", "sums", "weights"]

ON_GPU: Final[Mapping[Kind, float]] = {
    # Logits, log-probabilities and losses, in nats: 0.066, of a window that was decoded in parts.
    "logits": 0.15,
    # Of logits that differ by e or less: at most e^2 / 2 (tests/gpu_check/floors.py).
    "kl": 0.15**2 / 2,
    # Any tap, over its largest value: 9.5e-4 in F32; matrices in F16 have 1e-2 on the CPU already.
    "taps": 5e-3,
    # A weight of attention: 0.015, of tiny with a cache in F32.
    "pattern": 3e-2,
    # Sums over rows, and what is counted of them, over their value: 0.032.
    "sums": 6e-2,
    # Bytes of weights over those of the file: embeddings that serve as output too are on the CPU and on the GPU.
    "weights": 0.1,
}


@functools.cache
def on_gpu() -> bool:
    """Whether llama.cpp computes on a GPU in this process: it was built for one, and sees one."""
    from gguf_harness.engine.model import offloads

    return offloads(-1)


def near(on_cpu: float, kind: Kind) -> float:
    """The tolerance of a test on the device that it runs on.

    Args:
        on_cpu: what it is on the CPU; on a GPU it is never less.
        kind: of number.
    """
    return max(on_cpu, ON_GPU[kind]) if on_gpu() else on_cpu


def near_taps(on_cpu: float, expected: NDArray[Any]) -> float:
    """The same for values of a tap, of which a GPU rounds the large ones by more.

    Args:
        on_cpu: what it is on the CPU, whatever the values are.
        expected: the values.
    """
    return max(on_cpu, near(0.0, "taps") * float(np.abs(expected).max()))
