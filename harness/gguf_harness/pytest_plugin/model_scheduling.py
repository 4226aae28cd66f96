"""The schedule in xdist's terms: units of tests, for workers. Imported where there is xdist.

The group schedule of xdist 3.8 gives a test that crashed its worker to the next worker, which crashes too. It waits
forever for a worker whose last unit is a single test: a worker starts its last test only when it knows that none
follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling

from gguf_harness.pytest_plugin.schedule import Schedule

__all__ = ["ModelScheduling"]


class ModelScheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist is untyped
    """Gives workers the units that `Schedule` chooses, each as late as possible.

    Args:
        config: of the session.
        log: of xdist.
        unit_of: name of the unit of a test; None to leave it to xdist.
        plan: makes the schedule of the units: ids of their tests, by their names.
    """

    def __init__(
        self,
        config: pytest.Config,
        log: Any,
        unit_of: Callable[[str], str | None],
        plan: Callable[[Mapping[str, Iterable[str]]], Schedule],
    ) -> None:
        super().__init__(config, log)
        self._unit_of = unit_of
        self._make_plan = plan
        self._plan: Schedule | None = None

    @property
    def plan(self) -> Schedule:
        """The schedule; made when the first unit is given."""
        if self._plan is None:
            self._plan = self._make_plan(self.workqueue)
        return self._plan

    def _split_scope(self, nodeid: str) -> str:
        unit = self._unit_of(nodeid)
        return super()._split_scope(nodeid) if unit is None else unit

    def _assign_work_unit(self, node: Any) -> None:
        """Give a worker the unit that is its best choice now; end it if there is none."""
        for each in self.nodes:
            if not self.plan.knows(each):
                self.plan.join(each)
            if each.shutting_down:
                self.plan.release(each)
        piece = self.plan.next(node, time.monotonic())
        if piece is None:
            # The others will have done what is left before this one could.
            node.shutdown()
            return
        self.workqueue.move_to_end(piece.name, last=False)
        super()._assign_work_unit(node)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Note that a test has ended, and with the last one its unit."""
        ended = self.registered_collections[node][item_index]
        unit = self._split_scope(ended)
        if all(done or test == ended for test, done in self.assigned_work[node][unit].items()):
            self.plan.end(unit, time.monotonic())
        super().mark_test_complete(node, item_index, duration)

    def remove_node(self, node: Any) -> str | None:
        """Take a worker away. What it had waits again, but for the test that it died of, which is returned."""
        work = self.assigned_work.pop(node)
        crashed: str | None = next((test for unit in work.values() for test, ended in unit.items() if not ended), None)
        left = {name: {test: ended or test == crashed for test, ended in unit.items()} for name, unit in work.items()}
        if crashed is not None and all(left[self._split_scope(crashed)].values()):
            self.plan.end(self._split_scope(crashed), time.monotonic())
        # A worker may die before anything was given out.
        if self._plan is not None and self._plan.knows(node):
            self._plan.lost(node)
        self.workqueue.update({name: unit for name, unit in left.items() if not all(unit.values())})
        for other in self.nodes if crashed is not None else ():
            self._reschedule(other)
        return crashed

    def schedule(self) -> None:
        """Begin, or tell workers that took another's place what follows their last test."""
        begun = self.collection is not None
        super().schedule()
        for node in self.nodes if begun else ():
            self._reschedule(node)

    def _reschedule(self, node: Any) -> None:
        # A replacement worker may not have reported its collection yet.
        if node not in self.registered_collections:
            return
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
        if not self.workqueue and not node.shutting_down:
            node.shutdown()
