"""Chats as tokens, through the template that the model's file brings.

The template is rendered as Jinja, by llama-cpp-python's formatter: llama.cpp's own `llama_chat_apply_template` knows a
list of common formats by their marks and formats by what it takes them for, and refuses the rest. The environment is
sandboxed: a template is code that came with a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
import numpy as np

from gguf_harness.engine.vocabulary import control_texts, token_text
from gguf_harness.errors import PromptError

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens

__all__ = ["ChatTemplate", "chat_template"]

# A template that writes today's date would give other prompts, and other texts, tomorrow. Llama 3's own default.
_TODAY: Final = datetime(2024, 7, 26, tzinfo=UTC)
_NONCHARACTERS: Final = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


def chat_template(model: Model) -> ChatTemplate | None:
    """The template of a model; None where its file has none."""
    raw = llama_cpp.llama_model_chat_template(model.pointer, None)
    return ChatTemplate(model, bytes(raw).decode("utf-8", "replace")) if raw else None


class ChatTemplate:
    """Makes tokens of chats.

    Args:
        model: whose tokens they are.
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

        Control tokens are those of the template. What a message says stays text, even where it reads like one (tokens
        that a vocabulary calls user-defined are none: llama.cpp finds those in any text). BOS is there where the
        template writes it.

        Args:
            messages: each with `role` and `content`.

        Raises:
            PromptError: the template is broken, or refuses these messages.
        """
        contents = "".join(message["content"] for message in messages)
        fence = next((mark for mark in _NONCHARACTERS if mark not in contents), None)
        if fence is None:
            raise PromptError(
                "The messages hold all 32 noncharacters U+FDD0 to U+FDEF, one of which has to be free.",
                "Leave one out: they stand for nothing.",
            )
        fenced = [
            {**message, "content": self._special.sub(rf"{fence}\g<0>{fence}", message["content"])}
            for message in messages
        ]
        # Every second part is what stood between fences: text of a message that reads like a special token.
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
                "Some templates know no system messages, or want user and assistant to alternate.",
            ) from None
