"""Our numbers against what llama.cpp's own llama-perplexity printed, on the same model and text.

The stored values were printed by llama-perplexity of llama.cpp 0c1e570 (4 windows of 512 tokens, 2 threads, AVX-512)
for a ladder of SmolLM2-135M-Instruct made with llama-quantize.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import Ladder, plan_ladder
from gguf_harness.inputs.options import Options, read_options
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.divergence import summarize_delta_p, summarize_divergence, summarize_same_top
from gguf_harness.metrics.perplexity import compare_perplexity, perplexity
from gguf_harness.metrics.records import Estimate
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from tests.command_line import parse_command_line

pytestmark = pytest.mark.model

ORACLE = json.loads((Path(__file__).parent.parent / "data" / "llama_perplexity_smollm2.json").read_text())


@dataclass
class Measured:
    """A ladder, measured once for all tests here."""

    options: Options
    ladder: Ladder
    core: Core
    reference: Arrays
    candidates: dict[str, Arrays]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, smollm2_file: Path) -> Iterator[Measured]:
    corpus = load_corpus("pydoc")
    if corpus.sha256 != ORACLE["corpus"]["sha256"]:
        pytest.skip("this Python's help topics are not those that llama-perplexity was run on")
    cache = tmp_path_factory.mktemp("cache")
    quants = ",".join(ORACLE["candidates"])
    arguments = ["--models=smollm2-135m", f"--gguf-quants={quants}", "--gguf-chunks=4", f"--gguf-cache={cache}"]
    arguments.append("--gguf-windows=first")
    options = read_options(parse_command_line(*arguments))
    core, ladder = Core(options, SilentProgress()), plan_ladder(options)
    assert ladder.reference is not None
    reference = core.subject(ladder.reference)
    base = CorpusPass(core, corpus).reference(reference, logprobs=True)
    passes = CorpusPass(core, corpus)
    candidates = {str(m.model.quant): passes.candidate(core.subject(m), reference) for m in ladder.candidates}
    yield Measured(options, ladder, core, base, candidates)
    core.close()


def _estimates(arrays: Arrays, base: Arrays) -> dict[str, Estimate]:
    found = [perplexity(arrays["nll"]), *compare_perplexity(arrays["nll"], base["nll"])]
    found += summarize_divergence(arrays["kld"], arrays["kld_reverse"])
    found += summarize_delta_p(arrays["nll"], base["nll"])
    found.append(summarize_same_top(arrays["top"], base["top"]))
    return {estimate.metric: estimate for estimate in found}


def test_reference_perplexity(measured: Measured) -> None:
    estimate = perplexity(measured.reference["nll"])
    assert estimate.value == pytest.approx(ORACLE["reference"]["ppl"], rel=1e-3)
    assert estimate.se_iid == pytest.approx(ORACLE["reference"]["ppl_se"], rel=0.02)
    assert estimate.n == 4 * 255


@pytest.mark.parametrize("quant", ORACLE["candidates"])
def test_candidate(measured: Measured, quant: str) -> None:
    _require_its_kernels(measured)
    ours, theirs = _estimates(measured.candidates[quant], measured.reference), ORACLE["candidates"][quant]
    for metric, printed in theirs.items():
        if metric.endswith("_se"):
            error = ours[metric.removesuffix("_se")].se_iid
            # Printed with few digits: half a unit of the last one is no disagreement.
            assert error == pytest.approx(printed["value"], rel=0.02, abs=printed["half_digit"]), metric
        else:
            tolerance = _tolerance(metric)
            assert ours[metric].value == pytest.approx(printed["value"], abs=printed["half_digit"], **tolerance), metric


def _require_its_kernels(measured: Measured) -> None:
    """Kernels of quantized types differ by instruction set, and so do logits: without AVX-512, PPL of Q8_0 by 0.3 %."""
    ours = measured.core.llama_cpp.description["system_info"]
    if ORACLE["instructions"] not in ours:
        pytest.skip(f"llama-perplexity was run with {ORACLE['instructions']}, this processor has {ours.strip()}")


def _tolerance(metric: str) -> dict[str, Any]:
    if metric == "same_top":
        return {"rel": 0.003}
    if metric == "kld_mean":
        return {"rel": 0.01}
    if metric.startswith(("kld_p", "kld_median")):
        return {"rel": 0.03}
    return {"rel": 1e-3 if metric == "ppl" else 0.02}


def test_where_the_tool_is_off_float64_is_on_our_side(measured: Measured) -> None:
    """KL of a few windows in float64 from both models' logits: no codes, no single precision."""
    from tests.loaded import open_context

    settings = measured.options.session_settings
    windows = measured.reference["tokens"][:2].astype(np.int32)
    planned = {str(model.model.quant): model for model in measured.ladder.candidates}
    assert measured.ladder.reference is not None
    logits = []
    for model in (measured.ladder.reference, planned["Q8_0"]):
        with open_context(measured.core.subject(model).files, settings) as context:
            logits.append(np.concatenate([block.logits.astype(np.float64) for block in context.score(windows)]))
    log_p, log_q = (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True) for rows in logits)
    exact = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    ours = measured.candidates["Q8_0"]["kld"][:2].astype(np.float64).ravel()
    # A code is off by up to 2e-4 nats where probability is small: times p and ln(p/q), summed, that leaves some 1e-6.
    assert np.abs(ours - exact).max() < 1e-5
    assert ours.mean() == pytest.approx(exact.mean(), rel=1e-4)
