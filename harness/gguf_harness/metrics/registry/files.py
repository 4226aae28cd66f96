"""Facts of the file."""

from __future__ import annotations

from typing import Final

from gguf_harness.metrics.registry.entry import Column, GatedBy, Metric

__all__ = ["METRICS"]

_GATE: Final = GatedBy("quant", "test_file", any_model=True, relative=True)

METRICS: Final = (
    Metric(
        name="file_bytes",
        title="size",
        unit="bytes",
        better="lower",
        meaning="Size of the GGUF file, all splits together.",
        definition="Sum of the sizes of the files, metadata included.",
        source="The file system.",
        estimated="file",
        tables=frozenset({"comparison"}),
        gate=_GATE,
        compared=False,
    ),
    Metric(
        name="bits_per_weight",
        title="bits/weight",
        unit="bits",
        better="lower",
        meaning="Tensor bytes times eight over parameters.",
        definition="8 x bytes of all tensors / number of their elements.",
        source="llama.cpp, which prints it as BPW when it loads a model.",
        estimated="file",
        decimals=2,
        column=Column("bits/w", rank=5, error=False, decimals=2),
        tables=frozenset({"html", "markdown"}),
        gate=_GATE,
    ),
)
