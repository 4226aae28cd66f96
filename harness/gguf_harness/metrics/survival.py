"""How long do two greedy texts stay the same? The share that still does after k tokens, as a survival curve.

A text's time is the number of tokens up to and with the first one that differs. Where the texts are the same to their
end, or to the limit of what was written, nobody knows for how long they would have been: they are censored there, and
count as long as they were seen.

S(k) = product over t <= k of (1 - d(t) / n(t)), with d(t) texts that part at token t of n(t) that were the same until
then and have such a token. Kaplan and Meier (1958), Nonparametric Estimation from Incomplete Observations, JASA
53(282). Var S(k) = S(k)^2 sum d / (n (n - d)): Greenwood (1926), The natural duration of cancer. Intervals are those of
ln(-ln S), which stay within 0 and 1: Kalbfleisch and Prentice (1980), The Statistical Analysis of Failure Time Data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.stats import INTERVAL

__all__ = ["Survival", "part_time", "summarize_survival"]

_NORMAL: Final = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for `INTERVAL`."""


@dataclass(frozen=True, slots=True)
class Survival:
    """A survival curve over tokens.

    Attributes:
        texts: how many there are.
        at_risk: [tokens] n(t) of each token t = 1, 2, ...: texts that were the same before it and have it.
        parted: [tokens] d(t), those that part there.
    """

    texts: int
    at_risk: NDArray[np.int64]
    parted: NDArray[np.int64]

    @classmethod
    def of(cls, times: ArrayLike, parted: ArrayLike) -> Survival:
        """A curve of texts.

        Args:
            times: [texts] tokens up to and with the first that differs, or of the whole text, at least 1.
            parted: [texts] whether they differ there; false where they are the same as far as they were seen.

        Raises:
            NoData: no texts, or one without tokens.
        """
        at, ends = np.asarray(times, dtype=np.int64), np.asarray(parted, dtype=np.bool_)
        if at.size == 0 or at.shape != ends.shape or at.min() < 1:
            raise NoData(f"Survival of {at.size} texts: expected some, each of a token or more.")
        tokens = np.arange(1, at.max() + 1)
        return cls(len(at), (at[:, None] >= tokens).sum(axis=0), ((at[:, None] == tokens) & ends[:, None]).sum(axis=0))

    @property
    def share(self) -> NDArray[np.float64]:
        """[tokens] S(k): share of texts that are the same after k = 1, 2, ... tokens."""
        return np.asarray(np.cumprod(1 - self.parted / self.at_risk), dtype=np.float64)

    def at(self, tokens: int) -> Estimate:
        """The share after so many tokens, at most those of the longest text, with Greenwood's error.

        Where no text, or every one, has parted, there is no spread to tell an error from. The interval then reaches to
        the share with which as many texts would be all alike once in forty times.
        """
        seen = slice(0, tokens)
        share = float(self.share[tokens - 1])
        n, place = int(self.at_risk[tokens - 1]), Place(part=f"{tokens} tokens")
        unseen = ((1 - INTERVAL) / 2) ** (1 / n)
        if share in {0.0, 1.0}:
            low, high = (unseen, 1.0) if share else (0.0, 1 - unseen)
            return Estimate("text_survival", share, self.texts, 0.0, None, self.texts, low, high, place=place)
        total = self._greenwood(seen)
        reach = _NORMAL * math.sqrt(total) / abs(math.log(share))
        low, high = (share ** math.exp(side * reach) for side in (1, -1))
        se = share * math.sqrt(total)
        return Estimate("text_survival", share, self.texts, se, None, self.texts, low, high, place=place)

    def mean(self, tokens: int) -> Estimate:
        """The mean number of tokens that are the same, of the first so many: the area under the curve, sum of S(k).

        Its variance is the sum over tokens of area(t)^2 d / (n (n - d)), where area(t) is that from t on. Klein and
        Moeschberger (2003), Survival Analysis, section 4.5.
        """
        # A curve that ends is taken to stay as it is.
        share = self.share
        curve = np.concatenate([share, np.full(max(0, tokens - len(share)), share[-1])])[:tokens]
        later = np.cumsum(curve[::-1])[::-1]
        counted = min(tokens, len(share))
        area, parted, at_risk = later[:counted], self.parted[:counted], self.at_risk[:counted]
        some = (parted > 0) & (parted < at_risk)  # where all part, no area is left
        variance = (area[some] ** 2 * parted[some] / (at_risk[some] * (at_risk[some] - parted[some]))).sum()
        n = self.texts
        # By the bootstrap's measure: of n texts, n / (n - 1) of the variance.
        se = math.sqrt(float(variance) * n / (n - 1)) if n > 1 else None
        return Estimate("tokens_until_different", float(curve.sum()), n, se, clusters=n if se is not None else None)

    def _greenwood(self, seen: slice) -> float:
        parted, at_risk = self.parted[seen], self.at_risk[seen]
        return float((parted / (at_risk * (at_risk - parted))).sum())


def summarize_survival(times: ArrayLike, parted: ArrayLike, limit: int) -> list[Estimate]:
    """Mean tokens until texts part, and the share that is still the same after 1, 2, 4, ... tokens and at the limit.

    Args:
        times: as for `Survival.of`.
        parted: the same.
        limit: most tokens that were written.
    """
    curve = Survival.of(times, parted)
    longest = min(limit, len(curve.at_risk))
    doubled: Sequence[int] = [1 << power for power in range(longest.bit_length())]
    return [curve.mean(limit), *(curve.at(tokens) for tokens in dict.fromkeys([*doubled, longest]))]


def part_time(first: Sequence[int], second: Sequence[int]) -> tuple[int, bool]:
    """(time, whether they part there) of two texts of tokens, ends included, as `Survival.of` takes them.

    A text that goes on where the other has ended without choosing to, at the limit of what was written, is the same as
    far as it was seen.
    """
    shorter = min(len(first), len(second))
    at = next((place for place in range(shorter) if first[place] != second[place]), None)
    return (shorter, False) if at is None else (at + 1, True)
