"""Scheduling for `pytest -n`: all tests of a model run in one process, which loads it once.

The controller of pytest-xdist makes the schedule, but only its workers know the model of each test. xdist's own mark,
whose name is appended to the test id, does not work with pytest 9.2 and would show in every id. Here workers append the
group only in the message about collected tests, and the controller removes it before anyone else reads the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

__all__ = ["ModelGroups", "append_id", "can_group", "send_groups"]

_SEPARATOR: Final = "\x1f"
"""Separator between id, group and suite. pytest escapes it in ids."""
_PREFIX: Final = "gguf-"


def can_group(config: pytest.Config) -> bool:
    """Whether the distribution mode allows our schedule: -n without a mode, or by groups."""
    return config.getoption("dist", "no") in {"load", "loadgroup"} and bool(config.getoption("tx", None))


class ModelGroups:
    """Plugin for xdist's controller: makes a schedule from the groups that workers send."""

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}
        self._suites: dict[str, str] = {}

    def about(self, test: str) -> tuple[str | None, str]:
        """Model (or None) and suite of a test, by its id."""
        return self._groups.get(test, "").removeprefix(_PREFIX) or None, self._suites.get(test, "")

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Remove the groups from the ids that a worker collected."""
        parts = [test.split(_SEPARATOR) for test in ids]
        self._groups |= {part[0]: part[1] for part in parts if len(part) > 1}
        self._suites |= {part[0]: part[2] for part in parts if len(part) > 1}
        ids[:] = [part[0] for part in parts]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Make a schedule whose units are groups; a test without one is a unit by itself, or in the group of its mark.

        The group schedule of xdist 3.8 gives a test that crashed its worker to the next worker, which crashes too, and
        it waits forever for a worker whose last unit is a single test.
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
                # A worker starts its last test only when it knows that none follows: tell workers that replaced
                # another.
                for node in self.nodes if begun else ():
                    self._reschedule(node)

            def _reschedule(self, node: Any) -> None:
                # A replacement worker may not have reported its collection yet.
                if node in self.registered_collections:
                    super()._reschedule(node)

        return ModelScheduling(config, log)


def send_groups(config: pytest.Config, tests: Mapping[str, tuple[str, str]]) -> None:
    """Plugin part for xdist's workers: append groups to ids in the message about collected tests.

    Args:
        config: of a worker.
        tests: name of the model ("" for none) and suite by a test's id.
    """
    groups = {test: f"{_PREFIX}{model}{_SEPARATOR}{suite}" for test, (model, suite) in tests.items()}
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
