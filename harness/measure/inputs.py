"""Prompts as a model is given them: tokens, through its chat template where it has one. Runs in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import PromptError
from harness.prompts import Prompt

if TYPE_CHECKING:
    from harness.engine.chat import ChatTemplate
    from harness.engine.session import Session, Tokens

__all__ = ["prompt_inputs"]


def prompt_inputs(
    session: Session, model: str, prompts: Sequence[Prompt], limit: int, n_ctx: int
) -> tuple[dict[str, tuple[Tokens, bool | None]], dict[str, PromptError]]:
    """Tokens of the prompts and whether a template made them; and the prompts that the model cannot have.

    Args:
        session: the model.
        model: its name, for error messages.
        prompts: with distinct ids.
        limit: tokens that are to be generated behind each.
        n_ctx: a context to allow even if the model was trained on shorter texts.

    Returns:
        By prompt id: ([tokens], whether a template made them, None for a prompt that is no chat); and the errors.
    """
    from harness.engine.chat import chat_template

    template = chat_template(session) if any(prompt.messages for prompt in prompts) else None
    room = max(n_ctx, session.n_ctx_train)
    inputs: dict[str, tuple[Tokens, bool | None]] = {}
    problems: dict[str, PromptError] = {}
    for prompt in prompts:
        try:
            tokens, templated = _tokens(session, template, prompt)
            _check_length(len(tokens), limit, room)
            inputs[prompt.id] = tokens, templated
        except PromptError as error:
            where = f"{model}, prompt {prompt.id!r}"
            problems[prompt.id] = PromptError(f"{where}: {error.message}", error.hint)
    return inputs, problems


def _tokens(session: Session, template: ChatTemplate | None, prompt: Prompt) -> tuple[Tokens, bool | None]:
    if prompt.messages and template is not None:
        return template.tokens([{"role": m.role, "content": m.content} for m in prompt.messages]), True
    return session.tokenize(prompt.plain()), False if prompt.messages else None


def _check_length(length: int, limit: int, room: int) -> None:
    if length == 0:
        raise PromptError(
            "it has no tokens, and this vocabulary begins texts with none: there is nothing to continue.",
            "Give a text that is not empty.",
        )
    if length + limit > room:
        more, way_out = (
            (f" and {limit} more do", "Shorten it or use fewer --gguf-gen-tokens") if limit else (" do", "Shorten it")
        )
        raise PromptError(
            f"{length} tokens{more} not fit into the model's context of {room}.",
            f"{way_out}; a larger --gguf-ctx goes beyond what the model was trained on.",
        )
