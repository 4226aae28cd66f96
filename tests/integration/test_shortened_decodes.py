"""Decodes that begin in the middle: to the bit those that compute everything, in graphs of several architectures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.graph_record import GraphChanged
from gguf_harness.engine.model import Tokens
from gguf_harness.engine.quantize import quantize_file
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.taps import Given, Taps
from gguf_harness.errors import EngineError
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.heads.distributions import Distributions
from gguf_harness.measure.heads.layout import read_layout, stream_tap, z_tap
from gguf_harness.measure.heads.patched import Change, Job, Patched, Variant
from gguf_harness.measure.heads.removing import Removal
from gguf_harness.measure.heads.states import States, read_states
from gguf_harness.metrics.importance import Head
from tests.integration.small_jamba import ATTENTION_LAYERS, write_small_jamba
from tests.integration.small_models import ARCHITECTURES, architecture_of, write_small_model
from tests.loaded import open_context

pytestmark = pytest.mark.model

Array = NDArray[np.float32]

(TINY,) = expand("tiny")
LAYERS = 4
TOKENS = np.arange(3, 15, dtype=np.int32)


def _settings(n_seq: int = 4, threads: int = 1, **more: object) -> SessionSettings:
    settings = SessionSettings(n_ctx=64, n_batch=64 * n_seq, n_ubatch=64 * n_seq, threads=threads)
    return replace(settings, **more)  # type: ignore[arg-type]


def _half(_: str, z: Array) -> Array:
    return z * np.float32(0.5)


def _check_every_layer(
    file: Path, architecture: str, n_layer: int, layers: list[int], settings: SessionSettings
) -> None:
    """With each layer's z halved: logits of a decode that begins there against one that begins at the tokens."""
    taps = Taps(architecture, n_layer, changing=True)
    known: dict[str, Array] = {}
    with open_context([file], settings, taps) as context:
        wanted = [tap(layer) for layer in layers for tap in (z_tap, stream_tap) if layer or tap is z_tap]
        taps.watch(read=dict.fromkeys(wanted, known.__setitem__))
        plain = context.logits(TOKENS)
        record = taps.record(wanted)
        assert record is not None
        assert set(wanted) == record.places.keys()
        for layer in layers:
            taps.watch(patch={z_tap(layer): _half})
            whole = context.logits(TOKENS)
            values = {z_tap(layer): known[z_tap(layer)] * np.float32(0.5)}
            if layer:
                values[stream_tap(layer)] = known[stream_tap(layer)]
            # Another text, so that nothing in the graph's memory is right by chance.
            taps.watch()
            context.logits(TOKENS[::-1].copy())
            taps.watch(given=Given(record, values))
            assert (context.logits(TOKENS) == whole).all()
            assert np.abs(whole - plain).max() > 1e-6
            skipped = {record.nodes[place].name for place in record.spared(values)}
            for each in range(n_layer):
                assert (f"l_out-{each}".encode() in skipped) is (each < layer)
            # The flags are as they were: the same graph is computed as a whole.
            taps.watch()
            assert (context.logits(TOKENS) == plain).all()


@pytest.mark.parametrize("flash", ["on", "off"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_decode_may_begin_at_any_layer(tmp_path: Path, kind: str, flash: str) -> None:
    file = write_small_model(tmp_path / f"{kind}.gguf", kind, LAYERS)
    _check_every_layer(file, architecture_of(kind), LAYERS, list(range(LAYERS)), _settings(flash_attention=flash))


def test_a_hybrid_may_begin_at_its_layers_with_attention(tmp_path: Path) -> None:
    file = write_small_jamba(tmp_path / "jamba.gguf")
    layout = read_layout(file)
    assert layout.layers == list(ATTENTION_LAYERS)
    _check_every_layer(file, "jamba", len(layout.heads), layout.layers, _settings())


def test_a_quantized_cache_is_filled_as_far_as_it_is_read(llama_file: Path) -> None:
    settings = _settings(cache_type_k="q8_0", cache_type_v="q8_0")
    _check_every_layer(llama_file, "llama", 2, [0, 1], settings)


def test_what_is_not_computed_cannot_be_read(llama_file: Path) -> None:
    taps = Taps("llama", 2, changing=True)
    known: dict[str, Array] = {}
    with open_context([llama_file], _settings(), taps) as context:
        tap = stream_tap(1)
        taps.watch(read={tap: known.__setitem__})
        context.logits(TOKENS)
        record = taps.record([tap, z_tap(0), "blocks.7.attn.z"])
        assert record is not None
        assert record.places.keys() == {tap, z_tap(0)}
        with pytest.raises(EngineError, match=r"blocks\.0\.attn\.z is not computed in a decode that is given"):
            taps.watch(read={z_tap(0): known.__setitem__}, given=Given(record, known))
        taps.watch(given=Given(record, {tap: known[tap][:-1]}))
        with pytest.raises(EngineError, match="cannot be given values of shape"):
            context.logits(TOKENS)


def test_another_graph_is_noticed_and_nothing_is_lost(tmp_path: Path, llama_file: Path) -> None:
    """The record of a model with other nodes: the decode ends with an error, and the next one is right."""
    other = write_small_model(tmp_path / "qwen2.gguf", "qwen2", 2)
    foreign = Taps("qwen2", 2, changing=True)
    with open_context([other], _settings(), foreign) as context:
        context.logits(TOKENS)
        record = foreign.record([stream_tap(1)])
    assert record is not None
    taps = Taps("llama", 2, changing=True)
    with open_context([llama_file], _settings(), taps) as context:
        plain = context.logits(TOKENS)
        taps.watch(given=Given(record, {stream_tap(1): np.zeros((len(TOKENS), 256), dtype=np.float32)}))
        with pytest.raises(GraphChanged):
            context.logits(TOKENS)
        taps.watch()
        assert (context.logits(TOKENS) == plain).all()


def test_a_text_of_several_physical_batches_cannot_be_shortened(llama_file: Path) -> None:
    taps = Taps("llama", 2, changing=True)
    with open_context([llama_file], replace(_settings(), n_ubatch=8), taps) as context:
        context.logits(TOKENS)
        assert taps.record([stream_tap(1)]) is None


# -- heads ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "random-Q4_K_M"])
def file(request: pytest.FixtureRequest, llama_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tiny":
        return TINY.files[0]
    path = tmp_path_factory.mktemp("quantized") / "random-Q4_K_M.gguf"
    quantize_file([llama_file], path, "Q4_K_M", threads=2)
    return path


class _Case:
    """A file, three windows of a text, and what its layers work on."""

    def __init__(self, context: Context, file: Path, settings: SessionSettings) -> None:
        tokens: Tokens = context.model.tokenize(Path(__file__).read_bytes())
        self.settings = settings
        self.windows = tokens[: 3 * 64].reshape(3, 64)
        self.layout = read_layout(file)
        self.model = context.model
        self.clean = Distributions(self.windows, context.model.vocabulary.n_tokens)
        self.states = read_states(context.model, settings, self.layout, self.clean)

    def decode(self, variants: list[Variant], states: States | None) -> list[Array]:
        """Logits of the variants, with graphs that are recorded before."""
        found: list[Array] = [np.empty(0, dtype=np.float32)] * len(variants)

        def keep(at: int, rows: Array) -> None:
            found[at] = rows.copy()

        jobs: list[Job] = [(variant, partial(keep, at)) for at, variant in enumerate(variants)]
        with Patched(self.model, self.settings, self.layout) as patched:
            for _ in range(2):
                list(patched.decode(self.clean, jobs, states))
        return found

    def zero(self, head: Head) -> Change:
        columns = self.layout.columns(*head, self.states.z[head[0]].shape[-1])
        return Change(head[0], columns, np.zeros(1, dtype=np.float32))


@pytest.mark.parametrize("threads", [1, 2])
def test_changed_heads_are_to_the_bit_those_of_whole_decodes(file: Path, threads: int) -> None:
    settings = _settings(threads=threads)
    with open_context([file], settings) as context:
        case = _Case(context, file, settings)
        random = np.random.default_rng(0)
        variants = [Variant(window, (case.zero(head),)) for head in case.layout.all[::3] for window in range(3)]
        for layer in case.layout.layers:
            shape = case.states.z[layer].shape[1:]
            other = random.standard_normal(shape, dtype=np.float32)
            variants.append(Variant(layer % 3, (Change(layer, slice(0, shape[-1]), other),)))
        pair = case.layout.all[1], case.layout.all[-1]
        variants += [Variant(1, tuple(map(case.zero, pair))), Variant(2)]
        whole, shortened = case.decode(variants, None), case.decode(variants, case.states)
        for first, second in zip(whole, shortened, strict=True):
            assert (first == second).all()
        assert np.abs(whole[0] - whole[3]).max() > 1e-4


def test_heads_removed_one_by_one_are_those_of_whole_decodes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(threads=2)
    with open_context([file], settings) as context:
        case = _Case(context, file, settings)
        path = case.layout.all[1::3][::-1][:3] + case.layout.all[::4][:3]
        path = list(dict.fromkeys(path))
        curves, divergences = [], []
        for most in (1 << 30, 0):
            monkeypatch.setattr("gguf_harness.measure.heads.removing._MOST_BYTES", most)
            with Patched(case.model, settings, case.layout) as patched:
                removal = Removal(patched, case.clean, case.states, case.layout)
                curve = []
                for step, head in enumerate(path):
                    removal.go_on(path[:step])
                    # The one that goes is not the last that was tried.
                    curve.append(removal.losses(head))
                    divergences.append((step, removal.changes(head)))
                    removal.losses(case.layout.all[5])
                curves.append(np.stack(curve))
        sets = [tuple(map(case.zero, path[: step + 1])) for step in range(len(path))]
        logits = case.decode([Variant(window, changes) for changes in sets for window in range(3)], None)
        expected = np.stack([case.clean.losses(at % 3, rows) for at, rows in enumerate(logits)])
        for losses in curves:
            assert np.abs(losses.reshape(expected.shape) - expected).max() < 1e-5
        changed = np.stack([case.clean.compare(at % 3, rows)[1] for at, rows in enumerate(logits)])
        for step, changes in divergences:
            assert np.abs(changes - changed[3 * step : 3 * step + 3]).max() < 1e-5
        assert np.abs(curves[0][0] - curves[0][-1]).max() > 1e-3


def test_losses_are_those_of_the_comparison(file: Path) -> None:
    settings = _settings()
    with open_context([file], settings) as context:
        case = _Case(context, file, settings)
        for window, logs in enumerate(case.clean.logs):
            assert (case.clean.losses(window, logs) == case.clean.compare(window, logs)[0]).all()
        case.clean.logs[1, 3] = np.nan
        with pytest.raises(EngineError, match="window 1 are not finite"):
            case.clean.losses(1, case.clean.logs[1])


def test_states_that_are_too_large_are_left_out(llama_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all layers before the change are computed, and the logits are the same."""
    settings = _settings()
    with open_context([llama_file], settings) as context:
        case = _Case(context, llama_file, settings)
        assert case.states.streams.keys() == {1}
        monkeypatch.setattr("gguf_harness.measure.heads.states._MOST_STREAM_BYTES", 1000)
        states = read_states(context.model, settings, case.layout, case.clean)
        assert not states.streams
        variants = [Variant(0, (case.zero((1, 2)),)), Variant(1, (case.zero((1, 3)),))]
        for first, second in zip(case.decode(variants, case.states), case.decode(variants, states), strict=True):
            assert (first == second).all()


def test_a_stream_without_a_name_is_computed(llama_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings()
    monkeypatch.setattr("gguf_harness.measure.heads.states.stream_tap", lambda layer: f"blocks.{layer + 9}.resid_post")
    with open_context([llama_file], settings) as context:
        case = _Case(context, llama_file, settings)
        assert case.states.z.keys() == {0, 1}
        assert not case.states.streams
        variants = [Variant(0, (case.zero((1, 2)),))]
        assert (case.decode(variants, case.states)[0] == case.decode(variants, None)[0]).all()
