"""Under `pytest -n`, all tests of a model run in one process, which loads it once.

pytest-xdist's controller makes the schedule, and only its workers know which model a test is of. xdist's own way, a
mark whose name is appended to the test's id, does nothing with pytest 9.2, and would show in every id. Here workers
append the group in one message only, that of what they collected, and the controller takes it off before anyone else
reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

__all__ = ["ModelGroups", "can_group", "send_groups"]

_SEPARATOR: Final = "\x1f"
"""Between id, group and suite. pytest escapes it in ids."""
_PREFIX: Final = "gguf-"


def can_group(config: pytest.Config) -> bool:
    """Whether tests are distributed in a way that leaves the choice to us: with -n alone, or by groups."""
    return config.getoption("dist", "no") in {"load", "loadgroup"} and bool(config.getoption("tx", None))


class ModelGroups:
    """The part of xdist's controller: makes a schedule by the groups that workers send."""

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}
        self._suites: dict[str, str] = {}

    def about(self, test: str) -> tuple[str | None, str]:
        """Model (None where it is of none) and suite of a test, by its id."""
        return self._groups.get(test, "").removeprefix(_PREFIX) or None, self._suites.get(test, "")

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Take the groups off the ids that a worker collected."""
        parts = [test.split(_SEPARATOR) for test in ids]
        self._groups |= {part[0]: part[1] for part in parts if len(part) > 1}
        self._suites |= {part[0]: part[2] for part in parts if len(part) > 1}
        ids[:] = [part[0] for part in parts]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A schedule whose units are groups; a test without one is a unit, or in the group of its mark.

        xdist 3.8's own schedule by groups gives a test that its worker died of to the next worker, which dies of it as
        well, and waits for ever for a worker whose last unit is a single test.
        """
        from xdist.scheduler import LoadGroupScheduling

        groups, by_mark = self._groups, config.getoption("dist") == "loadgroup"

        class ModelScheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist is untyped
            def _split_scope(self, nodeid: str) -> str:
                return groups.get(nodeid) or (super()._split_scope(nodeid) if by_mark else nodeid)

            def remove_node(self, node: Any) -> str | None:
                work = self.assigned_work.pop(node)
                crashed: str | None = next(
                    (test for unit in work.values() for test, ended in unit.items() if not ended), None
                )
                if crashed is None:
                    return None
                left = {
                    name: {test: ended or test == crashed for test, ended in unit.items()}
                    for name, unit in work.items()
                }
                self.workqueue.update({name: unit for name, unit in left.items() if not all(unit.values())})
                for other in self.nodes:
                    self._reschedule(other)
                return crashed

            def schedule(self) -> None:
                begun = self.collection is not None
                super().schedule()
                # A worker begins its last test when it knows that none follows: one that took another's place is told.
                for node in self.nodes if begun else ():
                    self._reschedule(node)

            def _reschedule(self, node: Any) -> None:
                # One that takes another's place may not have said yet what it collected.
                if node in self.registered_collections:
                    super()._reschedule(node)

        return ModelScheduling(config, log)


def send_groups(config: pytest.Config, tests: Mapping[str, tuple[str, str]]) -> None:
    """The part of xdist's workers: append groups to ids in the message of what was collected.

    Args:
        config: of a worker.
        tests: name of the model ("" for none) and suite by a test's id.
    """
    groups = {test: f"{_PREFIX}{model}{_SEPARATOR}{suite}" for test, (model, suite) in tests.items()}
    # xdist runs the class in a module without a name, so that it cannot be imported.
    interactors = [plugin for plugin in config.pluginmanager.get_plugins() if hasattr(plugin, "sendevent")]
    for interactor in interactors:
        _append_groups(interactor, groups)


def _append_groups(interactor: Any, groups: Mapping[str, str]) -> None:
    send = interactor.sendevent

    def sendevent(name: str, **content: Any) -> None:
        if name == "collectionfinish":
            content["ids"] = [f"{i}{_SEPARATOR}{groups[i]}" if i in groups else i for i in content["ids"]]
        send(name, **content)

    interactor.sendevent = sendevent
