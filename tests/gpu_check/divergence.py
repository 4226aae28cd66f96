"""Step: the same file on the CPU and on the GPU, token by token."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.side_by_side import compare_side_by_side
from gguf_harness.measure.passes.tasks import CorpusText, PassRequest
from gguf_harness.metrics.divergence import summarize_divergence, summarize_same_top
from gguf_harness.metrics.perplexity import compare_perplexity, perplexity
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.gpu_check.environment import Setup
from tests.gpu_check.floors import FLOORS
from tests.gpu_check.verdicts import Outcome

__all__ = ["Compared", "judge", "smollm2", "summarize", "tiny"]


@dataclass(frozen=True, slots=True)
class Compared:
    """A file on two devices.

    Attributes:
        name: of the file.
        quantized: whether its matrices are, so that activations are rounded to 8 bits, in another way on each device.
        values: nll, nll_reference, kld, kld_reverse, top, top_reference, each [windows, scored tokens]; the reference
            is the CPU.
    """

    name: str
    quantized: bool
    values: dict[str, NDArray[Any]]


def tiny(setup: Setup) -> Outcome:
    """F32, F16, and two quantizations of the model that comes along."""
    quants = "Q8_0" if setup.quick else "F32,Q8_0,Q4_K_M"
    return _compare(setup, "tiny", quants, 2 if setup.quick else 8)


def smollm2(setup: Setup) -> Outcome:
    """SmolLM2-135M in F16 and a quantization, where its package is installed: heads of 64, with flash attention."""
    if setup.quick:
        return Outcome("not run", "--quick leaves SmolLM2 out", absent=True)
    return _compare(setup, "smollm2-135m", "Q4_K_M", 4)


def _compare(setup: Setup, model: str, quants: str, windows: int) -> Outcome:
    from gguf_harness.errors import MissingExtra

    arguments = [f"--models={model}", f"--gguf-cache={setup.path / 'numbers-cache'}", f"--gguf-chunks={windows}"]
    arguments += [f"--gguf-quants={quants}"]
    arguments += ["--gguf-ctx=64", "--gguf-threads=1"] if setup.quick else []
    options = read_options(parse_command_line(*arguments))
    core = Core(options, SilentProgress())
    try:
        try:
            planned = plan_ladder(options).models
        except MissingExtra as error:
            return Outcome("not run", str(error), absent=True)
        subjects = [core.subject(each) for each in planned]
        text = load_corpus(options.corpus)
        compared = [_decode(setup, each, CorpusText(text.name, text.text), windows) for each in subjects]
    finally:
        core.close()
    return judge(compared, "GPU" if setup.gpu else "CPU in smaller batches")


def _decode(setup: Setup, subject: Subject, text: CorpusText, windows: int) -> Compared:
    """The same windows on the CPU, and on the GPU or what stands in for it, decoded in step."""
    print(f"decoding {subject.name} on both", flush=True)
    if not setup.gpu:
        # Two processes on one CPU: threads that spin while they wait would take it from each other.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder = setup.path / "numbers"
    on_cpu = replace(subject.settings, n_gpu_layers=0)
    # On the CPU nothing but the order of sums may change: smaller physical batches, and no flash attention.
    other = replace(subject.settings, n_gpu_layers=-1) if setup.gpu else _stand_in(on_cpu)
    reference, candidate = (
        PassRequest(subject.name, subject.files, settings, text, windows, folder / f"{subject.name}-{device}")
        for device, settings in (("cpu", on_cpu), ("other", other))
    )
    for request in (reference, candidate):
        Path(request.folder).mkdir(parents=True, exist_ok=True)
    with Worker("gpu", folder / "gpu.log", gpu=0 if setup.gpu else -1, timeout_s=60) as worker:
        values = compare_side_by_side(
            lambda *_: None,
            candidate,
            reference,
            # Hidden GPUs, not only no layers on them: llama.cpp would copy large products to a GPU that it sees.
            lambda: Worker("cpu", folder / "cpu.log", gpu=-1, timeout_s=60),
            lambda: worker,
            (),
            60.0,
        )
    return Compared(subject.name, _is_quantized(subject), dict(values))


def _stand_in(settings: SessionSettings) -> SessionSettings:
    return replace(settings, n_ubatch=min(32, settings.n_ubatch), flash_attention="off")


def _is_quantized(subject: Subject) -> bool:
    return not any(subject.name.endswith(kind) for kind in ("F32", "F16", "BF16"))


def summarize(compared: Compared) -> dict[str, float]:
    """Numbers of a file, with the standard error of the mean KL, clustered by window."""
    values = compared.values
    divergence = {each.metric: each for each in summarize_divergence(values["kld"], values["kld_reverse"])}
    cpu, gpu = perplexity(values["nll_reference"]), perplexity(values["nll"])
    ratio = next(
        each for each in compare_perplexity(values["nll"], values["nll_reference"]) if each.metric == "ln_ppl_ratio"
    )
    mean = divergence["kld_mean"]
    return {
        "kld_mean": mean.value,
        "kld_mean_se": math.nan if mean.se is None else mean.se,
        "kld_max": divergence["kld_max"].value,
        "ppl_cpu": cpu.value,
        "ppl_gpu": gpu.value,
        "ln_ppl_ratio": ratio.value,
        "same_top": summarize_same_top(values["top"], values["top_reference"]).value,
        "tokens": float(values["kld"].size),
        "largest_nll_change": float(np.abs(values["nll"] - values["nll_reference"]).max()),
    }


def judge(compared: list[Compared], device: str) -> Outcome:
    """Whether every file stays within its floors. A value that is no number is beyond them.

    Args:
        compared: the files.
        device: what the CPU was compared with, in words.
    """
    numbers: dict[str, Any] = {"floors": {kind: asdict(each) for kind, each in FLOORS.items()}, "files": {}}
    beyond = []
    for each in compared:
        found, floors = summarize(each), FLOORS["quantized" if each.quantized else "float"]
        numbers["files"][each.name] = {name: None if math.isnan(value) else value for name, value in found.items()}
        kept = {
            f"mean KL {found['kld_mean']:.2g} > {floors.kld_mean:g} nats": found["kld_mean"] <= floors.kld_mean,
            f"ln PPL changed by {found['ln_ppl_ratio']:.2g}": abs(found["ln_ppl_ratio"]) <= floors.ln_ppl,
            f"same top {found['same_top']:.1%} < {floors.same_top:.0%}": found["same_top"] >= floors.same_top,
        }
        beyond += [f"{each.name}: {what}" for what, holds in kept.items() if not holds]
    if not compared:
        return Outcome("fail", "no file was compared", numbers)
    if beyond:
        return Outcome("fail", "; ".join(beyond), numbers)
    said = ", ".join(f"{name} {found['kld_mean']:.2g}" for name, found in numbers["files"].items())
    return Outcome("pass", f"mean KL of CPU || {device}, in nats: {said}", numbers)
