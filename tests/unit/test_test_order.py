"""The order of tests: by file, and with --gguf-until-decided those first that are decided soonest."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.engine.settings import KVTypes
from gguf_harness.inputs.ladder import Ladder, PlannedModel, PlannedSubject
from gguf_harness.inputs.sources import ModelSource
from gguf_harness.pytest_plugin.order import order_of_models

BASE = PlannedModel("base-F16")


def _ladder(*candidates: PlannedModel) -> Ladder:
    subjects = tuple(PlannedSubject(model) for model in candidates)
    kept = PlannedSubject(BASE, kv=KVTypes("q8_0", "q8_0"))
    return Ladder(PlannedSubject(BASE), subjects, "", cached=(kept,))


def _order(ladder: Ladder, *, until_decided: bool) -> list[str]:
    places = order_of_models(ladder, until_decided=until_decided)
    return sorted(places, key=places.__getitem__)


def test_candidates_come_from_both_ends_and_the_reference_last_where_passes_stop_early() -> None:
    quants = ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K")
    ladder = _ladder(*(PlannedModel(name, base=BASE, quant=name) for name in quants))
    base = [BASE.name, ladder.cached[0].name]
    assert _order(ladder, until_decided=False) == [*base, *quants]
    assert _order(ladder, until_decided=True) == ["Q2_K", "Q8_0", "Q3_K_M", "Q6_K", "Q4_K_M", *base]


def test_given_files_are_ordered_by_their_sizes(tmp_path: Path) -> None:
    models = []
    for name, size in (("middle", 20), ("large", 30), ("small", 10), ("gone", None)):
        file = tmp_path / f"{name}.gguf"
        if size is not None:
            file.write_bytes(bytes(size))
        models.append(PlannedModel(name, source=ModelSource(name, (file,), str(file))))
    assert _order(_ladder(*models), until_decided=True)[:4] == ["gone", "large", "small", "middle"]


@pytest.mark.parametrize("until_decided", [False, True])
def test_without_a_reference_there_is_nothing_to_put_last(until_decided: bool) -> None:
    ladder = Ladder(None, (PlannedSubject(BASE),), "")
    assert _order(ladder, until_decided=until_decided) == [BASE.name]
