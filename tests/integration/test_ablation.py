"""Heads changed in real decodes: against files without those heads, and against loops over single sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Tokens
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.taps import Taps
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import CorpusError, EngineError, ModelError, VocabularyMismatch
from gguf_harness.inputs.corpora import Corpus, load_corpus
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.heads.distributions import Distributions
from gguf_harness.measure.heads.layout import HeadLayout, read_layout
from gguf_harness.measure.heads.patched import Change, Patched, Variant
from gguf_harness.measure.heads.removing import RemovalLimits
from gguf_harness.measure.heads.states import read_states
from gguf_harness.measure.heads.tasks import (
    HeadRequest,
    run_head_interchange,
    run_head_path,
    run_head_removal,
    run_head_screen,
    run_head_sweep,
    run_head_values,
)
from gguf_harness.measure.passes.tasks import CorpusText
from gguf_harness.metrics.importance import Head, window_rises
from gguf_harness.store.arrays import Arrays, save_arrays
from tests.devices import near
from tests.integration.small_models import write_small_model
from tests.loaded import open_context
from tests.random_llama import write_random_llama
from tests.rewritten import rewrite_gguf

pytestmark = pytest.mark.model

Array = NDArray[np.float32]

(TINY,) = expand("tiny")
N, WINDOWS = 64, 3
HEADS: list[Head] = [(0, 0), (0, 3), (1, 1), (1, 2)]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    corpus = load_corpus("pydoc")
    return Corpus(corpus.name, corpus.text[:20000])


def _settings(n_seq: int = 4, threads: int = 2, n_ctx: int = N) -> SessionSettings:
    return SessionSettings(n_ctx=n_ctx, n_batch=n_ctx * n_seq, n_ubatch=n_ctx * n_seq, threads=threads)


def _request(file: Path, corpus: Corpus, windows: int = WINDOWS, **settings: int) -> HeadRequest:
    return HeadRequest("m", (file,), _settings(**settings), CorpusText(corpus.name, corpus.text), windows)


def _run(
    tmp_path: Path, task: Callable[..., Arrays], file: Path, corpus: Corpus, *more: Any, **settings: int
) -> Arrays:
    with Worker("m", tmp_path / "log") as worker:
        return worker.call(task, None, _request(file, corpus, **settings), *more)


def _floats(arrays: Arrays) -> dict[str, NDArray[np.float64]]:
    return {name: values.astype(np.float64) for name, values in arrays.items()}


def _windows(context: Context, corpus: Corpus) -> Tokens:
    """The windows that the tasks should take: the first, the middle and the last one of the corpus."""
    tokens = context.model.tokenize(corpus.text)
    last = len(tokens) // N - 1
    windows = np.stack([tokens[N * at : N * (at + 1)] for at in (0, round(last / 2), last)])
    if context.model.vocabulary.add_bos:
        windows[:, 0] = context.model.vocabulary.bos
    return windows.astype(np.int32)


def _logits(file: Path, windows: Tokens, variants: Sequence[Variant], n_seq: int) -> list[Array]:
    found: list[Array] = [np.empty(0, dtype=np.float32)] * len(variants)
    with open_context([file], _settings(n_seq, threads=1)) as context:
        kept = Distributions(windows, context.model.vocabulary.n_tokens)
        with Patched(context.model, context.settings, read_layout(file)) as patched:
            jobs = [
                (variant, lambda rows, at=at: found.__setitem__(at, rows.copy())) for at, variant in enumerate(variants)
            ]
            assert list(patched.decode(kept, jobs))[-1] == len(variants)
    return found


def _zero(window: int, layer: int, head: int, size: int) -> Variant:
    return Variant(window, (Change(layer, slice(head * size, (head + 1) * size), np.zeros(1, dtype=np.float32)),))


@pytest.mark.parametrize("kind", ["tiny", "random"])
def test_a_head_of_zero_is_a_head_without_its_columns_of_the_output_matrix(
    llama_file: Path, corpus: Corpus, tmp_path: Path, kind: str
) -> None:
    """No bit of the logits differed when this was written; another build of llama.cpp may sum in another order."""
    file, size = (TINY.files[0], 32) if kind == "tiny" else (llama_file, 64)
    heads = [(0, 0), (1, 3), (4, 7)] if kind == "tiny" else [(0, 0), (1, 3)]
    with open_context([file], _settings()) as context:
        windows = _windows(context, corpus)
    plain = _logits(file, windows, [Variant(0)], 1)[0]
    for layer, head in heads:
        columns = slice(head * size, (head + 1) * size)

        def without(name: str, values: NDArray[Any], name_of: str = f"blk.{layer}.attn_output.weight") -> NDArray[Any]:
            if name == name_of:
                values[:, columns] = 0  # noqa: B023 - called before the loop goes on
            return values

        cut = rewrite_gguf(file, tmp_path / f"cut-{layer}-{head}.gguf", without)
        expected = _logits(cut, windows, [Variant(0)], 1)[0]
        ablated = _logits(file, windows, [_zero(0, layer, head, size)], 1)[0]
        assert np.abs(expected - plain).max() > 0.1
        assert np.abs(ablated - expected).max() < near(1e-3, "logits")


def test_changing_nothing_changes_no_bit(llama_file: Path, corpus: Corpus) -> None:
    with open_context([llama_file], _settings()) as context:
        windows = _windows(context, corpus)
        kept = Distributions(windows, context.model.vocabulary.n_tokens)
        read_states(context.model, context.settings, read_layout(llama_file), kept)
    variants = [Variant(window) for window in range(WINDOWS)]
    untapped = _logits(llama_file, windows, variants, 3)
    tapped = _logits(llama_file, windows, variants, 3)
    for window, (first, second) in enumerate(zip(untapped, tapped, strict=True)):
        assert (first == second).all()
        assert np.abs(kept.logs[window] - (first - first.max(axis=1, keepdims=True))).max() == 0


def test_variants_of_a_batch_do_not_touch_each_other(llama_file: Path, corpus: Corpus) -> None:
    """Sequences of a batch with changes of their own give what each gives alone."""
    with open_context([llama_file], _settings()) as context:
        windows = _windows(context, corpus)
    variants = [Variant(0), *(_zero(window, 1, head, 64) for window in range(WINDOWS) for head in range(4)), Variant(2)]
    alone = _logits(llama_file, windows, variants, 1)
    together = _logits(llama_file, windows, variants, 8)
    for first, second in zip(alone, together, strict=True):
        assert np.abs(first - second).max() < near(1e-4, "logits")
    assert min(np.abs(rows - together[0]).max() for rows in together[1:5]) > 0.01


def test_the_heads_of_a_layer_are_the_whole_layer(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Each head of zero, the whole layer of zero, and a file whose layer adds nothing: the same logits."""
    with open_context([llama_file], _settings()) as context:
        windows = _windows(context, corpus)
    zero = np.zeros(1, dtype=np.float32)
    each = Variant(0, tuple(Change(1, slice(64 * head, 64 * head + 64), zero) for head in range(4)))
    first, second = _logits(llama_file, windows, [each, Variant(0, (Change(1, slice(0, 256), zero),))], 2)
    assert (first == second).all()
    cut = rewrite_gguf(
        llama_file, tmp_path / "cut.gguf", lambda name, v: 0 * v if name == "blk.1.attn_output.weight" else v
    )
    assert np.abs(first - _logits(cut, windows, [Variant(0)], 1)[0]).max() < near(1e-3, "logits")


def _softmax(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _by_hand(file: Path, windows: Tokens, layer: int, columns: slice, mean: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """(rise of the loss, KL) of one head, [windows, scored]: a decode per window, each alone, all in float64."""
    z: list[Array] = []
    tap = f"blocks.{layer}.attn.z"
    reader = Taps("llama", read_layout(file).heads.__len__(), read={tap: lambda _, values: z.append(values.copy())})
    with open_context([file], _settings(1, threads=1), reader) as context:
        clean = [_softmax(context.logits(window)) for window in windows]
    new = np.concatenate(z)[:, columns].astype(np.float64).mean(axis=0) if mean else 0.0

    def patch(_: str, values: Array) -> Array:
        values[:, columns] = new
        return values

    with open_context(
        [file], _settings(1, threads=1), Taps("llama", len(read_layout(file).heads), patch={tap: patch})
    ) as s:
        changed = [_softmax(s.logits(window)) for window in windows]
    rises, klds = [], []
    for window, before, after in zip(windows, clean, changed, strict=True):
        scored, targets = slice(16, N - 1), window[17:N]
        rows = np.arange(len(targets))
        rises.append(before[scored][rows, targets] - after[scored][rows, targets])
        klds.append((np.exp(before[scored]) * (before[scored] - after[scored])).sum(axis=1))
    return np.array(rises), np.array(klds)


@pytest.mark.parametrize("kind", ["tiny", "random"])
def test_a_sweep_is_a_loop_over_sessions(llama_file: Path, corpus: Corpus, tmp_path: Path, kind: str) -> None:
    file, size = (TINY.files[0], 32) if kind == "tiny" else (llama_file, 64)
    result = _run(tmp_path, run_head_sweep, file, corpus, HEADS)
    assert result["heads"].tolist() == [list(head) for head in HEADS]
    assert result["nll_zero"].shape == (len(HEADS), WINDOWS, N - 17)
    with open_context([file], _settings()) as context:
        windows = _windows(context, corpus)
    for place, (layer, head) in enumerate(HEADS):
        for mean, name in ((False, "zero"), (True, "mean")):
            rises, klds = _by_hand(file, windows, layer, slice(head * size, (head + 1) * size), mean)
            # Matrices in F16 are multiplied by rounded activations, in another order for another number of rows.
            noise = near(2e-2 if kind == "tiny" else 1e-3, "logits")
            risen, kld = result[f"nll_{name}"][place] - result["nll"], result[f"kld_{name}"][place]
            assert np.abs(risen - rises).max() < noise
            assert np.abs(kld - klds).max() < noise
            assert abs(risen.mean() - rises.mean()) < noise / 10
            assert abs(kld.mean() - klds.mean()) < noise / 10
    assert window_rises(result["kld_zero"], 0).min() > 1e-5


def test_numbers_do_not_depend_on_lanes_and_batches(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    one, *others = (
        _run(tmp_path, run_head_sweep, llama_file, corpus, HEADS, n_seq=n_seq, threads=threads)
        for n_seq, threads in ((1, 1), (3, 1), (8, 2), (6, 3))
    )
    for other in others:
        assert all(
            np.abs(other[name].astype(float) - one[name].astype(float)).max() < near(1e-4, "logits") for name in one
        )


def test_interchange_with_itself_leaves_no_divergence(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """All layers at once as well: a model with its own values everywhere is that model."""
    values = _run(tmp_path, run_head_values, llama_file, corpus)
    save_arrays(tmp_path / "values.npz", values)
    result = _run(tmp_path, run_head_interchange, llama_file, corpus, tmp_path / "values.npz", HEADS)
    assert result["layers"].tolist() == [0, 1]
    assert all(np.abs(result[name]).max() < near(1e-6, "kl") for name in ("kld", "kld_heads", "kld_layers"))
    windows = values["tokens"].astype(np.int32)
    own = [values[f"z{layer}"].astype(np.float32) for layer in range(2)]
    every = [
        Variant(at, tuple(Change(layer, slice(0, 256), own[layer][at]) for layer in range(2))) for at in range(WINDOWS)
    ]
    logs = values["logs"]
    for at, logits in enumerate(_logits(llama_file, windows, every, 2)):
        assert np.abs(logits - logits.max(axis=1, keepdims=True) - logs[at]).max() <= near(0.0, "logits")


def test_interchange_finds_the_head_that_differs(corpus: Corpus, tmp_path: Path) -> None:
    """A candidate whose queries of one head differ: that head's share is all, the others of its layer have none."""
    file = write_random_llama(tmp_path / "model.gguf")

    def disturb(name: str, values: NDArray[Any]) -> NDArray[Any]:
        if name == "blk.0.attn_q.weight":
            values[128:192] *= 1.5
        return values

    other = rewrite_gguf(file, tmp_path / "other.gguf", disturb)
    save_arrays(tmp_path / "values.npz", _run(tmp_path, run_head_values, file, corpus))
    heads: list[Head] = [(0, head) for head in range(4)]
    result = _run(tmp_path, run_head_interchange, other, corpus, tmp_path / "values.npz", heads)
    before = window_rises(result["kld"][None], 0).mean()
    left = window_rises(result["kld_heads"], 0).mean(axis=1) / before
    layers = window_rises(result["kld_layers"], 0).mean(axis=1) / before
    assert before > 1e-3
    assert left[2] < 1e-3
    assert np.abs(np.delete(left, 2) - 1).max() < 1e-3
    assert layers[0] < 1e-3
    assert layers[1] > 1e-2


ALL_OF_THEM = RemovalLimits(tries=2, choosing=2, most=100.0, enough=100.0)


def _other_windows(context: Context, corpus: Corpus) -> Tokens:
    """The first, the middle and the last of those that `_windows` does not have."""
    tokens = context.model.tokenize(corpus.text)
    available = len(tokens) // N
    others = [at for at in range(available) if at not in {0, round((available - 1) / 2), available - 1}]
    chosen = (others[0], others[round((len(others) - 1) / 2)], others[-1])
    windows = np.stack([tokens[N * at : N * (at + 1)] for at in chosen])
    if context.model.vocabulary.add_bos:
        windows[:, 0] = context.model.vocabulary.bos
    return windows.astype(np.int32)


def test_removal_and_path_decode_what_they_say(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Heads go by what they change on the windows of the sweep; the loss is that of other windows."""
    sweep = _floats(_run(tmp_path, run_head_sweep, llama_file, corpus, HEADS))
    changes = sweep["kld_zero"][:, [0, 2]].mean(axis=(1, 2)).tolist()
    costs = dict(zip(HEADS, changes, strict=True))
    result = _floats(_run(tmp_path, run_head_removal, llama_file, corpus, costs, ALL_OF_THEM))
    path: list[Head] = [(int(layer), int(head)) for layer, head in result["heads"].tolist()]
    assert sorted(path) == sorted(HEADS)
    assert path[0] == min(costs, key=lambda head: costs[head])
    again = _floats(_run(tmp_path, run_head_path, llama_file, corpus, path, ALL_OF_THEM))
    assert np.abs(again["nll"] - result["nll"]).max() < near(1e-4, "logits")
    with open_context([llama_file], _settings()) as context:
        windows = _other_windows(context, corpus)
    columns = [Change(layer, slice(64 * head, 64 * head + 64), np.zeros(1, dtype=np.float32)) for layer, head in path]
    for count in (0, 1, 4):
        (logits,) = _logits(llama_file, windows, [Variant(1, tuple(columns[:count]))], 1)
        nll = -_softmax(logits)[np.arange(N - 17), windows[1, 17:]]
        assert np.abs(result["nll"][count][1] - nll).max() < near(1e-4, "logits")
    assert np.abs(result["nll"][1] - result["nll"][0]).max() > 1e-3


def test_removal_ends_once_the_loss_has_risen_far_enough(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    costs = {head: 0.1 * at for at, head in enumerate(HEADS)}
    whole = _floats(_run(tmp_path, run_head_removal, llama_file, corpus, costs, ALL_OF_THEM))
    rises = (whole["nll"] - whole["nll"][0]).mean(axis=2)
    for limits, risen in (
        (replace(ALL_OF_THEM, most=rises.mean(axis=1).max() / 2), rises.mean(axis=1) >= rises.mean(axis=1).max() / 2),
        (replace(ALL_OF_THEM, enough=rises.min(axis=1).max() / 2), rises.min(axis=1) >= rises.min(axis=1).max() / 2),
    ):
        ended = _run(tmp_path, run_head_removal, llama_file, corpus, costs, limits)
        assert len(ended["heads"]) == int(np.flatnonzero(risen)[0])
        assert len(ended["nll"]) == len(ended["heads"]) + 1
        rest = [(int(layer), int(head)) for layer, head in ended["rest"].tolist()]
        assert rest == sorted(rest, key=lambda head: costs[head])
        path = [(int(layer), int(head)) for layer, head in ended["heads"].tolist()] + rest
        assert sorted(path) == sorted(HEADS)
        # Along the same path the same loss, which ends it at the same head.
        along = _run(tmp_path, run_head_path, llama_file, corpus, path, limits)
        assert along["heads"].tolist() == ended["heads"].tolist()


def test_a_screen_is_the_sweep_on_some_windows(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    screen = _floats(_run(tmp_path, run_head_screen, llama_file, corpus, 2))
    every: list[Head] = [(layer, head) for layer in range(2) for head in range(4)]
    assert screen["heads"].tolist() == [list(head) for head in every]
    assert screen["windows"].tolist() == [0, WINDOWS - 1]
    sweep = _floats(_run(tmp_path, run_head_sweep, llama_file, corpus, every))
    assert np.abs(screen["nll"] - sweep["nll"][[0, 2]]).max() < 1e-6
    for kind in ("nll_zero", "kld_zero"):
        assert np.abs(screen[kind] - sweep[kind][:, [0, 2]]).max() < 1e-4
    assert np.abs(screen["nll_zero"] - screen["nll"]).mean(axis=(1, 2)).min() > 1e-3


def test_a_sweep_takes_what_a_screen_has_found(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Marked values of the screen arrive where they belong, and everything else is decoded."""
    screen = _run(tmp_path, run_head_screen, llama_file, corpus, 2)
    floats = _floats(screen)
    marked = {**floats, "nll_zero": floats["nll_zero"] + 100, "kld_zero": floats["kld_zero"] + 200}
    whole = {**screen, **{name: marked[name] for name in ("nll_zero", "kld_zero")}}
    without, within = (
        _floats(_run(tmp_path, run_head_sweep, llama_file, corpus, HEADS, known)) for known in (None, whole)
    )
    places = [4 * layer + head for layer, head in HEADS]
    for kind in ("nll_zero", "kld_zero"):
        assert (within[kind][:, [0, 2]] == marked[kind][places]).all()
        assert np.abs(within[kind][:, 1] - without[kind][:, 1]).max() < 1e-4
    for kind in ("nll", "nll_mean", "kld_mean"):
        assert np.abs(within[kind] - without[kind]).max() < 1e-4


def test_heads_of_each_layer_are_counted(tmp_path: Path) -> None:
    layout = HeadLayout("x", (2, 0, 3))
    assert layout.all == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert layout.layers == [0, 2]
    assert layout.columns(2, 1, 12) == slice(4, 8)
    with pytest.raises(EngineError, match="cannot share"):
        layout.columns(2, 1, 13)
    file = write_random_llama(tmp_path / "m.gguf")
    assert read_layout(file).heads == (4, 4)
    for value in (0, [4, 0], [0, 0], 2**31, [1, -3], [4]):
        changed = rewrite_gguf(
            file, tmp_path / "n.gguf", lambda _, values: values, metadata={"llama.attention.head_count": value}
        )
        if value == [4, 0]:
            assert read_layout(changed).heads == (4, 0)
        else:
            with pytest.raises(ModelError, match="expected"):
                read_layout(changed)


def test_mistakes_are_one_message(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    with open_context([llama_file], _settings()) as context:
        available = len(context.model.tokenize(corpus.text)) // N
    most = available - 1
    with pytest.raises(CorpusError, match=f"asks for {most}, and {most} more to measure the loss") as error:
        _run(tmp_path, run_head_path, llama_file, corpus, HEADS, ALL_OF_THEM, windows=most)
    assert error.value.hint == f"Use --gguf-head-windows={available // 2} or less, or a longer text."
    with pytest.raises(CorpusError, match=r"--gguf-head-windows asks for 9999"):
        _run(tmp_path, run_head_sweep, llama_file, corpus, HEADS, windows=9999)
    with pytest.raises(EngineError, match="no head 9 in a layer 1"):
        _run(tmp_path, run_head_sweep, llama_file, corpus, [(1, 9)])
    everything = load_corpus("pydoc")
    with pytest.raises(CorpusError, match=r"would take 1\.\d GB of memory"):
        _run(tmp_path, run_head_sweep, TINY.files[0], everything, HEADS, windows=1100)
    # Rows would be counted wrong where a batch is decoded in parts.
    request = HeadRequest(
        "m", (llama_file,), SessionSettings(n_ctx=N, n_batch=4 * N, n_ubatch=N, threads=1),
        CorpusText(corpus.name, corpus.text), WINDOWS,
    )  # fmt: skip
    with Worker("m", tmp_path / "log") as worker, pytest.raises(EngineError, match="hold the logical one"):
        worker.call(run_head_sweep, None, request, HEADS)


def test_other_models_are_refused(llama_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    save_arrays(tmp_path / "values.npz", _run(tmp_path, run_head_values, llama_file, corpus))
    more = write_random_llama(tmp_path / "more.gguf", extra_tokens=2)
    with pytest.raises(VocabularyMismatch, match="260 tokens, its reference of 258"):
        _run(tmp_path, run_head_interchange, more, corpus, tmp_path / "values.npz", HEADS)
    deeper = write_random_llama(tmp_path / "deeper.gguf", n_layer=3)
    with pytest.raises(EngineError, match="different heads from its reference"):
        _run(tmp_path, run_head_interchange, deeper, corpus, tmp_path / "values.npz", HEADS)


@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "mixtral", "phi3", "qwen2", "qwen3"])
def test_heads_of_other_architectures_are_columns_of_the_output_matrix(tmp_path: Path, kind: str) -> None:
    file = write_small_model(tmp_path / "m.gguf", kind, 2)
    layout, size = read_layout(file), 24 if kind in {"gemma3", "qwen3"} else 16
    assert layout.heads == (4, 4)
    windows = np.arange(3, 3 + 2 * 28, dtype=np.int32).reshape(2, 28)
    for layer, head in ((0, 1), (1, 2)):

        def without(name: str, values: NDArray[Any], place: tuple[int, int] = (layer, head)) -> NDArray[Any]:
            if name == f"blk.{place[0]}.attn_output.weight":
                values[:, place[1] * size : (place[1] + 1) * size] = 0
            return values

        cut = rewrite_gguf(file, tmp_path / f"cut-{layer}.gguf", without)
        plain, expected = (_logits(each, windows, [Variant(1)], 1)[0] for each in (file, cut))
        ablated = _logits(file, windows, [_zero(1, layer, head, size)], 1)[0]
        assert np.abs(expected - plain).max() > 1e-2
        assert np.abs(ablated - expected).max() < near(1e-4, "logits")


@pytest.mark.parametrize("model", ["without_z", "hybrid_file"])
def test_a_layer_that_mixes_no_values_has_no_heads(
    tmp_path: Path, corpus: Corpus, model: str, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(model)
    assert read_layout(file).heads == (4, 0)
    sweep = _run(tmp_path, run_head_sweep, file, corpus, read_layout(file).all)
    assert np.isfinite(sweep["nll_zero"]).all()
    with pytest.raises(EngineError, match="no head 0 in a layer 1"):
        _run(tmp_path, run_head_sweep, file, corpus, [(1, 0)])
