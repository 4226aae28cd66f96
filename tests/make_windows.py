"""Writes `windows-tiny.npz` and `windows-smollm2.npz`: per-token values of real passes, for the tests of coverage.

`python -m tests.make_windows tiny smollm2`, from the project's root; some minutes for tiny, half an hour for
SmolLM2 on one core. A killed run goes on where it was.

The text is all of `pydoc`, for tiny also what it was trained on: what the tests need is a text and windows that are
drawn from it. Arrays are [windows, scored tokens], windows in the order of the text:

    nll                 of the reference
    nll_QUANT, kld_QUANT, same_QUANT    of a candidate, beside the reference's

Eleven bits of each number are kept, 0.05 % of its value: errors of estimates are some hundred times as large.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line

__all__ = ["LADDERS", "measure"]

LADDERS: Final[dict[str, tuple[str, ...]]] = {
    "tiny": ("--models=tiny", "--gguf-quants=Q8_0,Q4_K_M,Q2_K", "--gguf-chunks=all", "--gguf-windows=first"),
    "smollm2": ("--models=smollm2-135m", "--gguf-quants=Q4_K_M", "--gguf-chunks=120", "--gguf-windows=first"),
}
_FOLDER: Final = Path(__file__).parent / "data"
_DROPPED_BITS: Final = 13


def measure(arguments: tuple[str, ...], cache: Path) -> dict[str, NDArray[Any]]:
    """Per-token values of a reference and its candidates on the whole text, by name."""
    given = ["-p", "no:cacheprovider", f"--gguf-cache={cache}", "--gguf-threads=1", *arguments]
    options = read_options(parse_command_line(*given))
    core, plan, corpus = Core(options, SilentProgress()), plan_ladder(options), load_corpus("pydoc")
    assert plan.reference is not None
    try:
        reference = core.subject(plan.reference)
        base = CorpusPass(core, corpus).reference(reference, logprobs=True)
        arrays: dict[str, NDArray[Any]] = {"nll": _rounded(base["nll"])}
        for planned in plan.candidates:
            values = CorpusPass(core, corpus).candidate(core.subject(planned), reference)
            arrays[f"nll_{planned.model.quant}"] = _rounded(values["nll"])
            arrays[f"kld_{planned.model.quant}"] = _rounded(values["kld"])
            arrays[f"same_{planned.model.quant}"] = np.equal(values["top"], base["top"])
            print(planned.name, values["kld"].shape, float(values["kld"].astype(np.float64).mean()), flush=True)
    finally:
        core.close()
    return arrays


def _rounded(values: NDArray[Any]) -> NDArray[np.float32]:
    """As float32 whose last bits are zero: they compress well."""
    half = np.uint32(1 << (_DROPPED_BITS - 1))
    bits = (values.astype(np.float32).view(np.uint32) + half) >> _DROPPED_BITS << _DROPPED_BITS
    rounded: NDArray[np.float32] = bits.astype(np.uint32).view(np.float32)
    return rounded


if __name__ == "__main__":
    for name in sys.argv[1:] or LADDERS:
        arrays = measure(LADDERS[name], Path("results") / "cache")
        np.savez_compressed(_FOLDER / f"windows-{name}.npz", allow_pickle=False, **arrays)
