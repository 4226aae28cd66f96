"""The plan of a session: which model is the reference, which are candidates, and what must be quantized first."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.errors import HarnessError, ModelNotFound
from harness.models import ModelInfo, choose_reference, load_info
from harness.pairing import FAMILY, Subject
from harness.sources import ModelSource, expand_all

if TYPE_CHECKING:
    from harness.options import Options

__all__ = ["Ladder", "PlannedModel", "plan_ladder", "quantized_name", "subjects_of"]

_PRECISION: Final = re.compile(r"[-_.](F32|F16|BF16)$", re.IGNORECASE)
_EXPANDED_BITS: Final = 16.0


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model of a session, perhaps not on disk yet.

    Attributes:
        name: as it stands in tests, tables and results.
        source: files that exist; None when it is quantized from `base`.
        base: the model that it is quantized from.
        quant: the type that it is quantized to; None to use the source as it is.
    """

    name: str
    source: ModelSource | None = None
    base: PlannedModel | None = None
    quant: str | None = None


@dataclass(frozen=True, slots=True)
class Ladder:
    """A reference and the candidates that are compared with it.

    Attributes:
        reason: a sentence that says why this is the reference.
    """

    reference: PlannedModel | None
    candidates: tuple[PlannedModel, ...]
    reason: str

    @property
    def models(self) -> tuple[PlannedModel, ...]:
        """The reference first, then the candidates."""
        return (*((self.reference,) if self.reference else ()), *self.candidates)


def plan_ladder(options: Options) -> Ladder:
    """Find the models and the reference. Reads headers only.

    A file that is not valid stays a candidate: its own tests will say what is wrong with it.

    Raises:
        ModelNotFound: a spec names nothing, or --reference names several models.
    """
    named = expand_all([*options.models, *([options.reference] if options.reference else [])])
    planned = {source.files: _planned(source) for source in named}
    if options.reference:
        found = expand_all([options.reference])
        if len(found) != 1:
            raise ModelNotFound(
                f"--reference={options.reference} names {len(found)} models.", "Give exactly one reference."
            )
        reference: PlannedModel | None = planned[found[0].files]
        reason = f"{planned[found[0].files].name} is the reference, as asked for."
    else:
        reference, reason = _choose(named, planned)
    quantized = _quantized(reference, options.quants) if reference else ()
    taken = {model.name for model in quantized}
    others = tuple(m for m in planned.values() if m is not reference and m.name not in taken)
    return Ladder(reference, (*others, *quantized), reason)


def _planned(source: ModelSource) -> PlannedModel:
    if source.expand_to is None:
        return PlannedModel(source.name, source)
    return PlannedModel(f"{source.name}-{source.expand_to}", source, quant=source.expand_to)


def _choose(
    sources: list[ModelSource], planned: dict[tuple[Path, ...], PlannedModel]
) -> tuple[PlannedModel | None, str]:
    infos: list[ModelInfo] = []
    for source in sources:
        try:
            info = replace(load_info(source), name=planned[source.files].name)
        except HarnessError:
            continue  # its tests fail with this error; the others can still be compared
        if source.expand_to:
            info = replace(info, quantization=source.expand_to, bits_per_weight=_EXPANDED_BITS)
        infos.append(info)
    if not infos:
        return None, "No valid model was given, so there is no reference."
    best, reason = choose_reference(infos)
    return planned[best.files], reason


def _quantized(reference: PlannedModel, quants: tuple[str, ...]) -> tuple[PlannedModel, ...]:
    return tuple(PlannedModel(quantized_name(reference.name, quant), base=reference, quant=quant) for quant in quants)


def quantized_name(name: str, quant: str) -> str:
    """`model-F16` quantized to Q4_K_M is `model-Q4_K_M`."""
    return f"{_PRECISION.sub('', name)}-{quant}"


def subjects_of(ladder: Ladder) -> list[Subject]:
    """The models of a session, to be paired with earlier ones. Reads headers only."""
    return [_subject(planned, reference=planned is ladder.reference) for planned in ladder.models]


def _subject(planned: PlannedModel, *, reference: bool) -> Subject:
    origin = planned
    while origin.base is not None:
        origin = origin.base
    try:
        info = load_info(origin.source) if origin.source is not None else None
    except HarnessError:
        info = None  # its tests fail with this error
    family = None if info is None else tuple(str(getattr(info, key)) for key in FAMILY)
    return Subject(planned.name, planned.quant or (info.quantization if info else None), family, reference)
