"""Weights compared with the reference's, and the cost of each group of tensors.

Computed in `gguf_harness.metrics.weights` and `gguf_harness.metrics.sensitivity`.
"""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, GatedBy, Metric, Part

__all__ = ["METRICS"]

_GROUPS: Final = GatedBy("layers", "test_groups_of_tensors")
_WEIGHTS: Final = GatedBy("layers", "test_weights_stay_close_to_reference")
_PARTS: Final[tuple[Part, ...]] = ("layer", "tensors")
_ANYTHING: Final = (-math.inf, math.inf)


def _weight(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str = "As usual in signal processing.",
    better: Better = "neutral",
    values: tuple[float, float] = _ANYTHING,
    parts: tuple[Part, ...] = _PARTS,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="weights",
        values=values,
        parts=parts,
        gate=None if better == "neutral" else _WEIGHTS,
    )


def _group(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    better: Better = "neutral",
    values: tuple[float, float] = _ANYTHING,
    parts: tuple[Part, ...] = _PARTS,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source="This harness: a file with the tensors of both, decoded by llama.cpp.",
        estimated="group windows",
        values=values,
        parts=parts,
        gate=None if better == "neutral" else _GROUPS,
    )


METRICS: Final = (
    _weight(
        "weight_relative_rmse",
        "weight error",
        "",
        "Norm of the weights' difference over the norm of the reference's.",
        "|W - W_reference| / |W_reference|, Frobenius norms of the dequantized tensors.",
        better="lower",
        values=(0.0, math.inf),
    ),
    _weight(
        "weight_max_error",
        "largest weight error",
        "",
        "Largest difference of any weight.",
        "max of |w - w_reference|.",
        better="lower",
        values=(0.0, math.inf),
    ),
    _weight(
        "weight_cosine",
        "weight cosine",
        "",
        "Cosine between the weights and the reference's.",
        "W.W_reference / (|W| |W_reference|) of the flattened tensors.",
        better="higher",
        values=(-1.0, 1.0),
    ),
    _weight(
        "weight_snr_db",
        "weight SNR",
        "dB",
        "Signal-to-noise ratio of the weights.",
        "10 log10(|W_reference|^2 / |W - W_reference|^2).",
        better="higher",
    ),
    _weight(
        "weight_bits",
        "weight bits",
        "bits",
        "Bits per weight spent on these tensors.",
        "8 x bytes of the tensors / number of their elements.",
        "llama.cpp, which prints it as BPW when it loads a model.",
    ),
    _weight(
        "weight_outlier_share",
        "outliers",
        "fraction",
        "Share of the reference's weights beyond 6 standard deviations.",
        "Share of weights farther than 6 standard deviations from the mean of their tensor.",
        "Dettmers et al. (2022), LLM.int8(), with a relative threshold.",
        parts=(),
    ),
    _weight(
        "weight_outlier_sigmas",
        "farthest weight",
        "",
        "The reference's farthest weight, in standard deviations of its tensor.",
        "max of |w - mean of its tensor| / standard deviation of its tensor.",
        parts=(),
    ),
    _group(
        "tensor_group_kld",
        "KL of a group",
        "nats",
        "Mean KL from the reference when only these tensors are quantized.",
        "mean over tokens of KL(reference || reference with the candidate's tensors of the group).",
        "lower",
        (0.0, math.inf),
    ),
    _group(
        "tensor_group_share",
        "share of a group",
        "fraction",
        "A group's KL over the sum of all groups' KL.",
        "tensor_group_kld of a role / sum of it over roles.",
        parts=("tensors",),
    ),
    _group(
        "tensor_additivity",
        "additivity",
        "",
        "Sum of the groups' KL over the candidate's: 1 where effects add up.",
        "Sum of tensor_group_kld over roles / that of the whole candidate.",
        parts=(),
    ),
    _group(
        "tensor_restored_gain",
        "KL gained",
        "nats",
        "Reduction of the candidate's KL when these tensors are the reference's.",
        "KL of the candidate - KL of the candidate with the reference's tensors of the group.",
        "higher",
    ),
    _group(
        "tensor_restored_gain_per_mb",
        "KL gained per MB",
        "nats/MB",
        "The same per megabyte by which these tensors grow.",
        "tensor_restored_gain / (bytes of the group in the reference - in the candidate) x 10^6.",
        "higher",
    ),
)
