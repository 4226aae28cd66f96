"""The order of tests: all those of a file together, so that it is loaded once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gguf_harness.gguf.types import FTYPES

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder, PlannedModel

__all__ = ["order_of_models"]


def order_of_models(ladder: Ladder, *, until_decided: bool) -> dict[str, int]:
    """Place of each subject's tests, by its name: the reference first, then the candidates as they were given.

    With --gguf-until-decided the reference comes last, since its pass goes only as far as candidates need. Candidates
    are taken from both ends, the smallest first: these are the furthest from their limits, and are decided soonest.

    Args:
        ladder: of the session.
        until_decided: passes over the corpus stop early.
    """
    subjects = list(ladder.subjects)
    if until_decided:
        reference = None if ladder.reference is None else ladder.reference.model
        files = list(dict.fromkeys(subject.model for subject in subjects if subject.model != reference))
        place = {model: index for index, model in enumerate(_from_both_ends(files))}
        subjects.sort(key=lambda subject: place.get(subject.model, len(place)))
    return {subject.name: index for index, subject in enumerate(subjects)}


def _from_both_ends(models: list[PlannedModel]) -> list[PlannedModel]:
    """The smallest, the largest, the smallest of the rest and so on: first types to quantize to, then given files."""
    types = list(FTYPES)
    by_type = [model for model in models if model.quant is not None]
    by_size = [model for model in models if model.quant is None]
    by_type.sort(key=lambda model: -types.index(str(model.quant)))
    by_size.sort(key=_bytes)
    return [*_ends(by_type), *_ends(by_size)]


def _ends(models: list[PlannedModel]) -> list[PlannedModel]:
    return [models[index // 2 if index % 2 == 0 else -1 - index // 2] for index in range(len(models))]


def _bytes(model: PlannedModel) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in model.source.files) if model.source is not None else 0
    return 0
