"""What llama.cpp runs, refuses and rotates, against what the header says that it will."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import GGML_TYPES, QUANTIZED_CACHE, CacheType, SessionSettings
from gguf_harness.inputs.cache_limits import cache_facts, rotates, why_not
from gguf_harness.inputs.models import ModelInfo, load_info
from gguf_harness.inputs.sources import expand
from tests.integration.cache_experiment import outcomes
from tests.integration.small_deepseek2 import write_small_deepseek2
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

TYPES = tuple(GGML_TYPES)
TEXT = "A list comprehension makes a new list from the items of another one. It is short, and it is easy to read."


def _settings(k: CacheType, v: CacheType, **more: object) -> SessionSettings:
    return SessionSettings(n_ctx=256, n_batch=256, cache_type_k=k, cache_type_v=v, **more)  # type: ignore[arg-type]


def _info(file: Path) -> ModelInfo:
    (source,) = expand(str(file))
    return load_info(source)


@pytest.mark.parametrize("size", [16, 32, 40, 64, 80])
def test_head_sizes(size: int, tmp_path: Path) -> None:
    """Every type for K and for V, and some together: it runs exactly where there is no reason against it.

    Without flash attention, llama.cpp does not look at blocks of keys: it aborts, or lets blocks mix heads.
    """
    file = write_random_llama(tmp_path / "m.gguf", width=4 * size, n_layer=1)
    info = _info(file)
    pairs = [*((k, "f16") for k in TYPES), *(("f16", v) for v in TYPES), ("q8_0", "q4_0"), ("iq4_nl", "q5_1")]
    trials = [(k, v, "auto") for k, v in pairs] + [(k, "f16", "off") for k in TYPES]
    found = dict(zip(trials, outcomes(file, trials), strict=True))
    for (k, v, flash), outcome in found.items():
        reason = why_not(info, _settings(k, v, flash_attention=flash))
        odd = size % 32 != 0 and {k, v} & QUANTIZED_CACHE
        assert (reason is not None) == bool(odd), (k, v, flash, reason)
        if reason is None:
            assert outcome == "runs", (k, v, flash, outcome)
        elif flash == "auto":
            assert outcome == "refused", (k, v, flash, outcome)
    assert {found[k, "f16", "off"] for k in TYPES if k in QUANTIZED_CACHE} == {
        16: {"runs"}, 32: {"runs"}, 40: {"aborted"}, 64: {"runs"}, 80: {"runs", "aborted"},
    }[size]  # fmt: skip


def test_latents_have_one_type(tmp_path: Path) -> None:
    file = write_small_deepseek2(tmp_path / "m.gguf")
    info = _info(file)
    trials = [("f16", "f16", "auto"), ("q8_0", "q8_0", "auto"), ("q8_0", "f16", "auto"), ("f16", "q4_0", "auto"),
              ("bf16", "f16", "off"), ("q4_0", "q4_0", "on")]  # fmt: skip
    found = outcomes(file, trials)
    assert found == ["runs", "runs", "refused", "refused", "refused", "runs"]
    for (k, v, flash), outcome in zip(trials, found, strict=True):
        reason = why_not(info, _settings(k, v, flash_attention=flash))  # type: ignore[arg-type]
        assert (reason is None) == (outcome == "runs")
    assert any("MLA" in fact for fact in cache_facts(info, _settings("q8_0", "q8_0")))


def _logits(file: Path, settings: SessionSettings) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with Model([file], 0) as model, Context(model, settings) as context:
        tokens = model.tokenize(TEXT) if model.vocabulary.n_tokens > 300 else np.arange(40, dtype=np.int32)
        return context.logits(tokens)


@pytest.mark.parametrize(
    ("k", "v", "expected"),
    [("q4_0", "q4_0", (True, True)), ("q4_0", "f16", (True, False)), ("f16", "q8_0", (False, True)),
     ("f16", "f16", (False, False))],
)  # fmt: skip
def test_rotation_changes_smollm2_and_not_tiny(k: CacheType, v: CacheType, expected: tuple[bool, bool]) -> None:
    """SmolLM2's heads have 64 values, those of tiny 32; nothing is rotated without a quantized type."""
    for name, rotated in (("tiny", (False, False)), ("smollm2-135m", expected)):
        (source,) = expand(name)
        info, settings = load_info(source), _settings(k, v)
        assert rotates(info, settings) == rotated
        without = _settings(k, v, rotate_kv=False)
        assert rotates(info, without) == (False, False)
        same = np.array_equal(_logits(source.files[0], settings), _logits(source.files[0], without))
        assert same == (not any(rotated))


def test_latents_are_never_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of 128 values: llama.cpp's log says that it rotates them, and its graph has nothing of it."""
    monkeypatch.setattr("tests.integration.small_deepseek2.ROPE", 64)
    monkeypatch.delenv("GGUF_HARNESS_TEST_MODELS", raising=False)
    file = write_small_deepseek2(tmp_path / "m.gguf")
    info, settings = _info(file), _settings("q4_0", "q4_0")
    assert rotates(info, settings) == (False, False)
    without = _settings("q4_0", "q4_0", rotate_kv=False)
    assert np.array_equal(_logits(file, settings), _logits(file, without))


def test_facts_name_what_is_unusual() -> None:
    """One sentence each, for the run: the same for all types, so that a file has one note."""
    k: CacheType
    v: CacheType
    (tiny,), (smollm2,) = expand("tiny"), expand("smollm2-135m")
    small, large = load_info(tiny), load_info(smollm2)
    assert cache_facts(small, _settings("f16", "f16")) == []
    for k, v in (("q8_0", "q4_0"), ("f16", "q4_0")):
        (fact,) = cache_facts(small, _settings(k, v))
        assert fact == "Quantized K and V are not rotated: heads have 32 values, not a multiple of 64."
        (fact,) = cache_facts(large, _settings(k, v))
        assert fact == "llama.cpp rotates quantized K and V (Hadamard) before it stores them."
    # The subject's name says it.
    assert cache_facts(large, _settings("q8_0", "q4_0", rotate_kv=False)) == []
    assert cache_facts(large, _settings("f32", "f32")) == ["Flash attention reads an f32 cache in half precision."]
