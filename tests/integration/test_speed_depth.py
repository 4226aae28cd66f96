"""Speed with a filled cache: what is decoded when, and that what was restored is what was there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.sequences import restore_sequence, save_sequence
from gguf_harness.engine.settings import CacheType, SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.measure.speed.side_by_side import DepthSpeed, SpeedRequest, Timed, measure_depths
from gguf_harness.measure.speed.tasks import SpeedTest, timed_decode
from tests.loaded import open_context
from tests.random_llama import BOS, write_random_llama

pytestmark = pytest.mark.model

SETTINGS = SessionSettings(n_ctx=64, n_batch=64)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_what_was_saved_is_put_back(llama_file: Path, kind: CacheType) -> None:
    settings = SessionSettings(n_ctx=64, n_batch=64, cache_type_k=kind, cache_type_v=kind)
    tokens = np.arange(40, dtype=np.int32)
    positions, first = np.arange(40, dtype=np.int32), slice(0, 30)

    def last(context: Context) -> NDArray[np.float32]:
        rest = slice(30, 40)
        wanted = np.arange(10) == 9
        context.decode(tokens[rest], positions[rest], np.zeros(10, dtype=np.int32), wanted)
        return context.output_logits(1).copy()

    with open_context([llama_file], settings) as context:
        context.prefill(tokens[first])
        saved = save_sequence(context)
        expected = last(context)
        for _ in range(2):
            context.clear()
            assert restore_sequence(context, saved)
            assert (last(context) == expected).all()
        context.prefill(np.full(30, 7, dtype=np.int32))
        assert not (last(context) == expected).all(), "other tokens before them give other logits"


@pytest.mark.parametrize(("test", "tokens"), [("pp", 10), ("tg", 3)])
@pytest.mark.parametrize("depth", [0, 20])
def test_tokens_are_timed_after_those_of_the_depth(
    worker: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: SpeedTest, tokens: int, depth: int
) -> None:
    """The depth is decoded once, in batches, and each run begins right after it, with BOS as llama-bench has it."""
    file = write_random_llama(tmp_path / "m.gguf", add_bos=True)
    seen: list[tuple[list[int], int]] = []
    decode = Context.decode

    def watched(self: Context, ids: NDArray[np.int32], positions: NDArray[np.int32], *rest: object) -> None:
        seen.append((positions.tolist(), int(ids[0])))
        decode(self, ids, positions, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Context, "decode", watched)
    repetition = timed_decode(worker, [file], SETTINGS, test, tokens, depth, least_s=0.02)
    assert repetition.value > 0
    (warm_up, *filled), runs = seen[: 2 if depth else 1], seen[2 if depth else 1 :]
    assert warm_up[0] == [0]
    assert filled == ([(list(range(depth)), BOS)] if depth else [])
    whole = list(range(depth, depth + tokens))
    each = 1 if test == "pp" else tokens
    assert len(runs) % each == 0
    for start in range(0, len(runs), each):
        run = runs[start : start + each]
        assert [position for positions, _ in run for position in positions] == whole
        assert run[0][1] == BOS


def test_depths_beside_a_reference(llama_file: Path, tmp_path: Path) -> None:
    """Both at each depth, in turns; nothing is said of how fast they are."""
    request = SpeedRequest(SETTINGS, 8, 2, 2, (0, 16))
    assert request.bench.n_ctx == 24
    quantized = SessionSettings(n_ctx=64, n_batch=64, cache_type_k="q8_0", cache_type_v="q8_0")
    ours = Timed((llama_file,), lambda: Worker("ours", tmp_path / "ours"), quantized)
    theirs = Timed((llama_file,), lambda: Worker("theirs", tmp_path / "theirs"), SETTINGS)
    result = measure_depths(ours, theirs, request, lambda *_: None)
    assert list(result.timings) == ["pp@0", "pp@16", "tg@0", "tg@16"]
    for timing in result.timings.values():
        assert len(timing.ours) == len(timing.theirs) >= 2
        assert timing.again
    assert DepthSpeed.from_json(result.to_json()) == result
