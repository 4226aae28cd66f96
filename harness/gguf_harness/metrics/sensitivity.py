"""Effect on the predictions of quantizing one group of tensors. Pure: KL divergences per token in, estimates out.

All passes use the same windows, so differences and ratios are paired, with errors clustered by window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.stats import Samples, as_estimate, mean_with_errors, require_samples

__all__ = [
    "Effect",
    "Sensitivity",
    "TensorGroup",
    "additivity",
    "group_kld",
    "group_shares",
    "restored_gain",
    "sensitivity_estimates",
]


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that are exchanged together.

    Attributes:
        name: the role, or the layers.
        layer: the layer, if it is a single one.
        tensors: names.
        types: how the candidate stores them.
        bytes: of the candidate's data.
        reference_bytes: of the reference's data.
    """

    name: str
    layer: int | None
    tensors: tuple[str, ...]
    types: tuple[str, ...]
    bytes: int
    reference_bytes: int

    @property
    def place(self) -> Place:
        """Its layer; otherwise, as a part of the model, the role or several layers."""
        return Place(part=self.name) if self.layer is None else Place(self.layer)

    @property
    def growth(self) -> int:
        """Bytes by which the reference's tensors are larger."""
        return self.reference_bytes - self.bytes

    @property
    def described(self) -> str:
        """Name, number of tensors and types, for readers."""
        count = f"{len(self.tensors)} tensor{'s' if len(self.tensors) > 1 else ''}"
        return f"{self.name}: {count}, {' and '.join(self.types)}"


@dataclass(frozen=True, slots=True)
class Effect:
    """A group and the effect of exchanging it.

    Attributes:
        kld: [windows, tokens] of KL(reference || mixture), in nats.
    """

    group: TensorGroup
    kld: Samples


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """All measurements of a candidate.

    Attributes:
        candidate: [windows, tokens] of KL(reference || candidate).
        roles: the reference with the candidate's tensors of one role.
        layers: the same with one layer, or several consecutive ones.
        restored: the candidate with the reference's tensors of one role.
    """

    candidate: Samples
    roles: tuple[Effect, ...]
    layers: tuple[Effect, ...]
    restored: tuple[Effect, ...]


def group_kld(kld: ArrayLike) -> Estimate:
    """Mean KL divergence from the reference of a model with only some tensors quantized.

    Args:
        kld: [windows, tokens] in nats.
    """
    return as_estimate("tensor_group_kld", mean_with_errors(require_samples(kld, "KL divergence of a group")))


def group_shares(groups: list[Samples]) -> list[Estimate]:
    """Each group's mean divided by the sum of all groups' means, so they add up to 1. Errors by the delta method.

    With s = a / T the influence of a sample is (a_i - s T_i) / T.

    Args:
        groups: [windows, tokens] each.

    Raises:
        NoData: there are none, or their sum is not positive.
    """
    total = np.sum([require_samples(kld, "KL divergence of a group") for kld in groups], axis=0)
    mean = float(np.mean(total))
    if not groups or not mean > 0:
        raise NoData(f"Shares of a KL divergence of {mean} are meaningless: expected more than zero.")
    parts = [(kld, *ratio_of_means(kld, total)) for kld in groups]
    return [
        as_estimate("tensor_group_share", mean_with_errors(kld, influence, share)) for kld, share, influence in parts
    ]


def additivity(groups: list[Samples], candidate: ArrayLike) -> Estimate:
    """Sum of the groups' KL divided by the KL of the candidate, in which all are quantized: 1 if effects are additive.

    For small independent disturbances of the logits KL is quadratic, and their cross terms vanish on average; above 1
    errors cancel (or saturate), below 1 they reinforce each other. Errors by the delta method.

    Args:
        groups: [windows, tokens] each; together they are all that differs.
        candidate: the same of the candidate.

    Raises:
        NoData: there are no groups, or the candidate's KL is not positive.
    """
    whole = require_samples(candidate, "KL divergence")
    if not groups or not whole.mean() > 0:
        raise NoData(f"A ratio to a KL divergence of {whole.mean()} is meaningless: expected more than zero.")
    total = require_samples(np.sum(groups, axis=0), "KL divergence of groups")
    ratio, influence = ratio_of_means(total, whole)
    return as_estimate("tensor_additivity", mean_with_errors(total, influence, ratio))


def restored_gain(candidate: ArrayLike, restored: ArrayLike, extra_bytes: int) -> list[Estimate]:
    """Reduction of a candidate's KL with a group restored: in total, and per added megabyte.

    Args:
        candidate: [windows, tokens] of its KL.
        restored: the same with the group restored; paired.
        extra_bytes: bytes by which the reference's tensors are larger. If not positive, there is no second estimate.
    """
    samples = require_samples(candidate, "KL divergence") - require_samples(restored, "KL divergence, restored")
    gain = as_estimate("tensor_restored_gain", mean_with_errors(samples))
    if extra_bytes <= 0:
        return [gain]
    priced = mean_with_errors(samples / (extra_bytes / 1e6))
    return [gain, as_estimate("tensor_restored_gain_per_mb", priced)]


def sensitivity_estimates(sensitivity: Sensitivity) -> list[Estimate]:
    """All estimates: KL of the candidate, additivity of its roles, and each group, quantized or restored.

    Raises:
        NoData: a KL divergence in a denominator is not positive.
    """
    windows = f"{len(sensitivity.candidate)} windows"
    roles = [effect.kld for effect in sensitivity.roles]
    estimates = [
        replace(group_kld(sensitivity.candidate), detail=f"all that differ, {windows}"),
        replace(additivity(roles, sensitivity.candidate), detail=f"sum of {len(roles)} roles, {windows}"),
    ]
    for effect, share in zip(sensitivity.roles, group_shares(roles), strict=True):
        estimates += _of_group(effect.group, [group_kld(effect.kld), share])
    for effect in sensitivity.layers:
        estimates += _of_group(effect.group, [group_kld(effect.kld)])
    for effect in sensitivity.restored:
        gains = restored_gain(sensitivity.candidate, effect.kld, effect.group.growth)
        estimates += _of_group(effect.group, gains, ", restored")
    return estimates


def _of_group(group: TensorGroup, estimates: Iterable[Estimate], how: str = "") -> list[Estimate]:
    return [replace(estimate, place=group.place, detail=f"{group.described}{how}") for estimate in estimates]
