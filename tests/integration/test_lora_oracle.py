"""What suites/lora reports, against matrices merged in numpy and a llama in float64: W + scale alpha / rank B A.

All statistics are written out from their definitions in the registry; errors by a jackknife over windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from scipy import stats

from gguf_harness.inputs.corpora import Corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.lora.calls import LoraEffects
from gguf_harness.metrics.adapter_effects import (
    effect_correlation,
    effect_of,
    effect_slope,
    interference,
    loss_share,
    mean_effect,
)
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from tests.command_line import parse_command_line
from tests.integration.live_oracle import Array, log_softmax
from tests.integration.pass_oracle import TINY, Expected, cut, expect, in_coarse_f32, in_f32, stored
from tests.random_lora import write_lora, write_random_lora
from tests.rewritten import rewrite_gguf

pytestmark = pytest.mark.model

CONTEXT, WINDOWS = 64, 4
VOYAGE = TINY.with_name("tiny-lora-voyage.gguf")
SCALE, ALPHA, RANK = 0.5, 8.0, 4
OTHER_ALPHA, OTHER_RANK = 3.0, 2


@dataclass(frozen=True, slots=True)
class Session:
    """Two bases whose weights are in F32, each with two adapters, alone and together."""

    core: Core
    lora: LoraEffects
    text: Corpus
    both: dict[str, Subject]
    bases: dict[str, Subject]
    expected: dict[tuple[str, str], Expected]

    def effect(self, base: str, adapters: str) -> Arrays:
        """What is measured with the voyage, another adapter, or both."""
        first, second = self.both[base].settings.adapters
        chosen = {"voyage": (first,), "other": (second,), "both": (first, second)}[adapters]
        settings = replace(self.both[base].settings, adapters=chosen)
        return self.lora.effect(replace(self.both[base], settings=settings), self.bases[base], self.text)

    def gain(self, base: str, adapters: str) -> Array:
        """[windows, tokens] ln p_adapted - ln p_base, of the tokens that are scored."""
        return _later(self.expected[base, ""].nll - self.expected[base, adapters].nll)


def _later(values: Array) -> Array:
    """Of the second half of each window: positions CONTEXT / 2 on."""
    return values[:, CONTEXT // 2 - 1 :]


def _merged(base: Path, path: Path, *adapters: tuple[Path, float]) -> Path:
    """W + factor B A of every matrix that has both."""
    changes: dict[str, Array] = {}
    for adapter, factor in adapters:
        parts = {tensor.name: tensor.data.astype(np.float64) for tensor in GGUFReader(adapter).tensors}
        for name in {each.rpartition(".")[0] for each in parts}:
            changes[name] = changes.get(name, 0) + factor * parts[f"{name}.lora_b"] @ parts[f"{name}.lora_a"]

    def change(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return (values + changes[name]).astype(np.float32) if name in changes else values

    return rewrite_gguf(base, path, change)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("oracle")
    files = {
        "plain": rewrite_gguf(TINY, folder / "plain.gguf", in_f32),
        "coarse": rewrite_gguf(TINY, folder / "coarse.gguf", in_coarse_f32),
    }
    factors = {tensor.name: tensor.data.astype(np.float32) for tensor in GGUFReader(VOYAGE).tensors}
    voyage = write_lora(folder / "voyage.gguf", factors, alpha=ALPHA)
    other = write_random_lora(folder / "other.gguf", files["plain"], rank=OTHER_RANK, alpha=OTHER_ALPHA, size=0.02)
    options = read_options(
        parse_command_line(
            f"--models={files['plain']},{files['coarse']}", f"--reference={files['plain']}",
            f"--gguf-lora={voyage}:{SCALE}+{other}", f"--gguf-cache={folder / 'cache'}", f"--gguf-ctx={CONTEXT}",
            f"--gguf-chunks={WINDOWS}",
        )
    )  # fmt: skip
    core, ladder = Core(options, SilentProgress()), plan_ladder(options)
    bases = {planned.name: core.subject(planned) for planned in ladder.models}
    both = {subject.name.split()[0]: subject for subject in map(core.subject, ladder.adapted)}
    text = Corpus("voyage", VOYAGE.with_name("voyage-held-out.txt").read_bytes())
    lora = LoraEffects(core, text, bases["plain"], compared=True)
    which = lora.effect(both["plain"], bases["plain"], text)["window"]
    windows = cut(files["plain"], text.text, which, CONTEXT)
    used: dict[str, tuple[tuple[Path, float], ...]] = {
        "": (),
        "voyage": ((voyage, SCALE * ALPHA / RANK),),
        "other": ((other, OTHER_ALPHA / OTHER_RANK),),
        "both": ((voyage, SCALE * ALPHA / RANK), (other, OTHER_ALPHA / OTHER_RANK)),
    }
    expected = {
        (base, name): expect(
            _merged(files[base], folder / f"{base}-{name}.gguf", *used[name]), windows, stored("f16/f16")
        )
        for base, name in (*(("plain", name) for name in used), ("coarse", ""), ("coarse", "voyage"))
    }
    yield Session(core, lora, text, both, bases, expected)
    core.close()


@pytest.mark.parametrize(
    ("base", "adapters"), [("plain", "voyage"), ("plain", "other"), ("plain", "both"), ("coarse", "voyage")]
)
def test_an_adapter_at_run_time_is_the_merged_matrix(session: Session, base: str, adapters: str) -> None:
    found, want, plain = session.effect(base, adapters), session.expected[base, adapters], session.expected[base, ""]
    for name, expected in (("nll", want.nll), ("nll_base", plain.nll), ("kld", want.kld(plain))):
        assert np.abs(found[name].astype(np.float64) - _later(expected)).max() < 0.02, name
    assert (found["top"] == want.top[:, CONTEXT // 2 - 1 :]).mean() > 0.99
    change = mean_effect("lora_loss_change", found["nll"], found["nll_base"])
    windows = -session.gain(base, adapters).mean(axis=1)
    assert change.value == pytest.approx(windows.mean(), abs=2e-3)
    assert change.se == pytest.approx(stats.sem(windows), rel=0.02)


def _jackknife(of: Callable[[Array, Array], float], own: Array, other: Array) -> float:
    left_out = [of(np.delete(own, at, axis=0), np.delete(other, at, axis=0)) for at in range(len(own))]
    return float(np.sqrt((len(own) - 1) * np.var(left_out)))


def test_what_a_base_keeps(session: Session) -> None:
    own, other = session.gain("coarse", "voyage"), session.gain("plain", "voyage")
    coarse, plain = session.effect("coarse", "voyage"), session.effect("plain", "voyage")
    effects = [effect_of(each["nll"], each["nll_base"]) for each in (coarse, plain)]

    def correlation(x: Array, y: Array) -> float:
        return float(stats.pearsonr(x.ravel(), y.ravel()).statistic)

    def slope(x: Array, y: Array) -> float:
        return float(np.linalg.lstsq(y.reshape(-1, 1), x.ravel(), rcond=None)[0][0])

    def share(x: Array, y: Array) -> float:
        return float(x.mean() / y.mean())

    for estimate, of in (
        (effect_correlation(*effects), correlation),
        (effect_slope(*effects), slope),
        (loss_share(*effects), share),
    ):
        assert estimate.value == pytest.approx(of(own, other), abs=2e-3), estimate.metric
        assert estimate.se == pytest.approx(_jackknife(of, own, other), rel=0.15), estimate.metric
    # The coarse base, changed exactly as the plain one is.
    base, with_it = (_later(session.expected["coarse", name].logs) for name in ("", "voyage"))
    change = _later(session.expected["plain", "voyage"].logs - session.expected["plain", ""].logs)
    target = log_softmax(base + change)
    kld = (np.exp(target) * (target - with_it)).sum(axis=2)
    assert np.abs(coarse["kld_effect"].astype(np.float64) - kld).max() < 0.01
    applied = _later(session.expected["coarse", "voyage"].kld(session.expected["plain", "voyage"]))
    assert np.abs(coarse["kld_reference"].astype(np.float64) - applied).max() < 0.02


def test_adapters_that_interfere(session: Session) -> None:
    gains = {name: session.gain("plain", name) for name in ("both", "voyage", "other")}
    windows = (gains["voyage"] + gains["other"] - gains["both"]).mean(axis=1)
    found = {name: session.effect("plain", name) for name in gains}
    alone = [found["voyage"]["nll"], found["other"]["nll"]]
    told = interference(found["both"]["nll"], alone, found["both"]["nll_base"])
    assert abs(windows.mean()) > 0.01
    assert told.value == pytest.approx(windows.mean(), abs=3e-3)
    assert told.se == pytest.approx(stats.sem(windows), rel=0.05)


def test_scales(session: Session) -> None:
    """Those of the sweep are times the adapter's own; zero is the base to the bit."""
    first, _ = session.both["plain"].settings.adapters
    voyage = replace(session.both["plain"], settings=replace(session.both["plain"].settings, adapters=(first,)))
    swept = session.lora.sweep(voyage, session.bases["plain"], session.text)
    assert (swept[0.0]["nll"] == swept[0.0]["nll_base"]).all()
    assert not swept[0.0]["kld"].any()
    assert (swept[1.0]["nll"] == session.effect("plain", "voyage")["nll"]).all()


def test_sizes_of_changes(session: Session) -> None:
    """|scale alpha / rank B A| and |W| of each matrix of each adapter, with its file's alpha and rank."""
    subject = session.both["plain"]
    weights = {tensor.name: tensor.data.astype(np.float64) for tensor in GGUFReader(subject.files[0]).tensors}
    found = session.lora.changes(subject)
    told = {(adapter, name): at for at, (adapter, name) in enumerate(zip(*_named(found), strict=True))}
    factors = SCALE * ALPHA / RANK, OTHER_ALPHA / OTHER_RANK
    for index, (adapter, factor) in enumerate(zip(subject.adapters, factors, strict=True)):
        parts = {tensor.name: tensor.data.astype(np.float64) for tensor in GGUFReader(adapter.file).tensors}
        for name in {each.rpartition(".")[0] for each in parts}:
            at = told.pop((index, name))
            change = factor * parts[f"{name}.lora_b"] @ parts[f"{name}.lora_a"]
            assert found["norm"][at] == pytest.approx(np.linalg.norm(change), rel=1e-5)
            assert found["weights"][at] == pytest.approx(np.linalg.norm(weights[name]), rel=1e-5)
            assert found["rank"][at] == (RANK, OTHER_RANK)[index]
    assert not told


def _named(found: Arrays) -> tuple[list[int], list[str]]:
    return found["adapter"].tolist(), found["tensor"].tolist()
