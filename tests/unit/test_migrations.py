"""Runs of earlier schemas are read as current ones, and nothing that they hold is lost."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_harness.errors import StoreError
from gguf_harness.metrics.records import SCHEMA_VERSION
from gguf_harness.store.migrations import migrate
from gguf_harness.store.run_content import content_problem
from gguf_harness.store.runs import load_run
from tests.stored_runs import STORED, any_run, stored_content, write_run

PLACE = ("prompt", "layer", "head", "part")
SUBJECT = ("file", "variant", "context", "adapters")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "model", "x"]), inner),
    max_leaves=12,
)


def _is_kept(old: Any, new: Any) -> bool:
    """Whether all of one value is in the other, which may have more keys."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and _is_kept(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return isinstance(new, list) and len(old) == len(new) and all(map(_is_kept, old, new))
    return bool(old == new)


def test_the_stored_run_is_of_the_first_schema_and_reads_as_the_current_one() -> None:
    old, new = stored_content(), load_run(STORED / "run.json")
    assert (old["schema_version"], new["schema_version"]) == (1, SCHEMA_VERSION) == (1, 2)
    assert content_problem(new) is None
    assert _is_kept(old | {"schema_version": 2}, new)
    assert len(new["models"]) == 6
    for model in new["models"]:
        assert [model[key] for key in SUBJECT] == [model["name"], None, None, []]
    for table in ("estimates", "gates"):
        assert all(row[key] is None for row in new[table] for key in PLACE)


def test_a_place_that_was_known_stays_and_the_rest_is_null() -> None:
    missing = {"model": "m", "metric": "", "baseline": "b", "outcome": "missing", "detail": "no partner", "changes": []}
    new = migrate(
        {
            "schema_version": 1,
            "id": "a",
            "estimates": [],
            "gates": [{"model": "m", "metric": "attn_cosine", "layer": 3, "head": 2, "part": None}],
            "baseline": {"name": "b", "comparisons": [missing, missing | {"part": "attn_q"}]},
        }
    )
    (gate,) = new["gates"]
    assert gate == {"model": "m", "metric": "attn_cosine", "prompt": None, "layer": 3, "head": 2, "part": None}
    assert [[one[key] for key in PLACE] for one in new["baseline"]["comparisons"]] == [
        [None] * 4,
        [None, None, None, "attn_q"],
    ]
    assert new["baseline"]["name"] == "b"


def test_the_content_that_is_given_is_not_changed() -> None:
    old = stored_content()
    before = copy.deepcopy(old)
    new = migrate(old)
    assert old == before
    assert migrate(new) == new
    assert new["estimates"][0] is not old["estimates"][0]


@settings(max_examples=25)
@given(any_run())
def test_a_current_run_stays_as_it_is(run: dict[str, Any]) -> None:
    assert migrate(run) == run
    assert content_problem(run) is None


@given(st.dictionaries(st.sampled_from(["id", "models", "estimates", "gates", "baseline", "other"]), JSON))
def test_whatever_a_run_of_the_first_schema_holds_is_kept(content: dict[str, Any]) -> None:
    """Damage too: it is the check of the content that names it."""
    new = migrate(content | {"schema_version": 1})
    assert _is_kept(content, new)
    assert new["schema_version"] == SCHEMA_VERSION
    assert migrate(new) == new
    problem = content_problem(new)
    assert problem is None or isinstance(problem, str)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "has schema version 3, this harness reads up to 2"),
        (10**30, "has schema version 10000000000000000000, this harness reads up to 2"),
        (0, "is not a run: it has schema version 0, expected 1 to 2"),
        (-1, "is not a run: it has schema version -1, expected 1 to 2"),
        (True, "has no schema_version"),
        (1.0, "has no schema_version"),
        ("1", "has no schema_version"),
        (None, "has no schema_version"),
    ],
)
def test_other_versions_are_refused(version: object, message: str, tmp_path: Path) -> None:
    content = {"schema_version": version, "id": "a", "estimates": []}
    with pytest.raises(StoreError, match=message):
        migrate(content)
    file = write_run(tmp_path, content)
    with pytest.raises(StoreError, match=message) as raised:
        load_run(file)
    assert raised.value.message.startswith(str(file))
    assert raised.value.hint
