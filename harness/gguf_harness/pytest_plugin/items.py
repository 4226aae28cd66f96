"""Collected tests: which of our fixtures they use, and which subject they are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pytest

from gguf_harness.pytest_plugin.state import STATE

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import PlannedSubject

__all__ = ["PARAMETERS", "model_name", "ours_of", "subject_of"]

_MODELS: Final = frozenset(
    {"model", "candidate", "any_candidate", "cached", "adapted", "adapted_reference", "adapted_candidate"}
)
PARAMETERS: Final = _MODELS | {"prompt"}
"""Fixtures that tests are parametrized over."""
_FIXTURE_NAMES: Final = PARAMETERS | {
    "reference",
    "core",
    "ladder",
    "corpus_pass",
    "analytics",
    "embeddings",
    "layers_of",
}


def ours_of(item: pytest.Item) -> set[str]:
    """Our fixtures that a test uses.

    Another project may have its own fixture `model`, or parametrize one directly: these are left alone. A directly
    parametrized name has no definition, or one made by pytest.
    """
    if not isinstance(item, pytest.Function):
        return set()
    # The only way to determine the owner of a fixture. Names that a parameter replaced are left out.
    definitions = item._fixtureinfo.name2fixturedefs  # noqa: SLF001
    used = {name: definitions[name] for name in _FIXTURE_NAMES & {*item.fixturenames} if definitions.get(name)}
    return {name for name, known in used.items() if _is_built_on_ours(known)}


def _is_built_on_ours(definitions: Sequence[pytest.FixtureDef[Any]]) -> bool:
    """Whether a fixture is ours, or overrides ours and requests it, as in `def model(model)`.

    Args:
        definitions: definitions of one name; each overrides those before it.
    """
    for definition in reversed(definitions):
        if str(definition.func.__module__).startswith("gguf_harness.fixtures."):
            return True
        if definition.argname not in definition.argnames:
            return False
    return False


def subject_of(item: pytest.Item) -> PlannedSubject | None:
    """The subject that a test is about; the reference, where it uses our fixtures and none of the subjects."""
    from gguf_harness.inputs.ladder import PlannedSubject

    callspec = getattr(item, "callspec", None)
    ours = ours_of(item) & _MODELS
    # Another project's parameter may also be called `model`; and our own may be parametrized by name.
    values = [callspec.params[name] for name in sorted(ours) if name in callspec.params] if callspec else []
    model = next((value for value in values if value is not None), None)
    if model is None and not ours:
        model = item.config.stash[STATE].ladder.reference
    if isinstance(model, PlannedSubject):
        return model
    return next((known for known in item.config.stash[STATE].ladder.subjects if known.name == model), None)


def model_name(item: pytest.Item) -> str | None:
    """Its name."""
    subject = subject_of(item)
    return None if subject is None else subject.name
