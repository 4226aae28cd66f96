"""Quantization errors of the weights, and the cost of each group of tensors."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gguf_harness.errors import NoData
from gguf_harness.gguf.groups import by_layers, by_role, layer_of, role_of
from gguf_harness.gguf.mixture import differing_tensors, write_mixture
from gguf_harness.measure.measurement import Job, Measurement, as_json
from gguf_harness.measure.passes.calls import Mixture
from gguf_harness.measure.weights.tasks import measure_weight_errors
from gguf_harness.metrics.sensitivity import Effect, Sensitivity, TensorGroup, group_kld, restored_gain
from gguf_harness.metrics.weight_errors import TensorError

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_harness.gguf.header import TensorInfo
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.passes.calls import CorpusPass
    from gguf_harness.metrics.stats import Samples
    from gguf_harness.store.arrays import Arrays

__all__ = ["TensorSensitivity", "WeightErrors"]

_WINDOWS: Final = 4
"""Windows of a mixture's pass: on the model tiny, errors of 1 to 5 % of a group's KL; groups differ by much more."""
_MOST_LAYER_GROUPS: Final = 8
"""Most decodes of a model with many layers: consecutive layers are grouped."""
_NO_LAYER: Final = -1


def _to_json(errors: list[TensorError]) -> dict[str, Any]:
    return {"tensors": [error.to_json() for error in errors]}


def _from_json(value: dict[str, Any]) -> list[TensorError]:
    return [TensorError(**error) for error in value["tensors"]]


_ERRORS: Final = Measurement("weights/errors", 2, measure_weight_errors, "M weights", as_json(_to_json, _from_json))


class WeightErrors:
    """Every tensor of a candidate compared with the reference's.

    Args:
        core: runs measurements.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def __call__(self, candidate: Subject, reference: Subject) -> list[TensorError]:
        """Errors of all tensors that both have; see `measure_weight_errors`.

        Raises:
            ModelError: they have no tensor in common, other shapes, or a type that gguf cannot dequantize.
            NoData: one of them is run with adapters.
        """
        _require_files(candidate, reference, "errors of the weights")
        key = {
            "model": candidate.sha256,
            "reference": reference.sha256,
            "gguf": importlib.metadata.version("gguf"),
        }
        # In the candidate's worker: its session stays loaded.
        job = Job(
            _ERRORS,
            f"weights of {candidate.name}",
            key,
            lambda _: (candidate.files, reference.files),
            subjects=(candidate, reference),
        )
        errors = self._core.measure(job)
        description = "Errors of the weights beside the reference's, by tensor."
        self._core.notes.add_arrays(candidate.name, "weight_errors", description, _error_arrays(errors))
        return errors


def _require_files(candidate: Subject, reference: Subject, what: str) -> None:
    for subject in (candidate, reference):
        subject.require_no_adapters(what)


class TensorSensitivity:
    """Effect on the predictions of quantizing each group of tensors alone.

    Args:
        core: runs measurements.
        passes: decode mixtures of a candidate and its reference.
    """

    def __init__(self, core: Core, passes: CorpusPass) -> None:
        self._core = core
        self._passes = passes

    def __call__(self, candidate: Subject, reference: Subject) -> Sensitivity:
        """KL divergence by role and by layer, and by role restored.

        Raises:
            NoData: no tensor of the two differs, or one of them is run with adapters.
        """
        _require_files(candidate, reference, "mixtures of tensors")
        key = ("sensitivity", candidate.name, candidate.sha256, reference.sha256, self._passes.corpus.sha256)
        sensitivity = self._core.once(key, lambda: self._measure(candidate, reference))
        description = "KL divergence with one group of tensors quantized, or restored."
        self._core.notes.add_arrays(candidate.name, "sensitivity", description, _effect_arrays(sensitivity))
        return sensitivity

    def _measure(self, candidate: Subject, reference: Subject) -> Sensitivity:
        changed = differing_tensors(reference.files, candidate.files)
        if not changed:
            raise NoData(f"No tensor of {candidate.name} differs from {reference.name}'s.")
        roles = [_group(role, None, names, changed) for role, names in by_role(changed).items()]
        layers = [
            _group(_layers(*span), span[0] if span[0] == span[1] else None, names, changed)
            for span, names in by_layers(changed, _MOST_LAYER_GROUPS).items()
        ]

        def quantized(group: TensorGroup) -> Samples:
            """KL of the reference with the candidate's tensors of a group."""
            label = f"{candidate.name}, only {group.name}"
            return self._kld(self._mixture(reference, candidate, group, label, candidate), candidate, reference)

        def restored(group: TensorGroup) -> Samples:
            """KL of the candidate with the reference's tensors of a group."""
            label = f"{candidate.name} without {group.name}"
            return self._kld(self._mixture(candidate, reference, group, label, candidate), candidate, reference)

        return Sensitivity(
            candidate=self._kld(self._whole(candidate), candidate, reference),
            roles=tuple(Effect(group, quantized(group)) for group in roles),
            layers=tuple(Effect(group, quantized(group)) for group in layers),
            restored=tuple(Effect(group, restored(group)) for group in roles),
        )

    def _whole(self, candidate: Subject) -> Mixture:
        """The candidate itself, on the same few windows."""

        @contextlib.contextmanager
        def whole() -> Iterator[Sequence[Path]]:
            yield candidate.files
            self._core.models.check_unchanged(candidate.model)

        return Mixture(candidate.name, candidate.sha256, _worker(candidate), whole)

    def _mixture(self, base: Subject, other: Subject, group: TensorGroup, label: str, candidate: Subject) -> Mixture:
        recipe = json.dumps([base.sha256, other.sha256, sorted(group.tensors)])

        @contextlib.contextmanager
        def written() -> Iterator[Sequence[Path]]:
            with self._core.cache.scratch() as folder:
                files = write_mixture(base.files, other.files, group.tensors, folder)
                self._core.models.check_unchanged(base.model, other.model)
                yield files

        return Mixture(label, hashlib.sha256(recipe.encode()).hexdigest(), _worker(candidate), written)

    def _kld(self, mixture: Mixture, candidate: Subject, reference: Subject) -> Samples:
        chunks = min(_WINDOWS, self._core.options.chunks or _WINDOWS)
        return self._passes.mixture(mixture, candidate, reference, chunks)["kld"].astype(np.float64)


def _worker(candidate: Subject) -> str:
    return f"{candidate.name} in parts"


def _group(
    name: str, layer: int | None, tensors: Iterable[str], changed: dict[str, tuple[TensorInfo, TensorInfo]]
) -> TensorGroup:
    pairs = [changed[tensor] for tensor in tensors]
    return TensorGroup(
        name,
        layer,
        tuple(own.name for own, _ in pairs),
        tuple(dict.fromkeys(other.type for _, other in pairs)),
        sum(other.bytes for _, other in pairs),
        sum(own.bytes for own, _ in pairs),
    )


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _error_arrays(errors: list[TensorError]) -> Arrays:
    """Arrays for charts; NaN where a number is not defined."""

    def column(attribute: str) -> list[float]:
        values = [getattr(error, attribute) for error in errors]
        return [float("nan") if value is None else float(value) for value in values]

    layers = [layer_of(error.name) for error in errors]
    return {
        "tensor": np.array([error.name for error in errors]),
        "role": np.array([role_of(error.name) for error in errors]),
        "layer": np.array([_NO_LAYER if layer is None else layer for layer in layers], dtype=np.int64),
        "type": np.array([error.type for error in errors]),
        "reference_type": np.array([error.reference_type for error in errors]),
        "weights": np.array([error.weights for error in errors], dtype=np.int64),
        **{
            name: np.array(column(name))
            for name in ("bits", "relative_rmse", "max_error", "cosine", "snr_db", "outlier_share", "largest_sigmas")
        },
    }


def _effect_arrays(sensitivity: Sensitivity) -> Arrays:
    """Arrays for charts: kind, name, estimates and added size of each group when restored."""
    rows: list[tuple[str, Effect]] = [
        *(("role", effect) for effect in sensitivity.roles),
        *(("layer", effect) for effect in sensitivity.layers),
        *(("restored", effect) for effect in sensitivity.restored),
    ]
    klds = [group_kld(effect.kld) for _, effect in rows]
    gains = [restored_gain(sensitivity.candidate, effect.kld, effect.group.growth)[0] for _, effect in rows]
    whole = group_kld(sensitivity.candidate)
    return {
        "kind": np.array([kind for kind, _ in rows]),
        "group": np.array([effect.group.name for _, effect in rows]),
        "described": np.array([effect.group.described for _, effect in rows]),
        "kld": np.array([kld.value for kld in klds]),
        "kld_se": np.array([_or_nan(kld.se) for kld in klds]),
        "gain": np.array([gain.value for gain in gains]),
        "gain_se": np.array([_or_nan(gain.se) for gain in gains]),
        "growth": np.array([effect.group.growth for _, effect in rows], dtype=np.int64),
        "candidate": np.array([whole.value, _or_nan(whole.se)]),
    }


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
