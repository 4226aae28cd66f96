"""The house as ARCHITECTURE.md describes it: few rooms, short modules, names that mean one thing.

What imports what is held by `lint-imports`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import gguf_harness

PACKAGE = Path(gguf_harness.__file__).parent
SOURCES = [*PACKAGE.glob("*.py"), *PACKAGE.glob("views/*.py")] + [
    # views/node_modules is large.
    file
    for room in PACKAGE.iterdir()
    if room.name != "views"
    for file in room.rglob("*.py")
]
TOP_LEVEL = {"fixtures", "suites"}
"""Folders of the repository that the package links to."""
SIDES = {"tasks", "calls"}
"""The side of a capability that runs in the worker, and the one that sends it there."""


def test_there_are_at_most_16_rooms() -> None:
    rooms = {file.relative_to(PACKAGE).parts[0] for file in SOURCES if file.parent != PACKAGE}
    assert "measure" in rooms
    assert len(rooms - TOP_LEVEL) <= 16, sorted(rooms)


def test_no_module_is_longer_than_400_lines() -> None:
    lines = {str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    assert {file: count for file, count in lines.items() if count > 400} == {}


def test_no_two_rooms_have_a_module_of_one_name() -> None:
    rooms = defaultdict(set)
    for file in SOURCES:
        room, *_ = file.relative_to(PACKAGE).parts
        if file.stem != "__init__" and file.stem not in SIDES and room not in TOP_LEVEL:
            rooms[file.stem].add(room)
    assert {name: sorted(where) for name, where in rooms.items() if len(where) > 1} == {}
