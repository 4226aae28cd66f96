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
"""Between id and group. pytest escapes it in ids."""


def can_group(config: pytest.Config) -> bool:
    """Whether tests are distributed in a way that leaves the choice to us: with -n alone, or by groups."""
    return config.getoption("dist", "no") in {"load", "loadgroup"} and bool(config.getoption("tx", None))


class ModelGroups:
    """The part of xdist's controller: makes a schedule by the groups that workers send."""

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Take the groups off the ids that a worker collected."""
        parts = [test.partition(_SEPARATOR) for test in ids]
        self._groups |= {test: group for test, _, group in parts if group}
        ids[:] = [test for test, _, _ in parts]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A schedule whose units are groups; a test without one is a unit, or in the group of its mark."""
        from xdist.scheduler import LoadGroupScheduling

        groups, by_mark = self._groups, config.getoption("dist") == "loadgroup"

        class ModelScheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist is untyped
            def _split_scope(self, nodeid: str) -> str:
                return groups.get(nodeid) or (super()._split_scope(nodeid) if by_mark else nodeid)

        return ModelScheduling(config, log)


def send_groups(config: pytest.Config, groups: Mapping[str, str]) -> None:
    """The part of xdist's workers: append groups to ids in the message of what was collected.

    Args:
        config: of a worker.
        groups: by a test's id.
    """
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
