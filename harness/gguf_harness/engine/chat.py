"""Chats as tokens, through the chat template in the model's file.

The template is rendered as Jinja, by llama-cpp-python's formatter: llama.cpp's `llama_chat_apply_template` recognizes
only a list of common formats and refuses the rest. The environment is sandboxed, since a template is code from a model
file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.vocabulary import control_texts, token_text
from gguf_harness.errors import PromptError

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens

__all__ = ["ChatTemplate", "chat_template"]

# A fixed date: templates that write today's date would give different prompts tomorrow. Llama 3's default.
_TODAY: Final = datetime(2024, 7, 26, tzinfo=UTC)
_NONCHARACTERS: Final = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


def chat_template(model: Model) -> ChatTemplate | None:
    """The template of a model; None if its file has none."""
    raw = llama_cpp.llama_model_chat_template(model.pointer, None)
    return ChatTemplate(model, bytes(raw).decode("utf-8", "replace")) if raw else None


class ChatTemplate:
    """Converts chats to tokens.

    Args:
        model: the model whose vocabulary is used.
        source: the template, in Jinja.
    """

    def __init__(self, model: Model, source: str) -> None:
        self._model = model
        self._source = source
        self._vocab = model.vocabulary_pointer
        texts = sorted(filter(None, control_texts(self._vocab)), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def tokens(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        """Tokens of a chat, up to where the assistant's answer begins.

        Only the template produces control tokens. Messages stay text even if they look like control tokens (except
        user-defined tokens of the vocabulary, which llama.cpp finds in any text). BOS is included if the template
        writes it.

        Args:
            messages: each with `role` and `content`.

        Raises:
            PromptError: the template is broken, or refuses these messages.
        """
        contents = "".join(message["content"] for message in messages)
        fence = next((mark for mark in _NONCHARACTERS if mark not in contents), None)
        if fence is None:
            raise PromptError(
                "The messages contain all 32 noncharacters U+FDD0 to U+FDEF, one of which must be unused.",
                "Leave one out: they have no meaning.",
            )
        fenced = [
            {**message, "content": self._special.sub(rf"{fence}\g<0>{fence}", message["content"])}
            for message in messages
        ]
        # Every second part is text between fences: text of a message that looks like a special token.
        parts = self._render(fenced).split(fence)
        return np.concatenate(
            [
                self._model.tokenize(part, add_special=False, parse_special=number % 2 == 0)
                for number, part in enumerate(parts)
            ]
        )

    def _render(self, messages: Any) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        class Formatter(Jinja2ChatFormatter):
            @staticmethod
            def strftime_now(form: str) -> str:
                return _TODAY.strftime(form)

        vocabulary = self._model.vocabulary
        try:
            formatter = Formatter(
                self._source,
                eos_token=token_text(self._vocab, vocabulary.eos),
                bos_token=token_text(self._vocab, vocabulary.bos),
            )
            return formatter(messages=messages).prompt
        except Exception as error:  # a template may fail in any way that code can
            raise PromptError(
                f"The model's chat template does not take these messages: {type(error).__name__}: {error}.",
                "Some templates do not support system messages, or require user and assistant to alternate.",
            ) from None
