"""Targets of attention heads: scores of each row of a pattern, and their means per head.

Heads of decoders: a position sees itself and what comes before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import MeanEstimate, as_estimate, mean_of_clusters
from gguf_harness.metrics.token_features import TokenFeatures

__all__ = ["BEHAVIOURS", "LOCAL_TOKENS", "BehaviourKernel", "HeadProfile", "ScoreSums", "head_profiles"]

Pattern = NDArray[np.float32]
Floats = NDArray[np.float64]

LOCAL_TOKENS: Final = 8
"""How many tokens are local, the position itself included: about half a line of text."""

BEHAVIOURS: Final = (
    "previous_token",
    "current_token",
    "first_token",
    "distance",
    "distance_spread",
    "local",
    "entropy",
    "entropy_normalized",
    "punctuation",
    "delimiter",
    "same_word",
    "rare_token",
)
"""Scores of `BehaviourKernel`; with `head_` before, names of metrics."""

_TINY: Final = np.finfo(np.float32).tiny
_ROWS: Final = 32
_CELLS: Final = 2**18
"""Rows and cells of a pattern worked on at once: one MiB of scratch, which caches hold. Fewer cost more calls of numpy,
more rows also cost more masked cells."""

_ONES, _PUNCTUATION, _DELIMITER, _RARITY, _OFFSET, _OFFSET_SQUARED, _COLUMNS = range(7)


class BehaviourKernel:
    """Scores the rows of attention patterns over one prompt, in scratch memory of its own.

    Fast enough for the callback of a decode: a pattern is read once, block by block, its masked half is not, and all
    weighted sums over keys are one matrix product. numpy releases the lock of the interpreter meanwhile; give each
    thread a kernel.

    Args:
        features: of the prompt's tokens.
    """

    def __init__(self, features: TokenFeatures) -> None:
        n = len(features)
        self._size = n
        self._word = features.word
        self._position = np.arange(n, dtype=np.float32)
        self._weights = np.empty((n, _COLUMNS), dtype=np.float32)
        self._weights[:, _ONES] = 1
        self._weights[:, _PUNCTUATION] = features.punctuation
        self._weights[:, _DELIMITER] = features.delimiter
        self._weights[:, _RARITY] = features.rarity
        visible = np.arange(1, n + 1)
        self._mean_rarity = np.cumsum(self._weights[:, _RARITY], dtype=np.float64) / visible
        self._no_punctuation = np.cumsum(features.punctuation) == 0
        self._no_delimiter = np.cumsum(features.delimiter) == 0
        self._new_word = np.zeros(n, dtype=np.bool_)
        self._new_word[np.unique(features.word, return_index=True)[1]] = True
        with np.errstate(divide="ignore"):
            self._per_uniform_entropy = np.where(visible > 1, 1 / np.log(visible), np.nan)
        self._scratch = np.empty(max(_CELLS, _ROWS * n), dtype=np.float32)
        self._mask = np.empty(_ROWS * n, dtype=np.float32)
        self._ones = np.ones(n, dtype=np.float32)

    def scores(self, pattern: Pattern, start: int = 0) -> dict[str, Floats]:
        """Score what each row attends to.

        Shares are of the weight as it is in the pattern. Distance, entropy and rarity are of the row's weights
        normalized, for models whose rows leave a part to a sink outside of the context. A score that a row cannot have
        is NaN, to be left out of means: position 0 has no previous token and nothing to spread over, and there may be
        no punctuation, delimiter or occurrence of the same word before. first_token is the attention sink of Xiao et
        al. (2023), "Efficient Streaming Language Models with Attention Sinks"; attention to delimiters and to the
        previous token are behaviours of Clark et al. (2019), "What Does BERT Look At?".

        Args:
            pattern: [head, row, key] of positions start .. start + rows; at least as many keys as the last position
                sees. Keys behind a row's position are masked: they are 0, or not looked at.
            start: position of the first row.

        Returns:
            [head, row] each: previous_token, current_token, first_token, local (the last `LOCAL_TOKENS` tokens, itself
            included), punctuation, delimiter, same_word (earlier tokens of the same word): shares; distance and
            distance_spread (mean and standard deviation) in tokens; entropy in nats, entropy_normalized over ln of
            the number of visible keys; rare_token: mean surprisal of the attended tokens less that of all visible
            ones, in nats.

        Raises:
            NoData: there are no rows, or one is not finite or attends to nothing.
        """
        heads, rows, keys = pattern.shape
        end = start + rows
        if not 0 <= start <= end <= min(self._size, keys):
            raise ValueError(
                f"Rows {start} .. {end} of a pattern with {keys} keys, and a prompt of {self._size} tokens"
            )
        if heads == 0 or rows == 0:
            raise NoData(f"An attention pattern of shape {pattern.shape} has no rows to score.")
        sums = np.empty((heads, rows, _COLUMNS), dtype=np.float32)
        mass, logs, same = np.empty((3, heads, rows), dtype=np.float32)
        group = max(1, _CELLS // (_ROWS * end))
        for first in range(0, rows, _ROWS):
            block = slice(first, min(first + _ROWS, rows))
            weights, mask = self._weights_of(start + block.start, start + block.stop)
            for head in range(0, heads, group):
                at = slice(head, head + group), block
                shown = pattern[at][:, :, : len(weights)]
                self._sum_block(shown, weights, mask, sums[at], mass[at], logs[at], same[at])
        sums64, mass64, logs64 = (array.astype(np.float64) for array in (sums, mass, logs))
        return self._results(pattern, start, sums64, mass64, logs64, same)

    def _weights_of(self, first: int, last: int) -> tuple[Pattern, Pattern]:
        """Weights [key, column] of positions first .. last, offsets counted from `first`, and their same-word mask.

        Squares of small numbers keep their digits: near tokens are what a variance of distances must tell apart.
        """
        weights = self._weights[:last]
        np.subtract(self._position[:last], np.float32(first), out=weights[:, _OFFSET])
        np.square(weights[:, _OFFSET], out=weights[:, _OFFSET_SQUARED])
        mask = self._mask[: (last - first) * last].reshape(last - first, last)
        np.copyto(mask, self._word[first:last, None] == self._word[None, :last])
        return weights, mask

    def _sum_block(
        self,
        block: Pattern,
        weights: Pattern,
        mask: Pattern,
        sums: Pattern,
        mass: Pattern,
        logs: Pattern,
        same: Pattern,
    ) -> None:
        scratch = self._scratch[: block.size].reshape(block.shape)
        # What is not finite is found in the sums: there it raises.
        with np.errstate(invalid="ignore"):
            np.matmul(block, weights, out=sums)
            # For entropies: a dot product adds in many partial sums, a product of matrices may add in a single one.
            np.vecdot(block, self._ones[: block.shape[-1]], out=mass)
            np.vecdot(block, mask, out=same)
            # w ln w of 0 is 0. What is above 1e-30 stays as it is, to the bit; numpy adds faster than it compares.
            np.add(block, _TINY, out=scratch)
            np.log(scratch, out=scratch)
            np.vecdot(block, scratch, out=logs)

    def _results(
        self, pattern: Pattern, start: int, sums: Floats, mass: Floats, logs: Floats, same: Pattern
    ) -> dict[str, Floats]:
        rows = pattern.shape[1]
        here = slice(start, start + rows)
        if not (np.isfinite(mass).all() and np.isfinite(logs).all() and (mass > 0).all()):
            raise NoData("A row of an attention pattern is not finite or attends to nothing.")
        # Over the sum of the same product: its rounding cancels, which a variance of near distances needs.
        means = sums / sums[..., _ONES, None]
        offset = np.arange(rows) % _ROWS
        entropy = np.maximum(np.log(mass) - logs / mass, 0)
        current = pattern.diagonal(start, 1, 2).astype(np.float64)
        previous = np.full(mass.shape, np.nan)
        previous[:, 1 if start == 0 else 0 :] = pattern.diagonal(start - 1, 1, 2)[:, :rows]
        variance = means[..., _OFFSET_SQUARED] - means[..., _OFFSET] ** 2
        return {
            "previous_token": previous,
            "current_token": current,
            "first_token": pattern[:, :, 0].astype(np.float64),
            "distance": np.maximum(offset - means[..., _OFFSET], 0),
            "distance_spread": np.sqrt(np.maximum(variance, 0)),
            # Weights of a row add up to one, but for single precision: a share of them is never above it.
            "local": np.minimum(_local(pattern, start, mass), 1),
            "entropy": entropy,
            "entropy_normalized": np.minimum(entropy * self._per_uniform_entropy[here], 1),
            "punctuation": np.where(self._no_punctuation[here], np.nan, np.minimum(sums[..., _PUNCTUATION], 1)),
            "delimiter": np.where(self._no_delimiter[here], np.nan, np.minimum(sums[..., _DELIMITER], 1)),
            "same_word": np.where(self._new_word[here], np.nan, np.clip(same - current, 0, 1)),
            "rare_token": means[..., _RARITY] - self._mean_rarity[here],
        }


def _local(pattern: Pattern, start: int, mass: Floats) -> Floats:
    local = mass.copy()
    whole = max(0, LOCAL_TOKENS - 1 - start)
    if whole < pattern.shape[1]:
        # Window k of a row is its keys k .. k + 8: that of a position begins seven before it, on a diagonal.
        windows = sliding_window_view(pattern, LOCAL_TOKENS, axis=2).diagonal(start - LOCAL_TOKENS + 1, 1, 2)
        local[:, whole:] = np.einsum("hkr->hr", windows)[:, : pattern.shape[1] - whole]
    return local


@dataclass(frozen=True, slots=True)
class ScoreSums:
    """Scores of one prompt, summed over its rows.

    Attributes:
        sums: [head] for each score.
        counts: [head] rows that have the score.
    """

    sums: Mapping[str, Floats]
    counts: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, rows: Mapping[str, NDArray[np.floating[Any]]], first_row: int = 1) -> ScoreSums:
        """Sum per-row scores, [head, row] each, without what is NaN.

        Args:
            rows: of all rows of a prompt, as `BehaviourKernel.scores` gives them.
            first_row: the first row to count: position 0 can only attend to itself. 0 for scores of
                `circuits.induction_scores`.
        """
        kept = {name: values[:, first_row:] for name, values in rows.items()}
        return cls(
            {name: np.nansum(values, axis=1, dtype=np.float64) for name, values in kept.items()},
            {name: np.count_nonzero(~np.isnan(values), axis=1) for name, values in kept.items()},
        )


@dataclass(frozen=True, slots=True)
class HeadProfile:
    """Mean scores of a head.

    Attributes:
        scores: by name, those that some row has.
    """

    scores: Mapping[str, MeanEstimate]

    @property
    def values(self) -> dict[str, float]:
        """The means alone."""
        return {name: score.value for name, score in self.scores.items()}

    def estimates(self) -> list[Estimate]:
        """Each score as an estimate: `head_previous_token` and so on."""
        return [as_estimate(f"head_{name}", score) for name, score in self.scores.items()]


def head_profiles(prompts: Sequence[ScoreSums]) -> list[HeadProfile]:
    """Means of each head over all rows of all prompts, with errors clustered by prompt (CR1).

    Args:
        prompts: of the same heads. Not all need have the same scores: those on repeated random tokens come from
            sequences of their own.

    Raises:
        NoData: there are no prompts.
    """
    if not prompts:
        raise NoData("Heads have no profile without a prompt.")
    heads = {len(sums) for prompt in prompts for sums in prompt.sums.values()}
    if len(heads) != 1:
        raise ValueError(f"Scores of different numbers of heads: {sorted(heads)}")
    names = dict.fromkeys(name for prompt in prompts for name in prompt.sums)
    profiles = []
    for head in range(heads.pop()):
        scores = {}
        for name in names:
            having = [prompt for prompt in prompts if name in prompt.sums]
            counts = [int(prompt.counts[name][head]) for prompt in having]
            if any(counts):
                sums = [float(prompt.sums[name][head]) for prompt in having]
                scores[name] = mean_of_clusters(sums, counts, f"head_{name}")
        profiles.append(HeadProfile(scores))
    return profiles
