"""Adapters at run time, merged by us and merged by llama.cpp's llama-export-lora: they must be one model.

    python -m tests.bench.compare_with_export_lora [--cache .cache/bench]

llama-export-lora is built from the sdist of the installed llama-cpp-python. Compared are the merged weights
and the logits of a text: of a random model in F32 with a random adapter of every matrix, and of tiny with its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import Adapter, SessionSettings
from gguf_harness.gguf.lora_files import read_lora
from gguf_harness.gguf.merged import write_merged
from gguf_harness.inputs.adapters import VOYAGE_FILE, load_adapter
from gguf_harness.inputs.sources import TINY_FILE
from tests.bench.tools import build_tools
from tests.random_llama import write_random_llama
from tests.random_lora import write_random_lora

_TOOL = "llama-export-lora"
_SCALE = 0.7
_TOKENS = np.arange(3, 67, dtype=np.int32)
_WEIGHTS = 1e-6
"""Largest difference of a merged weight in F32: the order in which a product's terms are added."""
_LOGITS = {"random": 1e-3, "tiny": 0.05}
"""Largest difference of a logit: merged weights of tiny are rounded to F16, at run time activations are."""


@dataclass(frozen=True)
class _Case:
    name: str
    model: Path
    lora: Path


def main() -> None:
    """Compare, print, and exit with 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    known = parser.parse_args()
    tool = build_tools(known.cache.absolute(), (_TOOL,)) / _TOOL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = write_random_llama(folder / "random-F32.gguf")
        cases = [
            _Case("random", random, write_random_lora(folder / "random-lora.gguf", random)),
            _Case("tiny", TINY_FILE, VOYAGE_FILE),
        ]
        sound = [_compare(case, tool, folder) for case in cases]
    sys.exit(0 if all(sound) else 1)


def _compare(case: _Case, tool: Path, folder: Path) -> bool:
    theirs = folder / f"{case.name}-exported.gguf"
    command = [tool, "-m", case.model, "--lora-scaled", f"{case.lora}:{_SCALE}", "-o", theirs]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{_TOOL} failed with {done.returncode}: {done.stderr[-2000:]}")
    ours = folder / f"{case.name}-ours"
    ours.mkdir()
    (merged,) = write_merged([case.model], [(read_lora(case.lora), _SCALE)], ours)
    weights, kinds = _differences(merged, theirs)
    adapter = load_adapter(case.lora, folder, scale=_SCALE)
    applied, own, exported = _logits(case.model, adapter), _logits(merged), _logits(theirs)
    far = {"run time - exported": applied - exported, "merged - exported": own - exported}
    worst = {what: float(np.abs(values).max()) for what, values in far.items()}
    effect = float(np.abs(applied - _logits(case.model)).max())
    sound = max(worst.values()) < _LOGITS[case.name] and (case.name != "random" or weights < _WEIGHTS) and kinds
    print(f"{case.name}: merged weights differ by {weights:.3g} at most, types {'the same' if kinds else 'DIFFER'};"
          f" logits: {', '.join(f'{what} {value:.3g}' for what, value in worst.items())};"
          f" the adapter itself changes them by {effect:.3g}: {'sound' if sound else 'NOT THE SAME'}")  # fmt: skip
    return sound


def _differences(one: Path, other: Path) -> tuple[float, bool]:
    """(largest difference of a weight, whether all tensors have the same types)."""
    ours, theirs = ({tensor.name: tensor for tensor in GGUFReader(file).tensors} for file in (one, other))
    same = ours.keys() == theirs.keys() and all(ours[n].tensor_type == theirs[n].tensor_type for n in ours)
    apart = (np.abs(ours[n].data.astype(np.float64) - theirs[n].data.astype(np.float64)).max() for n in ours)
    return float(max(apart)), same


def _logits(file: Path, *adapters: Adapter) -> NDArray[np.float32]:
    settings = SessionSettings(
        n_ctx=64,
        n_batch=64,
        n_ubatch=64,
        flash_attention="off",
        cache_type_k="f32",
        cache_type_v="f32",
        adapters=adapters,
    )
    with Model([file]) as model, Context(model, settings) as context:
        return context.logits(_TOKENS).copy()


if __name__ == "__main__":
    main()
