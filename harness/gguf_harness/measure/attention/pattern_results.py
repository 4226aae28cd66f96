"""Results of attention measurements, from the arrays that workers return."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import ModelError
from gguf_harness.measure.attention.drift import ROW_MEASURES
from gguf_harness.metrics.head_behaviour import HeadProfile, ScoreSums, head_profiles
from gguf_harness.metrics.pattern_comparison import HeadPlace, PatternComparison
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.stats import mean_with_errors, require_samples
from gguf_harness.metrics.taxonomy import HeadKind, classify_head

if TYPE_CHECKING:
    from gguf_harness.store.arrays import Arrays

__all__ = ["AttentionDrift", "HeadBehaviour"]

_ERRORS: Final = ("q_error", "k_error", "v_error", "scores_error")
_CKA: Final = ("q_cka", "k_cka", "v_cka")


@dataclass(frozen=True, slots=True)
class HeadBehaviour:
    """What each head of a model does with the prompts.

    Attributes:
        heads: layer and head of each profile.
        profiles: scores on the prompts; induction and duplicate_token on repeated random tokens.
        copy_scores: of each head, from its weights; None if the file does not have them.
        similarity: [head, head] cosine of patterns, over the first tokens of the prompts.
        prompts: those that the model could take.
        problems: reasons for the others.
    """

    heads: list[HeadPlace]
    profiles: list[HeadProfile]
    copy_scores: list[float | None]
    similarity: NDArray[np.float64]
    prompts: list[str]
    problems: list[str]

    @classmethod
    def of(cls, arrays: Arrays) -> Self:
        """From what `observe_attention` returned.

        Raises:
            ModelError: tokens attend to later ones.
        """
        if not arrays["causal"].item():
            raise ModelError(
                "Tokens of this model attend to later ones, as in an encoder: head scores such as induction are "
                "defined only for causal models.",
                "Use suites/attention and suites/embeddings for such models.",
            )
        names = [str(name) for name in arrays["scores"]]
        per_prompt = [
            ScoreSums(dict(zip(names, sums, strict=True)), dict(zip(names, counts, strict=True)))
            for sums, counts in zip(_floats(arrays["sums"]), arrays["counts"].astype(np.int64), strict=True)
        ]
        repeated = ("induction", "duplicate_token")
        ones = np.ones(arrays["induction"].shape[1], dtype=np.int64)
        sequences = [
            ScoreSums({name: _floats(arrays[name])[index] for name in repeated}, dict.fromkeys(repeated, ones))
            for index in range(len(arrays["induction"]))
        ]
        return cls(
            heads=_places(arrays["heads"]),
            profiles=head_profiles([*per_prompt, *sequences]),
            copy_scores=[None if np.isnan(score) else float(score) for score in _floats(arrays["copy_score"])],
            similarity=_floats(arrays["redundancy"]),
            prompts=[str(prompt) for prompt in arrays["prompts"]],
            problems=[str(problem) for problem in arrays["problems"]],
        )

    def estimates(self) -> list[Estimate]:
        """All scores of all heads."""
        scores = []
        for (layer, head), profile, copies in zip(self.heads, self.profiles, self.copy_scores, strict=True):
            place = Place(layer, head)
            scores += [replace(estimate, place=place) for estimate in profile.estimates()]
            if copies is not None:
                scores.append(Estimate("head_copy_score", copies, 1, place=place))
        return scores

    @property
    def kinds(self) -> list[HeadKind]:
        """Kind of each head, by the rules of `gguf_harness.metrics.taxonomy`."""
        return [classify_head(profile.values) for profile in self.profiles]


@dataclass(frozen=True, slots=True)
class AttentionDrift:
    """How far a candidate's attention is from the reference's.

    Attributes:
        heads: layer and head of each entry of a comparison's head axis.
        patterns: by prompt.
    """

    heads: list[HeadPlace]
    kv_heads: list[HeadPlace]
    patterns: dict[str, PatternComparison]
    _arrays: Arrays

    @classmethod
    def of(cls, arrays: Arrays) -> AttentionDrift:
        """From what `compare_attention` returned."""
        patterns, start = {}, 0
        for index, (prompt, rows) in enumerate(zip(arrays["prompts"], arrays["rows"], strict=True)):
            part = slice(start, start + int(rows))
            measures = {name: arrays[name][:, part] for name in ROW_MEASURES}
            top_changed = measures.pop("top_changed").astype(np.bool_)
            patterns[str(prompt)] = PatternComparison(
                cosine=_floats(arrays["cosine"])[index],
                **{name: _floats(values) for name, values in measures.items()},
                top_changed=top_changed,
            )
            start = part.stop
        return cls(_places(arrays["heads"]), _places(arrays["kv_heads"]), patterns, arrays)

    def vectors(self) -> list[Estimate]:
        """Errors and CKA of queries, keys, values and scores: over all heads, and by layer.

        A relative error is the mean over heads and prompts of each head's own, with its error clustered by prompt. CKA
        is of all prompts' tokens together: it has no error.
        """
        estimates = []
        for name in (*_ERRORS, *_CKA):
            places = self.kv_heads if name[0] in "kv" else self.heads
            layers = np.array([layer for layer, _ in places])
            for layer in (None, *sorted(set(layers.tolist()))):
                chosen = np.ones(len(layers), dtype=np.bool_) if layer is None else layers == layer
                estimate = self._mean(name, _floats(self._arrays[name])[..., chosen])
                if estimate is not None:
                    estimates.append(estimate if layer is None else replace(estimate, place=Place(layer)))
        return estimates

    def _mean(self, name: str, values: NDArray[np.float64]) -> Estimate | None:
        """The mean; None if no head has a value: keys that are zero have no relative error."""
        if name in _CKA:
            there = values[~np.isnan(values)]
            return Estimate(f"attn_{name}", float(there.mean()), there.size) if there.size else None
        there = values[:, ~np.isnan(values).any(axis=0)]
        if there.shape[1] == 0:
            return None
        mean = mean_with_errors(require_samples(there, f"attn_{name}"))
        return Estimate(f"attn_{name}", mean.value, mean.n, mean.se, None, mean.clusters)


def _floats(values: NDArray[Any]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def _places(values: NDArray[Any]) -> list[HeadPlace]:
    return [(int(layer), int(head)) for layer, head in values]
