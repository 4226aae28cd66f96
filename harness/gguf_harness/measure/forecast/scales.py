"""What efforts are counted in, what one of each costs, and what they depend on: options, texts, and one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.prompts import Prompt, PromptSet

__all__ = ["FIRST_PROMPTS", "Costs", "Effort", "Scale", "TextSize"]

FIRST_PROMPTS: Final = 8
"""On which heads are looked at that an adapter moves."""

_CHARACTERS: Final = 3.5
"""Of a token, in prompts: subword vocabularies of English."""
_CHAT_TOKENS: Final = 12
"""What a template adds to a chat."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that one of each takes, of one file with the session's settings on this machine.

    Attributes:
        token: decoded in a batch, without logits; all threads together.
        row: of logits, computed and compared.
        step: a token decoded alone, by each lane at once.
        weight: read and converted to single precision.
        compare: a row compared with another one more.
    """

    token: float
    row: float
    step: float
    weight: float
    compare: float


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts; see `Costs`. `seconds` are the same on any machine, such as a pause or the least time of a repetition.

    `attended` are keys that tokens read, of each head: another cache than a plain one makes these dearer.
    """

    tokens: float = 0.0
    rows: float = 0.0
    steps: float = 0.0
    weights: float = 0.0
    seconds: float = 0.0
    compares: float = 0.0
    attended: float = 0.0

    def at(self, costs: Costs) -> float:
        """Seconds."""
        return (
            self.tokens * costs.token
            + self.rows * costs.row
            + self.steps * costs.step
            + self.weights * costs.weight
            + self.compares * costs.compare
            + self.seconds
        )


@dataclass(frozen=True, slots=True)
class TextSize:
    """Number of prompts, and of their tokens about.

    Attributes:
        tokens: of all.
        first_tokens: of the first prompts alone.
        squares: sum of the squares of their numbers of tokens: entries of patterns.
    """

    prompts: int
    tokens: int
    first_tokens: int
    squares: float

    @classmethod
    def of(cls, prompts: PromptSet) -> TextSize:
        """Of a set of prompts."""
        each = [_tokens(prompt) for prompt in prompts.prompts]
        return cls(len(each), round(sum(each)), round(sum(each[:FIRST_PROMPTS])), sum(count**2 for count in each))


def _tokens(prompt: Prompt) -> float:
    return 1 + len(prompt.plain()) / _CHARACTERS + _CHAT_TOKENS * bool(prompt.messages)


@dataclass(frozen=True, slots=True)
class Scale:
    """What efforts depend on: the options, the texts, and one file.

    Attributes:
        heads: of all layers together.
        windows: of the corpus.
        own_windows: that the text of the subject's adapters has.
    """

    options: Options
    texts: TextSize
    layers: int
    heads: int
    vocabulary: int
    width: int
    parameters: int
    bytes: int
    windows: int
    own_windows: int = 0

    @classmethod
    def of(cls, info: ModelInfo, options: Options, texts: TextSize, text_bytes: int, own_bytes: int = 0) -> Scale:
        """Of a file. What its header does not say counts as a usual size.

        Args:
            info: facts from its header.
            options: of the session.
            texts: the prompts.
            text_bytes: of the corpus, for --gguf-chunks=all.
            own_bytes: of the text of the subject's adapters.
        """
        layers = info.n_layer or 1
        vocabulary = info.n_vocab or 32000
        available, own = (int(count / _CHARACTERS / options.ctx) for count in (text_bytes, own_bytes))
        return cls(
            options=options,
            texts=texts,
            layers=layers,
            heads=layers * (info.n_head or 1),
            vocabulary=vocabulary,
            width=info.n_embd or 1,
            parameters=info.parameters,
            bytes=info.bytes,
            windows=max(1, available) if options.chunks is None else options.chunks,
            own_windows=own,
        )

    @property
    def chosen_heads(self) -> int:
        """Heads that are ablated one by one."""
        limit = self.options.head_limit
        return self.heads if limit is None else min(self.heads, limit)
