"""What kinds of measurements, and the tests of suites, take beyond what their counts cost.

That is what taps, files and NumPy add at the costs of `calibration.py`. Fitted to processor times of one thread, of
tiny with all and SmolLM2-135M with few prompts and windows; `tests/bench/forecast.py --fit` prints what is left of it
on other machines, and each machine learns that by itself. What suites/kv and suites/lora need was fitted beside other
processes, so that no wall times are behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FITTED", "SLOWER", "TESTS_S", "Fit"]


@dataclass(frozen=True, slots=True)
class Fit:
    """Seconds of a kind: `times` those of its counts, and `start_s`, such as a process and a file that is loaded."""

    times: float = 1.0
    start_s: float = 0.0


FITTED: Final[Mapping[str, Fit]] = {
    "models/quantized": Fit(8.4, 0.3),
    "passes/reference": Fit(1.05, 0.5),
    "passes/candidate": Fit(1.0, 0.1),
    "passes/mixture": Fit(0.95),
    "texts/generations": Fit(1.3, 0.4),
    "texts/scores": Fit(1.0, 0.45),
    "texts/compared": Fit(1.0, 0.1),
    "speed/served": Fit(1.5, 3.0),
    "attention/observed": Fit(1.4, 0.7),
    "attention/compared": Fit(1.4, 1.1),
    "heads/sweep": Fit(0.95),
    "heads/screen": Fit(0.95),
    "heads/interchange": Fit(0.95),
    "heads/removal": Fit(0.95),
    "heads/path": Fit(0.95),
    "layers/alone": Fit(1.25, 0.6),
    "layers/compared": Fit(1.25, 1.2),
    "layers/importance": Fit(1.1, 0.2),
    "layers/interchange": Fit(1.1, 0.2),
    "weights/errors": Fit(4.5, 0.2),
    "embeddings/space": Fit(18.0, 0.2),
    "embeddings/contexts": Fit(1.0, 0.3),
    "embeddings/aligned": Fit(0.18, 0.15),
    "attention/observed-few": Fit(1.5, 0.15),
    "attention/compared-few": Fit(1.5, 0.15),
    "passes/reference-depth": Fit(1.05, 0.1),
    "passes/candidate-depth": Fit(1.05),
    "kv/needles": Fit(1.08),
    "lora/effect-own": Fit(1.15),
    "lora/effect-corpus": Fit(1.15),
    "lora/changes": Fit(2.2),
}
"""Of kinds that take other than what their counts cost."""

SLOWER: Final[Mapping[str, float]] = {
    "f16": 0.45,
    "bf16": 0.35,
    "f32": 0.45,
    "q8_0": 0.13,
    "q4_0": 0.29,
    "q4_1": 0.3,
    "q5_0": 0.35,
    "q5_1": 0.35,
    "iq4_nl": 0.55,
}
"""What each number of a key, and of a value, that a token reads costs beyond one of a cache in f16, by the type, in
weights that are converted; with one thread. Only f16 for both, and f32 for both, have llama.cpp's fast path on CPUs."""

TESTS_S: Final[Mapping[str, float]] = {
    "quant": 0.5,
    "attention": 0.4,
    "heads": 2.9,
    "layers": 0.5,
    "embeddings": 0.6,
    "kv": 0.2,
    "lora": 0.3,
}
"""Of a subject, what the tests of a suite take besides measurements."""
