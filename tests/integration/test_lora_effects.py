"""The effect of an adapter, decoded beside its base: the numbers of two passes over the same windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.errors import ModelError, NoData
from gguf_harness.inputs.adapters import VOYAGE_FILE, load_adapter
from gguf_harness.inputs.corpora import Corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.lora.calls import LoraEffects, scaled, with_adapters
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.adapter_effects import effect_correlation, effect_of, effect_slope
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.random_lora import write_random_lora

pytestmark = pytest.mark.model

CTX, WINDOWS = 128, 6
Bases = list[Subject]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    cache = tmp_path_factory.mktemp("lora") / "cache"
    arguments = ["--models=tiny", "--gguf-quants=Q8_0,Q4_0", f"--gguf-cache={cache}", f"--gguf-ctx={CTX}",
                 f"--gguf-chunks={WINDOWS}"]  # fmt: skip
    core = Core(read_options(parse_command_line(*arguments)), SilentProgress())
    yield core
    core.close()


@pytest.fixture(scope="module")
def text() -> Corpus:
    return Corpus("own", VOYAGE_FILE.with_name("voyage-held-out.txt").read_bytes())


@pytest.fixture(scope="module")
def bases(core: Core) -> list[Subject]:
    return [core.subject(planned) for planned in plan_ladder(core.options).models]


@pytest.fixture(scope="module")
def adapter_of_tiny(core: Core) -> Subject:
    (planned, *_) = plan_ladder(core.options).adapted
    return core.subject(planned)


def test_it_is_what_two_passes_measure(core: Core, bases: Bases, adapter_of_tiny: Subject, text: Corpus) -> None:
    effect = LoraEffects(core, text, bases[0]).effect(adapter_of_tiny, bases[0], text)
    passes = CorpusPass(core, text)
    base, other = passes.reference(bases[0], logprobs=True), passes.candidate(adapter_of_tiny, bases[0])
    assert effect["nll"].shape == (WINDOWS, CTX // 2 - 1)
    assert (effect["window"] == other["window"]).all()
    for name, expected in (("nll_base", base["nll"]), ("nll", other["nll"])):
        np.testing.assert_allclose(effect[name].astype(np.float64), expected.astype(np.float64), atol=1e-5)
    # The stored distributions of a pass have 16 bits; here both are decoded at once.
    np.testing.assert_allclose(effect["kld"].astype(np.float64), other["kld"].astype(np.float64), atol=1e-3)
    assert (effect["top"] == other["top"]).mean() > 0.99
    gain = effect_of(effect["nll"], effect["nll_base"]).mean()
    assert gain > 0.5
    print("gain", gain, "nll off by", np.abs(effect["nll"].astype(np.float64) - other["nll"].astype(np.float64)).max(),
          "kld off by", np.abs(effect["kld"].astype(np.float64) - other["kld"].astype(np.float64)).max())  # fmt: skip


def test_at_scale_zero_it_is_exactly_the_base(core: Core, bases: Bases, adapter_of_tiny: Subject, text: Corpus) -> None:
    sweep = LoraEffects(core, text, bases[0]).sweep(adapter_of_tiny, bases[0], text)
    assert (sweep[0.0]["nll"] == sweep[0.0]["nll_base"]).all()
    assert np.abs(sweep[0.0]["kld"].astype(np.float64)).max() == 0
    gains = {scale: effect_of(each["nll"], each["nll_base"]).mean() for scale, each in sweep.items()}
    assert gains[0.0] < gains[0.25] < gains[0.5] < gains[1.0]
    assert scaled(adapter_of_tiny, 0.5).adapters[0].scale == 0.5


def test_what_bases_keep_falls_with_bits(core: Core, bases: Bases, adapter_of_tiny: Subject, text: Corpus) -> None:
    lora = LoraEffects(core, text, bases[0], compared=True)
    reference, kept = lora.on_reference(adapter_of_tiny, text), []
    assert "kld_effect" not in reference
    for base in bases[1:]:
        own = lora.effect(with_adapters(base, adapter_of_tiny.adapters), base, text)
        on_base, on_reference = (effect_of(each["nll"], each["nll_base"]) for each in (own, reference))
        kept.append((
            effect_correlation(on_base, on_reference).value,
            -float(own["kld_effect"].astype(np.float64).mean()),
            -float(own["kld_reference"].astype(np.float64).mean()),
        ))  # fmt: skip
        assert own["kld_effect"].min() > -1e-5
        assert 0.8 < effect_slope(on_base, on_reference).value < 1.2
    print(kept)
    assert all(more > less for more, less in zip(*kept, strict=True))


def test_a_base_beside_itself_keeps_everything(
    core: Core, bases: Bases, adapter_of_tiny: Subject, text: Corpus, tmp_path: Path
) -> None:
    """The same content under another name: what is left is the 16 bits of the stored distributions."""
    lora = LoraEffects(core, text, bases[0], compared=True)
    reference = lora.on_reference(adapter_of_tiny, text)
    twin = replace(bases[0], model=replace(bases[0].model, name="twin"))
    own = lora.effect(with_adapters(twin, adapter_of_tiny.adapters), twin, text)
    assert (own["nll"] == reference["nll"]).all()
    for name in ("kld_effect", "kld_reference"):
        assert np.abs(own[name].astype(np.float64)).max() < 1e-4
    print("codes:", own["kld_effect"].astype(np.float64).mean(), own["kld_reference"].astype(np.float64).mean())


def test_merged_before_it_is_quantized(core: Core, bases: Bases, adapter_of_tiny: Subject, text: Corpus) -> None:
    lora = LoraEffects(core, text, bases[0], compared=True)
    base = bases[1]
    adapted = with_adapters(base, adapter_of_tiny.adapters)
    merged = lora.merged(adapted, base, bases[0], text)
    applied = lora.effect(adapted, base, text)
    klds = [float(each["kld_reference"].astype(np.float64).mean()) for each in (merged, applied)]
    # Q8_0 of the sum, and the sum with Q8_0: both are nearly the reference with the adapter.
    assert 0 < max(klds) < 0.02 * float(applied["kld"].astype(np.float64).mean())
    assert list(core.options.cache.glob("scratch/*")) == []
    unknown = replace(base, model=replace(base.model, info=replace(base.info, quantization=None)))
    with pytest.raises(NoData, match=r"is none that llama\.cpp quantizes to"):
        lora.merged(adapted, unknown, bases[0], text)
    print("merged, applied:", klds)


def test_matrices_and_tokens(core: Core, bases: Bases, adapter_of_tiny: Subject, text: Corpus) -> None:
    lora = LoraEffects(core, text, bases[0])
    changes = lora.changes(adapter_of_tiny)
    assert len(changes["tensor"]) == 35
    assert (changes["rank"] == 4).all()
    effective = changes["effective_rank"].astype(np.float64)
    assert 1 <= effective.min() <= effective.max() <= 4
    tokens = lora.tokens(adapter_of_tiny, bases[0], text)
    at = int(tokens["position"][0])
    own = lora.effect(adapter_of_tiny, bases[0], text)
    row = own["window"].tolist().index(int(tokens["window"][0]))
    assert tokens["kld"][0] == own["kld"].max()
    assert own["kld"][row, at - (CTX - own["kld"].shape[1])] == own["kld"].max()
    assert tokens["token"][0] == own["tokens"][row, at]
    assert tokens["before"][0].decode() in text.text.decode()


def test_an_adapter_that_does_not_fit_is_never_loaded(core: Core, llama_file: Path, tmp_path: Path) -> None:
    adapter = load_adapter(write_random_lora(tmp_path / "other.gguf", llama_file), tmp_path)
    planned = plan_ladder(core.options).reference
    assert planned is not None
    with pytest.raises(ModelError, match="The adapter other changes a matrix"):
        core.subject(replace(planned, adapters=(adapter,)))
