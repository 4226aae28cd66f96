"""What the files say of quantization, and what each group of tensors costs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import NoData
from gguf_harness.gguf.groups import by_layers, by_role
from gguf_harness.gguf.mixture import differing_tensors, write_mixture
from gguf_harness.measure.weights import measure_weight_errors
from gguf_harness.metrics.sensitivity import Effect, Sensitivity, TensorGroup
from gguf_harness.metrics.weight_errors import TensorError
from gguf_harness.runner.core import LoadedModel
from gguf_harness.runner.passes import Mixture

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_harness.gguf.header import TensorInfo
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.metrics.stats import Samples
    from gguf_harness.runner.core import Core
    from gguf_harness.runner.passes import Passes

__all__ = ["Tensors"]

_WINDOWS: Final = 4
"""Windows of a mixture's pass: on the model tiny, errors of 1 to 5 % of a group's KL; groups differ by much more."""
_MOST_LAYER_GROUPS: Final = 8
"""A model of many layers is decoded so many times at most: consecutive layers go together."""


class Tensors:
    """Errors of weights, and mixtures of a candidate and its reference; each once, from the cache where it can."""

    def __init__(self, core: Core, passes: Passes) -> None:
        self._core = core
        self._passes = passes

    def errors(self, model: LoadedModel, reference: LoadedModel) -> list[TensorError]:
        """Every tensor that both have; see `measure_weight_errors`. In the model's worker: its session stays loaded."""
        key = {
            "model": model.sha256,
            "reference": reference.sha256,
            "gguf": importlib.metadata.version("gguf"),
        }
        entry = self._core.cache.entry("weights/errors", key)

        def measure() -> dict[str, Any]:
            with self._core.progress.task(f"weights of {model.name}", "M weights") as show:
                worker = self._core.shared_worker(model.name)
                found = worker.call(measure_weight_errors, show, model.files, reference.files)
            self._core.check_unchanged(model, reference)
            return {"tensors": [error.to_json() for error in found]}

        def load() -> list[TensorError]:
            return self._core.stored(entry, measure, lambda value: [TensorError(**error) for error in value["tensors"]])

        return self._core.once(("weight_errors", str(entry.folder)), load)

    def sensitivity(self, model: LoadedModel, reference: LoadedModel, corpus: Corpus) -> Sensitivity:
        """What each group of tensors does to the predictions: by role, by layer, and by role restored.

        Raises:
            NoData: no tensor of the two differs.
        """
        key = ("sensitivity", model.sha256, reference.sha256, corpus.sha256)
        return self._core.once(key, lambda: self._measure(model, reference, corpus))

    def _measure(self, model: LoadedModel, reference: LoadedModel, corpus: Corpus) -> Sensitivity:
        changed = differing_tensors(reference.files, model.files)
        if not changed:
            raise NoData(f"No tensor of {model.name} differs from {reference.name}'s.")
        mixer = _Mixer(self._core, self._passes, model, reference, corpus)
        roles = [_group(role, None, names, changed) for role, names in by_role(changed).items()]
        layers = [
            _group(_layers(*span), span[0] if span[0] == span[1] else None, names, changed)
            for span, names in by_layers(changed, _MOST_LAYER_GROUPS).items()
        ]
        return Sensitivity(
            candidate=mixer.candidate(),
            roles=tuple(Effect(group, mixer.quantized(group)) for group in roles),
            layers=tuple(Effect(group, mixer.quantized(group)) for group in layers),
            restored=tuple(Effect(group, mixer.restored(group)) for group in roles),
        )


@dataclass(frozen=True, slots=True)
class _Mixer:
    """Decodes mixtures of two models."""

    core: Core
    passes: Passes
    model: LoadedModel
    reference: LoadedModel
    corpus: Corpus

    def candidate(self) -> Samples:
        """KL of the candidate itself, on the same few windows."""

        @contextlib.contextmanager
        def whole() -> Iterator[Sequence[Path]]:
            yield self.model.files
            self.core.check_unchanged(self.model)

        return self._kld(self.model, whole)

    def quantized(self, group: TensorGroup) -> Samples:
        """KL of the reference with the candidate's tensors of a group."""
        return self._mixed(self.reference, self.model, group, f"{self.model.name}, only {group.name}")

    def restored(self, group: TensorGroup) -> Samples:
        """KL of the candidate with the reference's tensors of a group."""
        return self._mixed(self.model, self.reference, group, f"{self.model.name} without {group.name}")

    def _mixed(self, base: LoadedModel, other: LoadedModel, group: TensorGroup, name: str) -> Samples:
        recipe = json.dumps([base.sha256, other.sha256, sorted(group.tensors)])
        mixed = LoadedModel(name, base.info, hashlib.sha256(recipe.encode()).hexdigest())

        @contextlib.contextmanager
        def written() -> Iterator[Sequence[Path]]:
            with self.core.cache.scratch() as folder:
                files = write_mixture(base.files, other.files, group.tensors, folder)
                self.core.check_unchanged(base, other)
                yield files

        return self._kld(mixed, written)

    def _kld(
        self, model: LoadedModel, written: Callable[[], contextlib.AbstractContextManager[Sequence[Path]]]
    ) -> Samples:
        import numpy as np

        chunks = min(_WINDOWS, self.core.options.chunks or _WINDOWS)
        mixture = Mixture(model, f"{self.model.name} in parts", written)
        return self.passes.mixture(mixture, self.reference, self.corpus, chunks)["kld"].astype(np.float64)


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
