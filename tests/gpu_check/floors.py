"""What a device may change of a file's predictions, in nats where it is a KL.

For logits that differ by at most e, up to a constant, KL(p || q) = ln E_p[exp(d - E_p d)] with d within [-e, e] is at
most e^2 / 2 (Hoeffding 1963, Probability inequalities for sums of bounded random variables, Lemma 1). On an H200 the
largest difference of logits that any of our tests met was 0.066 (random weights in F32, whose products cuBLAS rounds to
TF32: 11 bits, 4.9e-4), that of half products 0.039: for a single token e^2 / 2 is 2.2e-3. A mean over tokens is far
below that. Rounding all weights of tiny to 8 bits of mantissa (BF16) costs 1.1e-4 on the CPU; TF32 and half precision
keep 11. The floor is ten times that much, and less than what Q8_0 costs (1.3e-3), the least that anybody looks for.

Products with quantized matrices round activations to 8 bits, the CPU in blocks of 256 for K-quants, CUDA in blocks of
32. What that costs was measured on the CPU, against the same weights in F32: tiny 5.9e-4 (Q8_0), 1.4e-3 (Q4_K_M),
2.0e-3 (Q2_K); SmolLM2 3.1e-3 (Q4_1), where 3.5 % of the likeliest tokens change and ln PPL by 0.0032. Two roundings
that know nothing of each other add up, to 6.2e-3 and 7 % at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FLOORS", "Floors"]


@dataclass(frozen=True, slots=True)
class Floors:
    """Limits of one kind of file.

    Attributes:
        kld_mean: mean KL(CPU || GPU) over tokens, in nats.
        ln_ppl: absolute change of the logarithm of the perplexity; an H200 changed that of tiny by 2e-5 in F16, by
            4.9e-4 in Q8_0 and by 2.6e-3 in Q4_K_M (504 tokens).
        same_top: least share of tokens whose likeliest next token is the same.
    """

    kld_mean: float
    ln_ppl: float
    same_top: float


FLOORS: Final = {"float": Floors(1e-3, 5e-3, 0.97), "quantized": Floors(1e-2, 1.5e-2, 0.92)}
"""For files in F32, F16 or BF16, and for quantized ones."""
