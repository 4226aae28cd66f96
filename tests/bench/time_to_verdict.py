"""Time to a verdict with --gguf-until-decided, over llama-perplexity's whole ladder on the same windows.

    python -m tests.bench.time_to_verdict [--chunks 64] [--rounds 1] [--quick]

Theirs is a process for the base (--kl-divergence-base) and one for each candidate (--kl-divergence), all windows; ours
the candidates' passes until their built-in gates are decided, the reference decoded as far as they need it, from empty
caches. As many windows are planned as llama-perplexity decodes: it takes the first of the text, and ours are drawn from
all of it, as early decisions need. Then all windows are decoded: the verdicts must be the same. Quantized files are
made before.

`--quick` is a smoke run on tiny, whose times say nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gguf_harness.inputs.corpora import Corpus, load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import Options, read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.judge.gates import early_limits, load_gates
from gguf_harness.judge.verdicts import decide, stopped_by
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.divergence import summarize_delta_p, summarize_divergence, summarize_same_top
from gguf_harness.metrics.perplexity import compare_perplexity
from gguf_harness.metrics.windows import decided_so_far
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from tests.bench.compare_with_llama_cpp import _fresh, _timed_tool
from tests.bench.tools import build_tools
from tests.command_line import parse_command_line


@dataclass(frozen=True)
class _Aim:
    """Candidates, and the largest ratio of the times that is aimed at."""

    quants: str
    ratio: float


AIMS = (_Aim("Q8_0,Q5_K_M,Q4_K_M,Q3_K_M,IQ3_XS", 0.45), _Aim("Q8_0,Q6_K,IQ3_XS,Q2_K", 0.25))
QUICK = (_Aim("Q8_0,Q2_K", 0.0),)


def main() -> None:
    """Measure and print; ends with 1 where an aim is missed or a verdict differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    known = parser.parse_args()
    tools = build_tools(known.cache.absolute())
    results = []
    for aim in QUICK if known.quick else AIMS:
        model = "tiny" if known.quick else "smollm2-135m"
        config = parse_command_line(
            f"--models={model}", f"--gguf-quants={aim.quants}", f"--gguf-chunks={known.chunks}",
            f"--gguf-cache={known.cache.absolute() / 'harness'}", "--gguf-until-decided",
            *(["--gguf-ctx=256"] if known.quick else []),
        )  # fmt: skip
        results.append(_compare(tools, read_options(config), known.rounds, aim, judged=not known.quick))
    sys.exit(0 if all(results) else 1)


def _compare(tools: Path, options: Options, rounds: int, aim: _Aim, *, judged: bool) -> bool:
    core = Core(options, SilentProgress())
    ladder = plan_ladder(options)
    reference, *candidates = (core.subject(planned) for planned in ladder.models)
    text = load_corpus(options.corpus, held_out_topics=reference.info.held_out_topics)
    core.close()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache.parent) as folder:
        theirs = min(_theirs(tools, options, text, [reference, *candidates], Path(folder)) for _ in range(rounds))
        ours, same = min(_ours(options, text, reference, candidates, Path(folder)) for _ in range(rounds))
    ratio = ours / theirs
    met = ratio <= aim.ratio or not judged
    said = f"aim <= {aim.ratio}: {'met' if met else 'MISSED'}" if judged else "a smoke run: nothing is aimed at"
    print(f"{aim.quants}: ours {ours:.1f} s, theirs {theirs:.1f} s, ratio {ratio:.3f}; {said}", flush=True)
    print(
        f"  verdicts {'are those of the full passes' if same else 'DIFFER from those of the full passes'}", flush=True
    )
    return met and same


def _theirs(tools: Path, options: Options, text: Corpus, models: list[Subject], folder: Path) -> float:
    corpus, base = folder / "corpus.txt", folder / "base.kld"
    corpus.write_bytes(text.text)
    common = ["-c", options.ctx, "-t", options.threads, "--chunks", options.chunks, "--kl-divergence-base", base]
    reference, *candidates = models
    seconds, _ = _timed_tool(tools / "llama-perplexity", "-m", reference.files[0], "-f", corpus, *common)
    for model in candidates:
        more, _ = _timed_tool(tools / "llama-perplexity", "-m", model.files[0], *common, "--kl-divergence")
        seconds += more
    return seconds


def _ours(
    options: Options, text: Corpus, reference: Subject, candidates: list[Subject], folder: Path
) -> tuple[float, bool]:
    """(seconds until all gates of all candidates are decided, whether full passes decide the same)."""
    gates = load_gates(None)
    limits = early_limits(gates.values())
    with _fresh(options, folder) as core:
        passes = CorpusPass(core, text, reference, divergence=True, limits=limits)
        start = time.perf_counter()
        found = {model.name: passes(model, against=reference) for model in candidates}
        seconds = time.perf_counter() - start
        decoded = len(passes(reference)["nll"])
        early = {
            model: _verdicts(arrays, passes(reference, windows_of=arrays), watched=True)
            for model, arrays in found.items()
        }
        whole_passes = CorpusPass(core, text, reference, divergence=True)
        whole = {
            model.name: _verdicts(whole_passes(model, against=reference), whole_passes(reference), watched=False)
            for model in candidates
        }
    windows = ", ".join(f"{model} {len(arrays['nll'])}" for model, arrays in found.items())
    needed = decoded + sum(len(arrays["nll"]) for arrays in found.values())
    total = (options.chunks or 0) * (1 + len(candidates))
    print(f"  windows: {reference.name} {decoded}, {windows}; {needed} of {total}, {needed / total:.3f}", flush=True)
    # What is inconclusive decides nothing: then the other may be either.
    differ = [
        f"{model}, {metric}: {early[model][metric]} early, {verdict} of all windows"
        for model, verdicts in whole.items()
        for metric, verdict in verdicts.items()
        if {verdict, early[model][metric]} == {"pass", "fail"}
    ]
    open_ = sum(verdict == "inconclusive" for verdicts in early.values() for verdict in verdicts.values())
    print(f"  {open_} gates stay inconclusive; differing: {'; '.join(differ) or 'none'}", flush=True)
    return seconds, not differ


def _verdicts(arrays: Arrays, base: Arrays, *, watched: bool) -> dict[str, str]:
    gates = load_gates(None)
    limits = early_limits(gates.values())
    estimates = [
        *summarize_divergence(arrays["kld"], arrays["kld_reverse"]),
        *summarize_delta_p(arrays["nll"], base["nll"]),
        *compare_perplexity(arrays["nll"], base["nll"]),
        summarize_same_top(arrays["top"], base["top"]),
    ]
    by_metric = {estimate.metric: estimate for estimate in estimates}
    early = decided_so_far(limits, arrays, base) if watched else {}
    return {
        limit.gate: decide(
            gates[limit.gate],
            by_metric[limit.gate],
            "candidate",
            watched=watched,
            early=early.get(limit.gate),
            stopped=stopped_by(early, limit.gate),
        ).verdict
        for limit in limits
    }


if __name__ == "__main__":
    main()
