"""What is asked of a loaded model, and what it says of itself. Light: sent between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Final

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import NoData, OptionError
from gguf_harness.inputs.prompts import Prompt

__all__ = ["NOTHING_OFF", "Ablation", "ModelFacts", "ReadRequest", "Sampling", "StepRequest"]


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is switched off while a model decodes.

    Attributes:
        heads: (layer, head) of those whose mixed values are zero before the output projection.
        layers: blocks that the residual stream passes unchanged.
    """

    heads: tuple[tuple[int, int], ...] = ()
    layers: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.heads or self.layers)

    def __str__(self) -> str:
        """Such as `heads 1.1, 3.0 and layer 2 off`; nothing for nothing."""
        parts = [
            f"{word}{'s' if len(names) > 1 else ''} {', '.join(names)}"
            for word, names in (
                ("head", [f"{layer}.{head}" for layer, head in self.heads]),
                ("layer", [str(layer) for layer in self.layers]),
            )
            if names
        ]
        return f"{' and '.join(parts)} off" if parts else ""


NOTHING_OFF: Final = Ablation()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, in the order of llama.cpp's default chain: top-k, top-p, min-p, temperature.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: 0 for no limit.
        top_p: 1 for no limit.
        min_p: 0 for no limit.
        seed: the same seed after the same tokens chooses the same token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 10), ("top_k", 0, 2**31 - 1), ("top_p", 0, 1), ("min_p", 0, 1)):
            value = getattr(self, name)
            if not isinstance(value, Real) or not low <= float(value) <= high:
                raise OptionError(f"{name} is {value!r}, expected {low} to {high}.")
        for name in ("top_k", "seed"):
            if not isinstance(getattr(self, name), Integral):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected a whole number.")


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A prompt to read, and what to read of it.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how to run it; flash attention is turned off where attention is read.
        prompt: the text, or the tokens themselves.
        ablation: what is switched off.
        attention: kinds of attention tensors to read: of `pattern`, `scores`, `q`, `k`, `v`.
        states: kinds of states to read, of `gguf_harness.measure.layers.states.KINDS`; with any, embed and final too.
        logits: whether logits are returned.
        limit_bytes: most bytes that all of it may take.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    prompt: Prompt | tuple[int, ...]
    ablation: Ablation = NOTHING_OFF
    attention: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    logits: bool = True
    limit_bytes: int = 8_000_000_000


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A text to continue by one token.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how to run it.
        tokens: the whole text so far; what the last step decoded already is not decoded again.
        ablation: what is switched off.
        sampling: how the token is chosen.
        attention: whether to read what the last token attends to.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    tokens: tuple[int, ...]
    ablation: Ablation = NOTHING_OFF
    sampling: Sampling = field(default_factory=Sampling)
    attention: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class ModelFacts:
    """What can be read of a loaded model, found by decoding one token.

    Attributes:
        name: as it is shown.
        architecture: `general.architecture`.
        n_layer: blocks.
        d_model: width of the residual stream.
        n_ctx_train: tokens of the longest text that it was trained on; 0 if the file does not say.
        n_vocab: tokens of the vocabulary.
        heads: by layer, query heads; 0 where llama.cpp computes no attention pattern.
        kv_heads: by layer, heads of keys and values, which groups of query heads share.
        causal: whether tokens attend to earlier ones only.
        window: tokens of its sliding window, 0 for none; some layers may see all tokens all the same.
        scale: that attention scores are multiplied by, as the file names it; 0 where it names none.
        softcap: limit of attention scores; 0 for none.
        attention: kinds of attention tensors that can be read; empty with the reason in `missing`.
        states: kinds of states that can be read; empty with the reason in `missing`.
        first_layer_alone: whether the first block reads the token embeddings and nothing else.
        predicts: whether it predicts tokens.
        chats: whether its file has a chat template.
        facts: sentences about its attention: groups of heads, sliding windows, sinks, soft caps.
        missing: sentences about what cannot be shown, and why.
    """

    name: str
    architecture: str
    n_layer: int
    d_model: int
    n_ctx_train: int
    n_vocab: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    causal: bool
    window: int
    scale: float
    softcap: float
    attention: tuple[str, ...]
    states: tuple[str, ...]
    first_layer_alone: bool
    predicts: bool
    chats: bool
    facts: tuple[str, ...]
    missing: tuple[str, ...]

    def __repr__(self) -> str:
        """Short: notebooks show it."""
        heads, kv_heads = sum(self.heads), sum(self.kv_heads)
        return (
            f"<{self.name}: {self.architecture}, {self.n_layer} layers, {heads} heads with {kv_heads} of keys and"
            f" values, width {self.d_model}, context {self.n_ctx_train}, {self.n_vocab} tokens>"
        )

    @property
    def all_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of every head that has a pattern."""
        return [(layer, head) for layer, count in enumerate(self.heads) for head in range(count)]

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers with an attention pattern: all in most models, few in hybrids."""
        return tuple(layer for layer, count in enumerate(self.heads) if count)

    def no_data(self, what: str) -> NoData:
        """The error for something that is not there, with why it is missing.

        Args:
            what: a sentence.
        """
        return NoData(" ".join([what, *self.missing]))

    def can_skip(self, layer: int) -> bool:
        """Whether a layer can be switched off: the stream before and after it has to be known."""
        return "resid_post" in self.states and (layer > 0 or self.first_layer_alone)

    def check(self, ablation: Ablation) -> None:
        """Check that what is to be switched off is there and can be.

        Raises:
            OptionError: names the head or layer, and which there are.
        """
        known = set(self.all_heads)
        for layer, head in ablation.heads:
            if (layer, head) not in known:
                count = self.heads[layer] if layer in range(self.n_layer) else 0
                there = (
                    f"Heads of layer {layer} are 0 to {count - 1}."
                    if count
                    else f"Layers with heads: {', '.join(map(str, self.attention_layers)) or 'none'}."
                )
                raise OptionError(f"{self.name} has no head {layer}.{head} to switch off.", there)
        for layer in ablation.layers:
            if layer not in range(self.n_layer):
                raise OptionError(
                    f"{self.name} has no layer {layer} to switch off.", f"Layers are 0 to {self.n_layer - 1}."
                )
            if not self.can_skip(layer):
                raise OptionError(
                    f"Layer {layer} of {self.name} cannot be switched off: the stream before or after it cannot be"
                    " read in this architecture.",
                    "Switch off its heads, or another layer.",
                )
