"""Prompt sets: prompts that models continue, so that their texts can be compared.

A prompt set is a hand-written TOML file in UTF-8 with one table per prompt:

    [[prompt]]
    id = "story"                 # names the test; unique, printable, at most 80 characters
    text = "Once upon a time"    # continued as it is

    [[prompt]]
    id = "capital"
    messages = [                 # a chat: goes through the model's own chat template
        {role = "system", content = "Be brief."},
        {role = "user", content = "What is the capital of Peru?"},
    ]
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import PromptError, visible
from gguf_harness.store.paths import option_path
from gguf_harness.store.text_files import parse_toml, read_bytes

__all__ = ["BUILT_IN", "ROLES", "Message", "Prompt", "PromptSet", "load_prompts"]

BUILT_IN: Final = "built-in"
ROLES: Final = ("system", "user", "assistant")
_FIELDS: Final = ("id", "text", "messages")
_MESSAGE_FIELDS: Final = ("role", "content")
_MAX_ID: Final = 80
_EXAMPLE: Final = 'tables such as: [[prompt]], id = "story", text = "Once upon a time".'


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue, which may be empty, or a chat to answer.

    Attributes:
        text: None for a chat.
        messages: empty for a text.
    """

    id: str
    text: str | None = None
    messages: tuple[Message, ...] = ()

    def plain(self) -> str:
        """The text; for a chat its turns as `role: content`, ending where the assistant's turn begins."""
        if self.text is not None:
            return self.text
        return "".join(f"{message.role}: {message.content}\n\n" for message in self.messages) + "assistant:"

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        turns = [[message.role, message.content] for message in self.messages]
        return {"id": self.id, "text": self.text, "messages": turns}


@dataclass(frozen=True)
class PromptSet:
    """At least one prompt, with distinct ids."""

    name: str
    prompts: tuple[Prompt, ...]

    @cached_property
    def sha256(self) -> str:
        """Hash of the prompts, however the file is laid out; part of every cache key."""
        content = json.dumps([prompt.to_json() for prompt in self.prompts], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only, without the prompts."""
        return {"name": self.name, "sha256": self.sha256, "prompts": len(self.prompts)}


def load_prompts(path: Path | None = None) -> PromptSet:
    """Read a prompt set.

    Args:
        path: a TOML file; None for the built-in set.

    Raises:
        PromptError: unreadable, not UTF-8, not TOML, no prompts, or a prompt that is malformed.
    """
    if path is None:
        raw, name = resources.files("gguf_harness.fixtures").joinpath("data/prompts.toml").read_bytes(), BUILT_IN
    else:
        path = option_path(path)
        raw, name = read_bytes(path, "Prompt set", PromptError), visible(path.name)
    return _parse(raw, name)


def _parse(raw: bytes, name: str) -> PromptSet:
    content = parse_toml(raw, f"Prompt set {name!r}", PromptError, _EXAMPLE)
    _check_fields(content, ("prompt",), f"Prompt set {name!r}")
    tables = content.get("prompt", [])
    if not isinstance(tables, list) or not tables:
        raise PromptError(f"Prompt set {name!r} has no prompts.", "Add at least one [[prompt]] table.")
    prompts: dict[str, Prompt] = {}
    for number, table in enumerate(tables, 1):
        prompt = _prompt(table, f"Prompt set {name!r}, prompt {number}")
        if prompt.id in prompts:
            first = [*prompts].index(prompt.id) + 1
            raise PromptError(
                f"Prompt set {name!r}: prompts {first} and {number} both have the id {prompt.id!r}.", "Rename one."
            )
        prompts[prompt.id] = prompt
    return PromptSet(name, tuple(prompts.values()))


def _prompt(table: object, where: str) -> Prompt:
    if not isinstance(table, dict):
        raise PromptError(f"{where} is {table!r}, expected a table.", "Start each prompt with [[prompt]].")
    name = table.get("id")
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _MAX_ID:
        raise PromptError(
            f"{where} has the id {name!r}, expected 1 to {_MAX_ID} printable characters.",
            "The id names the test of that prompt.",
        )
    where = f"{where} ({name!r})"
    _check_fields(table, _FIELDS, where)
    if ("text" in table) == ("messages" in table):
        problem = "both text and messages" if "text" in table else "neither text nor messages"
        raise PromptError(f"{where} has {problem}.", "Give text to continue, or messages of a chat.")
    if "messages" in table:
        return Prompt(name, messages=_messages(table["messages"], where))
    return Prompt(name, _text(table["text"], f"{where}: text"))


def _messages(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise PromptError(
            f"{where}: messages are {value!r}, expected at least one.",
            'Write messages = [{role = "user", content = "..."}].',
        )
    messages = []
    for number, entry in enumerate(value, 1):
        here = f"{where}: message {number}"
        if not isinstance(entry, dict):
            raise PromptError(f"{here} is {entry!r}, expected role and content.", "Write {role = ..., content = ...}.")
        _check_fields(entry, _MESSAGE_FIELDS, here)
        role = entry.get("role")
        if role not in ROLES:
            raise PromptError(f"{here} has the role {role!r}.", f"Roles: {', '.join(ROLES)}.")
        messages.append(Message(str(role), _text(entry.get("content"), f"{here}: content")))
    return tuple(messages)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{where} is {value!r}, expected a string.", "Put it in quotes.")
    return value


def _check_fields(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise PromptError(f"{where} has an unknown field {name!r}.", f"{hint}Known fields: {', '.join(known)}.")
