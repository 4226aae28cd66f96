"""API for notebooks and scripts: models are asked, answers are arrays, tables and pictures.

Models run in worker processes. What is here is also in `gguf_harness` itself: `gguf_harness.open("tiny")`.
"""

from __future__ import annotations

from gguf_harness.api import pictures
from gguf_harness.api.arguments import off
from gguf_harness.api.attention_results import Attention
from gguf_harness.api.comparing import Comparison, compare
from gguf_harness.api.generated import Generated, StreamedToken
from gguf_harness.api.head_results import HeadBehaviour
from gguf_harness.api.one_call import attention, heads, hidden_states, history, load_run, word_embeddings
from gguf_harness.api.opened import OpenModel, open  # noqa: A004 - an attribute, as gzip.open
from gguf_harness.api.pictures import Picture, Pictures, side_by_side
from gguf_harness.api.prediction_results import LogitLens, NextTokens
from gguf_harness.api.quantizing import quantize
from gguf_harness.api.run_pictures import report_pictures
from gguf_harness.api.state_results import HiddenStates
from gguf_harness.api.structure_results import Structure
from gguf_harness.api.word_results import WordEmbeddings
from gguf_harness.errors import HarnessError
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import Ablation, ModelFacts
from gguf_harness.store.frames import StoredRun

__all__ = [
    "Ablation",
    "Attention",
    "Comparison",
    "Generated",
    "HarnessError",
    "HeadBehaviour",
    "HiddenStates",
    "LogitLens",
    "ModelFacts",
    "NextTokens",
    "OpenModel",
    "Picture",
    "Pictures",
    "Prompt",
    "Reading",
    "StoredRun",
    "StreamedToken",
    "Structure",
    "WordEmbeddings",
    "attention",
    "compare",
    "heads",
    "hidden_states",
    "history",
    "load_run",
    "off",
    "open",
    "pictures",
    "quantize",
    "report_pictures",
    "side_by_side",
    "word_embeddings",
]
