"""What a loaded model should answer: a llama in float64 numpy, with heads and layers that can be switched off.

Independent of llama.cpp and of its taps: weights and hyperparameters come from the GGUF file, everything else is
computed here and in `attention_oracle`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.live.live_model import LiveModel
from tests.integration.attention_oracle import Attention, Model, Rounded
from tests.random_llama import write_random_llama

__all__ = ["SETTINGS", "Exact", "file", "forward", "live", "log_softmax", "open_live"]

Array = NDArray[np.float64]

SETTINGS = SessionSettings(threads=1, cache_type_k="f32", cache_type_v="f32")
"""Nothing is rounded to less than single precision."""


@dataclass(slots=True)
class Exact:
    """One text.

    Attributes:
        embed: [pos, d_model] what the first block reads.
        attention: by layer; of skipped ones too, of what they would read.
        attn_out: by layer, [pos, d_model]; zero for skipped ones, as the others.
        resid_mid: by layer, [pos, d_model].
        mlp_out: by layer, [pos, d_model].
        resid_post: by layer, [pos, d_model].
        final: [pos, d_model] after the final norm.
        logits: [pos, vocabulary].
    """

    embed: Array
    attention: list[Attention] = field(default_factory=list)
    attn_out: list[Array] = field(default_factory=list)
    resid_mid: list[Array] = field(default_factory=list)
    mlp_out: list[Array] = field(default_factory=list)
    resid_post: list[Array] = field(default_factory=list)
    final: Array = field(default_factory=lambda: np.empty(0))
    logits: Array = field(default_factory=lambda: np.empty(0))

    def states(self) -> dict[str, Array]:
        """By the names of a reading: [pos, d_model], or [layer, pos, d_model]."""
        layered = ("attn_out", "resid_mid", "mlp_out", "resid_post")
        return {"embed": self.embed, "final": self.final} | {name: np.stack(getattr(self, name)) for name in layered}


def forward(
    file: Path,
    tokens: Sequence[int],
    heads: Collection[tuple[int, int]] = (),
    layers: Collection[int] = (),
    rounded: Rounded | None = None,
) -> Exact:
    """Compute a text.

    Args:
        file: a llama.
        tokens: of the text.
        heads: (layer, head) of those that are off.
        layers: those that are off.
        rounded: what a cache makes of q, k and v of each layer.
    """
    model = _llama(file)
    stream = model.embeddings(np.array(tokens, dtype=np.int32))
    exact = Exact(stream)
    for layer in range(model.n_layer):
        attention = model.attend(layer, stream, off=[head for at, head in heads if at == layer], rounded=rounded)
        on = float(layer not in layers)
        attn_out = on * attention.attn_out
        middle = stream + attn_out
        mlp_out = on * model.gated_mlp(layer, middle)
        stream = middle + mlp_out
        exact.attention.append(attention)
        exact.attn_out.append(attn_out)
        exact.resid_mid.append(middle)
        exact.mlp_out.append(mlp_out)
        exact.resid_post.append(stream)
    exact.final, exact.logits = model.final(stream), model.logits(stream)
    return exact


@cache
def _llama(file: Path) -> Model:
    return Model(file, "llama")


def log_softmax(logits: Array) -> Array:
    """Natural logarithms of the probabilities, along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def open_live(file: Path | str, settings: SessionSettings = SETTINGS, **more: Any) -> LiveModel:
    """A loaded model, on the processor."""
    (source,) = expand(str(file))
    return LiveModel(load_info(source), settings, gpu=-1, **more)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("live") / "live.gguf", n_layer=3, untied=True)


@pytest.fixture(scope="module")
def live(file: Path) -> Iterator[LiveModel]:
    with open_live(file) as live:
        yield live
