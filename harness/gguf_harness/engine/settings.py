"""How a model is run. Light: importable without llama.cpp and numpy."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from gguf_harness.errors import OptionError

__all__ = [
    "CACHE_BLOCK",
    "DEFAULT_KV",
    "GGML_TYPES",
    "NO_ROTATION",
    "QUANTIZED_CACHE",
    "Adapter",
    "CacheType",
    "FlashAttention",
    "KVTypes",
    "RopeScaling",
    "ServedRequest",
    "ServerSettings",
    "SessionSettings",
    "WindowOrder",
    "first_scored",
    "scored_tokens",
]

FlashAttention = Literal["auto", "on", "off"]
WindowOrder = Literal["sampled", "first"]
"""Windows of a text: sampled from all of it, or the first ones."""

_SERVED_PROMPT: Final = (
    "sailors set out from the harbour before dawn, with bread for nine days and a map of the northern islands."
    " When the wind turned, the oldest of them said:"
)

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

GGML_TYPES: Final[dict[CacheType, int]] = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "iq4_nl": 20,
}  # fmt: skip
"""Numbers in `enum ggml_type` (ggml/include/ggml.h)."""

QUANTIZED_CACHE: Final[frozenset[CacheType]] = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
CACHE_BLOCK: Final = 32
"""Block size of quantized cache types."""
NO_ROTATION: Final = "LLAMA_ATTN_ROT_DISABLE"
"""Environment variable with which llama.cpp does not rotate quantized K and V, unless it is 0."""


@dataclass(frozen=True, slots=True)
class KVTypes:
    """Types of the K and the V cache.

    Attributes:
        k: of K.
        v: of V.
        rotate: whether quantized K and V are rotated (Hadamard) where llama.cpp can do so, as it does by itself.
    """

    k: CacheType
    v: CacheType
    rotate: bool = True

    def __post_init__(self) -> None:
        if not (self.rotate or {self.k, self.v} & QUANTIZED_CACHE):
            raise OptionError(
                f"{self.k}/{self.v}+norot: llama.cpp rotates quantized K and V only, and neither is.",
                "Leave out +norot.",
            )

    def __str__(self) -> str:
        """As it is written on the command line: `q8_0/q4_0`, `q8_0/q4_0+norot`."""
        return f"{self.k}/{self.v}{'' if self.rotate else '+norot'}"


DEFAULT_KV: Final = KVTypes("f16", "f16")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions are scaled beyond the context that a model was trained on, in place of what its file says.

    Attributes:
        kind: "linear" divides positions by the factor (Chen et al. 2023, arXiv:2306.15595); "yarn" does so by frequency
            (Peng et al. 2023, arXiv:2309.00071); "none" scales nothing.
        factor: how many times the trained context; 1 for "none".
    """

    kind: Literal["none", "linear", "yarn"]
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise OptionError(f"A rope factor of {self.factor} is not possible, expected 1 or more.")
        if self.kind == "none" and self.factor != 1:
            raise OptionError(f"rope=none:{self.factor:g}: without scaling there is no factor.", "Write none.")

    def __str__(self) -> str:
        """As it is written on the command line: `yarn:4`."""
        return self.kind if self.kind == "none" else f"{self.kind}:{self.factor:g}"


def first_scored(n_ctx: int, score_from: int | None = None) -> int:
    """The first position of a window whose logits are scored; the last one is n_ctx - 2.

    Args:
        n_ctx: tokens of the window.
        score_from: as asked for; None for n_ctx/2, as llama-perplexity does: half a window is before each.
    """
    return n_ctx // 2 if score_from is None else score_from


def scored_tokens(n_ctx: int, score_from: int | None = None) -> int:
    """Number of a window's tokens that are scored; arguments as for `first_scored`."""
    return n_ctx - 1 - first_scored(n_ctx, score_from)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter and how strongly it is applied: W + scale * alpha / rank * B A in place of each W that it adapts.

    Two are equal where content and scale are, whatever they are called and wherever they lie.

    Attributes:
        name: as it stands in names of subjects.
        file: a GGUF file whose general.type is adapter.
        sha256: hash of its content.
        scale: any finite number; 0 leaves the model as it is.

    Source: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685; the scale
    is the last argument of llama.cpp's `llama_set_adapters_lora`.
    """

    name: str = field(compare=False)
    file: Path = field(compare=False)
    sha256: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise OptionError(f"The scale of the adapter {self.name} is {self.scale}, expected a finite number.")

    @property
    def files(self) -> tuple[Path, ...]:
        """Its file, as models have theirs."""
        return (self.file,)

    def __str__(self) -> str:
        """Its name, and its scale unless that is 1: `legal:0.5`."""
        return self.name if self.scale == 1 else f"{self.name}:{str(float(self.scale)).removesuffix('.0')}"

    def to_json(self) -> dict[str, Any]:
        """What numbers depend on, as JSON types: content and scale, not name nor place."""
        return {"sha256": self.sha256, "scale": float(self.scale)}


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a model is run. Part of every cache key.

    Attributes:
        n_ctx: tokens per sequence (the window of a corpus).
        n_batch: logical batch: several windows share one when `n_ctx` is smaller.
        n_ubatch: physical batch.
        threads: CPU threads for prompts and generation.
        flash_attention: "auto" lets llama.cpp decide; taps on the attention pattern need "off".
        cache_type_k: data type of the K cache.
        cache_type_v: data type of the V cache; quantized types need flash attention, which "auto" then turns on.
        n_gpu_layers: layers offloaded to the GPU; negative for all.
        beyond_context: whether to go on where a text is longer than what the model was trained on.
        rotate_kv: whether llama.cpp may rotate quantized K and V (LLAMA_ATTN_ROT_DISABLE is 0).
        rope: how positions are scaled; None as the model's file says.
        adapters: LoRA adapters that all contexts with these settings apply; their order changes nothing.
    """

    n_ctx: int = 512
    n_batch: int = 2048
    n_ubatch: int = 512
    threads: int = 1
    flash_attention: FlashAttention = "auto"
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    n_gpu_layers: int = -1
    beyond_context: bool = False
    rotate_kv: bool = True
    rope: RopeScaling | None = None
    adapters: tuple[Adapter, ...] = ()

    def __post_init__(self) -> None:
        for name in ("n_ctx", "n_batch", "n_ubatch", "threads"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.n_batch % self.n_ctx and self.n_batch >= self.n_ctx:
            raise OptionError(
                f"A batch of {self.n_batch} tokens does not hold whole windows of {self.n_ctx}.",
                "Make the batch a multiple of the context, or the context a power of two.",
            )
        if self.has_quantized_v and self.flash_attention == "off":
            raise OptionError(
                f"A V cache of type {self.cache_type_v} needs flash attention, which is off: without it llama.cpp"
                " stores V transposed, where blocks of a quantized type do not fit.",
                "Leave flash attention on auto, or keep V in f16; K may be quantized without it.",
            )
        by_content = {adapter.sha256: adapter for adapter in self.adapters}
        for adapter in self.adapters:
            if by_content[adapter.sha256] is not adapter:
                raise OptionError(
                    f"The adapters {adapter} and {by_content[adapter.sha256]} are the same file: llama.cpp would apply"
                    " one of them.",
                    "Give it once, with the sum of both scales.",
                )

    @property
    def has_quantized_k(self) -> bool:
        """Whether the K cache has a quantized type."""
        return self.cache_type_k in QUANTIZED_CACHE

    @property
    def has_quantized_v(self) -> bool:
        """Whether the V cache has a quantized type."""
        return self.cache_type_v in QUANTIZED_CACHE

    @property
    def kv(self) -> KVTypes:
        """Types of the K and the V cache."""
        quantized = self.has_quantized_k or self.has_quantized_v
        return KVTypes(self.cache_type_k, self.cache_type_v, self.rotate_kv or not quantized)

    def with_kv(self, kv: KVTypes) -> SessionSettings:
        """These settings with other types of the KV cache."""
        return replace(self, cache_type_k=kv.k, cache_type_v=kv.v, rotate_kv=kv.rotate and self.rotate_kv)

    def reach(self, trained: int) -> int:
        """Tokens that a model takes with this scaling of positions, whose training context is given."""
        return trained if self.rope is None else int(trained * self.rope.factor)

    def require_pattern(self) -> None:
        """Check that contexts with these settings can compute attention scores and patterns.

        Raises:
            OptionError: the V cache is quantized: llama.cpp then uses flash attention, which computes neither.
        """
        if self.has_quantized_v:
            raise OptionError(
                f"Attention patterns cannot be read with a V cache of type {self.cache_type_v}: it needs flash"
                " attention, and that never forms the pattern.",
                "Measure attention with V in f16, bf16 or f32; K may be quantized.",
            )

    def with_pattern(self) -> SessionSettings:
        """These settings without flash attention, so that attention scores and patterns are computed.

        Raises:
            OptionError: as `require_pattern`.
        """
        self.require_pattern()
        return replace(self, flash_attention="off")

    @property
    def n_seq(self) -> int:
        """Number of windows that share a batch, as in llama-perplexity."""
        return max(1, self.n_batch // self.n_ctx)

    @property
    def lanes(self) -> int:
        """Number of contexts that share threads and windows of a batch evenly, with most threads busy.

        Windows are independent: parallel contexts never wait for each other, while threads of one context synchronize
        after every operation.
        """
        shared = [n for n in range(1, self.n_seq + 1) if self.n_seq % n == 0 and n <= self.threads]
        return max(shared, key=lambda n: (self.threads // n * n, n))

    def lane(self, lanes: int) -> SessionSettings:
        """Settings of one of several parallel contexts, which together have the windows and threads of one."""
        return replace(self, n_batch=max(self.n_batch // lanes, 1), threads=self.threads // lanes)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only; without adapters, rope and rotation where they are llama.cpp's own."""
        values = asdict(self)
        del values["adapters"], values["rotate_kv"], values["rope"]
        if not self.kv.rotate:
            values["rotate_kv"] = False
        if self.rope is not None:
            values["rope"] = str(self.rope)
        if self.adapters:
            applied = sorted(self.adapters, key=lambda adapter: adapter.sha256)
            values["adapters"] = [adapter.to_json() for adapter in applied]
        return values


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server runs a model. Part of the cache keys of its measurements.

    Attributes:
        n_ctx: tokens of a request, prompt and completion together.
        threads: CPU threads for prompts and generation.
        n_gpu_layers: layers offloaded to the GPU; negative for all.
        parallel: requests that llama-server decodes at once. llama_cpp.server always decodes one at a time; the others
            wait in its queue.
        cache_type_k: data type of the K cache.
        cache_type_v: data type of the V cache; a quantized one is used with flash attention.
        rotate_kv: whether llama.cpp may rotate quantized K and V.
    """

    n_ctx: int = 2048
    threads: int = 1
    n_gpu_layers: int = -1
    parallel: int = 1
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    rotate_kv: bool = True

    def __post_init__(self) -> None:
        for name in ("n_ctx", "threads", "parallel"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}, expected at least 1.")

    @property
    def changes_cache(self) -> bool:
        """Whether the cache types differ from llama.cpp's default, f16."""
        return (self.cache_type_k, self.cache_type_v) != ("f16", "f16")

    @property
    def has_quantized_v(self) -> bool:
        """Whether the V cache has a quantized type."""
        return self.cache_type_v in QUANTIZED_CACHE

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only; without cache types if both are llama.cpp's default, f16."""
        values = asdict(self)
        if not self.changes_cache:
            del values["cache_type_k"], values["cache_type_v"]
        if self.rotate_kv or not self.changes_cache:
            del values["rotate_kv"]
        return values


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """What to measure on a server.

    Attributes:
        requests: per repetition, each with a different prompt.
        concurrency: number of parallel clients.
        max_tokens: length of every completion.
        repetitions: how often all requests are sent, after a warm-up request, and how often a single one is sent
            afterwards.
        timeout_s: longest time for one request.
    """

    requests: int
    concurrency: int
    max_tokens: int
    repetitions: int
    timeout_s: float = 600.0

    def prompts(self, repetition: int) -> list[str]:
        """Prompts that differ in the first word: a server reuses the common prefix of the last one."""
        first = repetition * self.requests
        return [f"{number} {_SERVED_PROMPT}" for number in range(first, first + self.requests)]

    def to_json(self) -> dict[str, Any]:
        """What the result depends on, as JSON types."""
        values = asdict(self) | {"prompt": _SERVED_PROMPT}
        del values["timeout_s"]  # numbers do not depend on it
        return values
