"""Inputs of a model: prompts as tokens, through its chat template if it has one, and length limits. Runs in a worker.

llama.cpp decodes texts of any length. Beyond the context that a model was trained on, predictions are still computed
but are poor: the model tiny, trained on 512 tokens, has a perplexity of 54 there and of 446 in windows of 2048.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from gguf_harness.errors import OptionError, PromptError
from gguf_harness.inputs.prompts import Prompt

if TYPE_CHECKING:
    from gguf_harness.engine.chat import ChatTemplate
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.settings import SessionSettings

__all__ = ["check_context", "check_room", "longest_text", "prompt_inputs"]


def check_context(model: Model, name: str, settings: SessionSettings) -> None:
    """Refuse windows longer than the model's training context, unless requested.

    Raises:
        OptionError: names both lengths.
    """
    trained = settings.reach(model.n_ctx_train)
    if settings.n_ctx > trained > 0 and not settings.beyond_context:
        raise OptionError(
            f"{name} was {_made_for(model, settings)}, but windows have {settings.n_ctx} (--gguf-ctx): "
            f"predictions beyond {trained} are meaningless.",
            f"Use --gguf-ctx={trained} or less, or measure it all the same with --gguf-beyond-context.",
        )


def _made_for(model: Trained, settings: SessionSettings) -> str:
    scaled = (
        "" if settings.rope is None else f", which rope={settings.rope} extends to {settings.reach(model.n_ctx_train)}"
    )
    return f"trained on texts of {model.n_ctx_train} tokens{scaled}"


class Trained(Protocol):
    """A model, or what is known of it."""

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest text that it was trained on; 0 if its file does not say."""


def longest_text(model: Trained, settings: SessionSettings) -> int:
    """Most tokens of a text: the training context, or the context of the settings if more was requested."""
    trained = settings.reach(model.n_ctx_train) or settings.n_ctx
    return max(settings.n_ctx, trained) if settings.beyond_context else trained


def check_room(model: Trained, name: str, length: int, settings: SessionSettings, what: str) -> None:
    """Refuse tokens that do not fit into a model's context.

    Args:
        model: that reads them.
        name: its name, for error messages.
        length: how many they are.
        settings: how the model is run.
        what: that is too long: `prompt`, `text`.

    Raises:
        PromptError: names both numbers.
    """
    room = longest_text(model, settings)
    if length > room:
        raise PromptError(
            f"{name}: {length} tokens do not fit into the model's context of {room}.", f"Shorten the {what}."
        )


def prompt_inputs(
    model: Model, name: str, prompts: Sequence[Prompt], limit: int, settings: SessionSettings
) -> tuple[dict[str, tuple[Tokens, bool | None]], dict[str, PromptError]]:
    """Tokens of the prompts and whether a template made them; and errors for prompts that the model cannot take.

    Args:
        model: the model that reads them.
        name: its name, for error messages.
        prompts: with distinct ids.
        limit: tokens to generate after each.
        settings: how the model is run; its context is the limit if a longer one than the model's was requested.

    Returns:
        By prompt id: ([tokens], whether a template made them, None for a prompt that is not a chat); and the errors.
    """
    from gguf_harness.engine.chat import chat_template

    template = chat_template(model) if any(prompt.messages for prompt in prompts) else None
    room = longest_text(model, settings)
    inputs: dict[str, tuple[Tokens, bool | None]] = {}
    problems: dict[str, PromptError] = {}
    for prompt in prompts:
        try:
            tokens, templated = _tokens(model, template, prompt)
            _check_length(len(tokens), limit, room)
            inputs[prompt.id] = tokens, templated
        except PromptError as error:
            where = f"{name}, prompt {prompt.id!r}"
            problems[prompt.id] = PromptError(f"{where}: {error.message}", error.hint)
    return inputs, problems


def _tokens(model: Model, template: ChatTemplate | None, prompt: Prompt) -> tuple[Tokens, bool | None]:
    if prompt.messages and template is not None:
        return template.tokens([{"role": m.role, "content": m.content} for m in prompt.messages]), True
    return model.tokenize(prompt.plain()), False if prompt.messages else None


def _check_length(length: int, limit: int, room: int) -> None:
    if length == 0:
        raise PromptError(
            "it has no tokens, and this vocabulary adds none at the start: there is nothing to continue.",
            "Give a text that is not empty.",
        )
    if length + limit > room:
        more, way_out = (
            (f" and {limit} more do", "Shorten it or use fewer --gguf-gen-tokens") if limit else (" do", "Shorten it")
        )
        raise PromptError(
            f"{length} tokens{more} not fit into the model's context of {room}.",
            f"{way_out}; --gguf-beyond-context and a larger --gguf-ctx go beyond what the model was trained on.",
        )
