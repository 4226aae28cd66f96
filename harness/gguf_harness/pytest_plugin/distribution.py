"""Scheduling for `pytest -n`: a model's tests run in the process that has loaded it, those that take longest first.

The controller of pytest-xdist makes the schedule, but only its workers know the model of each test. xdist's own mark,
whose name is appended to the test id, does not work with pytest 9.2 and would show in every id. Here workers append the
group only in the message about collected tests, and the controller removes it before anyone else reads the ids.

What is given out is a model's tests of one suite; `schedule.py` decides which and to whom.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from gguf_harness.pytest_plugin.schedule import Piece, Schedule

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder, PlannedModel
    from gguf_harness.pytest_plugin.state import State

__all__ = ["ModelGroups", "append_id", "can_group", "schedule_of", "send_groups"]

_SEPARATOR: Final = "\x1f"
"""Separator between id, group, suite and function. pytest escapes it in ids."""
_PREFIX: Final = "gguf-"


def can_group(config: pytest.Config) -> bool:
    """Whether the distribution mode allows our schedule: -n without a mode, or by groups."""
    return config.getoption("dist", "no") in {"load", "loadgroup"} and bool(config.getoption("tx", None))


class ModelGroups:
    """Plugin for xdist's controller: makes a schedule from the groups that workers send.

    Args:
        state: of the session.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._groups: dict[str, str] = {}
        self._suites: dict[str, str] = {}
        self._functions: dict[str, str] = {}

    def about(self, test: str) -> tuple[str | None, str]:
        """Model (or None) and suite of a test, by its id."""
        return self._groups.get(test, "").removeprefix(_PREFIX) or None, self._suites.get(test, "")

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Remove the groups from the ids that a worker collected."""
        parts = [test.split(_SEPARATOR) for test in ids]
        self._groups |= {part[0]: part[1] for part in parts if len(part) > 1}
        self._suites |= {part[0]: part[2] for part in parts if len(part) > 1}
        self._functions |= {part[0]: part[3] for part in parts if len(part) > 1}
        ids[:] = [part[0] for part in parts]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Make a schedule whose units are a model's tests of a suite.

        A test without a model is a unit by itself, or in the group of its mark.
        """
        from gguf_harness.pytest_plugin.model_scheduling import ModelScheduling

        by_mark = config.getoption("dist") == "loadgroup"

        def unit_of(test: str) -> str | None:
            if test in self._groups:
                return f"{self._groups[test]}{_SEPARATOR}{self._suites[test]}"
            return None if by_mark else test

        return ModelScheduling(config, log, unit_of, partial(_plan, functions=self._functions, state=self._state))


def _plan(units: Mapping[str, Iterable[str]], functions: Mapping[str, str], state: State) -> Schedule:
    """The schedule of a session's units.

    Args:
        units: ids of the tests of each, by its name.
        functions: names of the tests' functions, by their ids.
        state: of the session.
    """
    about = {unit: _model_and_suite(unit) for unit in units}
    if not any(model for model, _ in about.values()):
        # No models: none are planned for this.
        return Schedule((Piece(unit, None, 0.0) for unit in units), {})
    from gguf_harness.measure.forecast.needs import Asked
    from gguf_harness.pytest_plugin.durations import expected_seconds

    subjects = {subject.name: subject for subject in state.ladder.subjects}
    asked = {
        unit: [Asked(suite, functions[test], subjects[model]) for test in units[unit]] if model in subjects else []
        for unit, (model, suite) in about.items()
    }
    seconds = expected_seconds(asked, state)
    return schedule_of(about, state.ladder, seconds, until_decided=bool(state.early_limits))


def schedule_of(
    units: Mapping[str, tuple[str, str]], ladder: Ladder, seconds: Mapping[str, float], *, until_decided: bool = False
) -> Schedule:
    """The schedule of tests of the models of a ladder.

    Candidates read what the reference's tests of their suite have measured. With --gguf-until-decided it is the other
    way round: the reference's pass goes as far as candidates need, and how far is known of none of them.

    Args:
        units: (name of the subject, suite) by a unit's name, in the order of collection; the subject is "" for none.
        ladder: of the session.
        seconds: that each unit is expected to take, by its name.
        until_decided: passes over the corpus stop early.
    """
    files = {subject.name: subject.model for subject in ladder.subjects}
    reference = None if ladder.reference is None else ladder.reference.name
    first = {suite: unit for unit, (subject, suite) in units.items() if subject == reference and not until_decided}
    pieces = []
    for place, (unit, (subject, suite)) in enumerate(units.items()):
        if subject not in files:
            pieces.append(Piece(unit, None, 0.0))
            continue
        takes = seconds[unit]
        if until_decided:
            # Candidates in the order of collection, see `order_of_models`: as if each took an hour more than the next,
            # beside which no loading counts. The reference last.
            takes = 0.0 if subject == reference else 3600.0 * (len(units) - place)
        before = first.get(suite)
        pieces.append(Piece(unit, files[subject].name, takes, None if before == unit else before))
    return Schedule(pieces, {model.name: _bytes(model, ladder) for model in files.values()})


def _model_and_suite(unit: str) -> tuple[str, str]:
    group, _, suite = unit.partition(_SEPARATOR)
    return (group.removeprefix(_PREFIX), suite) if suite else ("", "")


def _parameters(model: PlannedModel, ladder: Ladder) -> int:
    """Of the file, or of the one that it is quantized from; 0 for a file that cannot be read."""
    info = ladder.infos.get(model.base.name if model.base is not None else model.name)
    return 0 if info is None else info.parameters


def _bytes(model: PlannedModel, ladder: Ladder) -> int:
    """Of the file; about, for one that is still to be quantized: the number in its type's name is that of its bits."""
    info = ladder.infos.get(model.name)
    if info is not None:
        return info.bytes
    bits = re.search(r"\d+", model.quant or "")
    return int(_parameters(model, ladder) * (float(bits[0]) + 1 if bits else 16) / 8)


def send_groups(config: pytest.Config, tests: Mapping[str, tuple[str, str, str]]) -> None:
    """Plugin part for xdist's workers: append groups to ids in the message about collected tests.

    Args:
        config: of a worker.
        tests: name of the model ("" for none), suite and name of the function, by a test's id.
    """
    groups = {test: f"{_PREFIX}{_SEPARATOR.join(about)}" for test, about in tests.items()}
    _change_ids(config, lambda ids: [f"{i}{_SEPARATOR}{groups[i]}" if i in groups else i for i in ids])


def append_id(config: pytest.Config, text: str) -> None:
    """Append a text to the ids in the message about collected tests of an xdist worker; its controller removes it."""
    _change_ids(config, lambda ids: [*ids, text])


def _change_ids(config: pytest.Config, change: Callable[[list[str]], list[str]]) -> None:
    # xdist runs the class in a module without a name, so that it cannot be imported.
    for interactor in [plugin for plugin in config.pluginmanager.get_plugins() if hasattr(plugin, "sendevent")]:
        _wrap(interactor, change)


def _wrap(interactor: Any, change: Callable[[list[str]], list[str]]) -> None:
    send = interactor.sendevent

    def sendevent(name: str, **content: Any) -> None:
        if name == "collectionfinish":
            content["ids"] = change(content["ids"])
        send(name, **content)

    interactor.sendevent = sendevent
