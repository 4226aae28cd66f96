"""Heads of the model tiny, scored while llama.cpp decodes: those that its card knows have their kinds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.tap_names import expand_taps
from gguf_harness.engine.taps import Taps
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import expand
from gguf_harness.metrics.circuits import induction_scores, repeated_tokens
from gguf_harness.metrics.head_behaviour import BehaviourKernel, ScoreSums, head_profiles
from gguf_harness.metrics.taxonomy import classify_head
from gguf_harness.metrics.token_features import TokenFeatures
from tests.loaded import open_context

pytestmark = pytest.mark.model

(TINY,) = expand("tiny")
CARD: dict[str, Any] = json.loads(TINY.files[0].with_name("tiny.json").read_text(encoding="utf-8"))
LAYERS = int(CARD["config"]["layers"])
SETTINGS = SessionSettings(n_ctx=256, n_batch=256, flash_attention="off")
LENGTH = 64


class _Prompt:
    """Scores every layer's pattern in the callback of a decode."""

    def __init__(self) -> None:
        self.kernel: BehaviourKernel | None = None
        self.layers: list[ScoreSums] = []

    def __call__(self, _tap: str, pattern: NDArray[np.float32]) -> None:
        if self.kernel is None:
            self.layers.append(ScoreSums.of(induction_scores(pattern, LENGTH, offset=1), first_row=0))
        else:
            self.layers.append(ScoreSums.of(self.kernel.scores(pattern)))


def test_known_heads_have_their_kinds() -> None:
    prompt = _Prompt()
    taps = Taps("llama", LAYERS, read=dict.fromkeys(expand_taps(["blocks.*.attn.pattern"], LAYERS), prompt))
    measured: list[list[ScoreSums]] = []
    with open_context(TINY.files, SETTINGS, taps) as context:
        tokens = context.model.tokenize(load_corpus("pydoc", held_out_topics=load_info(TINY).held_out_topics).text)
        counts = np.bincount(tokens, minlength=4096)
        for first in (0, 256):
            window = tokens[first : first + 256]
            pieces = [context.model.detokenize(window[index : index + 1]) for index in range(256)]
            prompt.kernel, prompt.layers = BehaviourKernel(TokenFeatures.of(pieces, window, counts)), []
            context.logits(window)
            measured.append(prompt.layers)
        for seed in (0, 1):
            prompt.kernel, prompt.layers = None, []
            context.logits(np.concatenate([[0], repeated_tokens(range(2, 4096), LENGTH, seed)]).astype(np.int32))
            measured.append(prompt.layers)
    layers = [head_profiles([each[layer] for each in measured]) for layer in range(LAYERS)]

    previous = np.array([[head.values["previous_token"] for head in layer] for layer in layers])
    np.testing.assert_allclose(previous, CARD["previous_token_on_text"], atol=0.12)
    induction = np.array([[head.values["induction"] for head in layer] for layer in layers])
    np.testing.assert_allclose(induction, CARD["induction"], atol=0.12)
    assert classify_head(layers[2][7].values).kind == "positional"
    assert classify_head(layers[2][1].values).kind == "positional"
    assert classify_head(layers[1][1].values).kind == "induction"
    score = layers[2][7].scores["previous_token"]
    assert (score.n, score.clusters) == (2 * 255, 2)
    assert score.se is not None
