"""Kinds of heads by profile, matching of heads of two models, and redundant heads.

Kinds are named after what is measured: the target of the attention. There is no "syntactic" or "semantic" kind: showing
that a head follows a dependency or a meaning takes a probe with labels; a pattern alone is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.head_behaviour import LOCAL_TOKENS
from gguf_harness.metrics.kernels.directions import cosine_of_products

__all__ = [
    "KINDS",
    "HeadKind",
    "HeadMatch",
    "Kind",
    "classify_head",
    "head_groups",
    "match_heads",
    "profile_vector",
    "redundancy",
    "shared_features",
]

Profile = Mapping[str, float]
Floats = NDArray[np.float64]
Kind = Literal["induction", "duplicate-token", "positional", "sink", "local", "global", "mixed"]
KINDS: Final[tuple[Kind, ...]] = ("induction", "duplicate-token", "positional", "sink", "local", "global", "mixed")

REPEAT_THRESHOLD: Final = 0.3
"""Weight on the token after (or at) the earlier occurrence, on repeated random tokens. Chance is one over the visible
tokens: 0.3 is twenty times that at 64, and more later. Not a majority: such heads attend to the first token, or to the
last ones, when they find no match, which is no evidence against the kind.
"""

MAJORITY: Final = 0.5
"""Weight on one place (the previous, current or first token, or what is far): as much as on all others together, so
that of rules for disjoint places only one can hold, but for exact halves."""

LOCAL_THRESHOLD: Final = 0.7
"""Weight on the last tokens. More than a majority, since any attention that decays with distance has much of its weight
there: exponential decay has 0.7 within 8 tokens at a mean distance of about 6."""

_REQUIRED: Final = ("previous_token", "current_token", "first_token", "local")

_BOUNDED: Final = (
    "previous_token",
    "current_token",
    "first_token",
    "local",
    "entropy_normalized",
    "punctuation",
    "delimiter",
    "same_word",
    "induction",
    "duplicate_token",
)


@dataclass(frozen=True, slots=True)
class HeadKind:
    """The kind of a head, with its reason.

    Attributes:
        kind: one of `KINDS`.
        reason: the rule that applied, with the number.
    """

    kind: Kind
    reason: str


def classify_head(profile: Profile) -> HeadKind:
    """Classify a head by the first rule that applies, from the most to the least specific.

    Every profile has exactly one kind.

    1. induction: `REPEAT_THRESHOLD` or more of the weight on the token after the earlier occurrence.
    2. duplicate-token: as much on the earlier occurrence itself.
    3. positional: a majority of the weight on the previous token, or on the current one.
    4. sink: a majority on the first token.
    5. local: `LOCAL_THRESHOLD` or more on the last `LOCAL_TOKENS` tokens, with no single one of them in majority.
    6. global: a majority neither on these nor on the first token.
    7. mixed: none of these.

    The first two need the probe on repeated tokens. They come first since such heads look like sinks on texts without
    repetitions.

    Args:
        profile: mean scores by name (`HeadProfile.values`): previous_token, current_token, first_token and local at
            least.

    Raises:
        NoData: one of these is missing, or a score is not finite.
    """
    _require(profile, _REQUIRED)
    local, first = profile["local"], profile["first_token"]
    near = f"the last {LOCAL_TOKENS} tokens"
    rules: tuple[tuple[Kind, float, float, str], ...] = (
        ("induction", profile.get("induction", 0.0), REPEAT_THRESHOLD, "the token after its earlier occurrence"),
        ("duplicate-token", profile.get("duplicate_token", 0.0), REPEAT_THRESHOLD, "the same token before"),
        ("positional", profile["previous_token"], MAJORITY, "the previous token"),
        ("positional", profile["current_token"], MAJORITY, "the token itself"),
        ("sink", first, MAJORITY, "the first token"),
        ("local", local, LOCAL_THRESHOLD, near),
        # A token that is both first and local counts twice here, which favours "mixed".
        ("global", 1 - local - first, MAJORITY, f"tokens before {near}, but not the first"),
    )
    for kind, weight, threshold, where in rules:
        if weight >= threshold:
            return HeadKind(kind, f"{weight:.2f} of the weight is on {where} ({threshold} or more)")
    return HeadKind("mixed", f"No rule applies: {local:.2f} of the weight is on {near}, {first:.2f} on the first token")


def shared_features(*models: Sequence[Profile]) -> tuple[str, ...]:
    """Features that all profiles of all models have, in a fixed order, for `profile_vector`.

    Raises:
        NoData: no profiles, or no common feature.
    """
    profiles = [profile for model in models for profile in model]
    names = tuple(name for name in (*_BOUNDED, "distance") if all(name in profile for profile in profiles))
    if not profiles or not names:
        raise NoData(f"{len(profiles)} profiles of heads have no score in common to compare.")
    return names


def profile_vector(profile: Profile, features: Sequence[str]) -> Floats:
    """A profile as a vector of bounded features, for clusters and distances.

    Shares as they are, within [0, 1]; distance d as d / (d + LOCAL_TOKENS), 0 for none and 1/2 at the edge of the local
    window, independent of the context length. Scores that repeat these in other units (entropy in nats, spread) or
    depend on token counts of the text (rare_token) are left out.

    Args:
        profile: scores by name.
        features: names from `shared_features`.

    Returns:
        [feature], each in [0, 1].

    Raises:
        NoData: a feature is missing or not finite.
    """
    _require(profile, features)
    values = [
        profile[name] / (profile[name] + LOCAL_TOKENS) if name == "distance" else profile[name] for name in features
    ]
    return np.clip(np.array(values, dtype=np.float64), 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class HeadMatch:
    """Two matching heads, one of each model.

    Attributes:
        first: index in the first model's profiles.
        second: index in the second model's.
        distance: root mean square difference of their features, in [0, 1].
    """

    first: int
    second: int
    distance: float


def match_heads(first: Sequence[Profile], second: Sequence[Profile]) -> list[HeadMatch]:
    """Pair heads of two models, each at most once, with the smallest sum of squared distances.

    Linear assignment (Kuhn, 1955, "The Hungarian method for the assignment problem"), by scipy. The remaining heads of
    the larger model are not paired. Pairs may be far apart: check the distance.

    Args:
        first: profiles of a model's heads, of all layers.
        second: those of another model's; as many or not.

    Returns:
        min(len(first), len(second)) pairs, by index in `first`.

    Raises:
        NoData: one has no heads, or the profiles share no score.
    """
    from scipy.optimize import linear_sum_assignment

    if not first or not second:
        raise NoData(f"Heads cannot be matched: {len(first)} of one model and {len(second)} of the other.")
    features = shared_features(first, second)
    a, b = (np.array([profile_vector(profile, features) for profile in model]) for model in (first, second))
    squares = np.square(a[:, None] - b[None, :]).mean(axis=2)
    rows, columns = linear_sum_assignment(squares)
    return [HeadMatch(int(i), int(j), float(np.sqrt(squares[i, j]))) for i, j in zip(rows, columns, strict=True)]


def redundancy(prompts: Sequence[NDArray[np.floating[Any]]], first_row: int = 1) -> Floats:
    """Similarity of the attention of heads of one model: cosine of their flattened patterns, averaged over prompts.

    Args:
        prompts: [head, position, key] of each prompt, all of the same heads; or [head, d] vectors, taken whole.
        first_row: rows of patterns before this position are left out: all heads of a decoder agree on the first.

    Returns:
        [head, head], symmetric, 1 on the diagonal.

    Raises:
        NoData: there is no prompt or nothing in one, or a head's values are all zero or not finite.
    """
    if not prompts:
        raise NoData("Without a prompt, heads have nothing in common.")
    heads = len(prompts[0])
    total = np.zeros((heads, heads))
    for prompt in prompts:
        if len(prompt) != heads or prompt.ndim not in {2, 3}:
            raise ValueError(f"Expected {heads} heads, [head, pos, key] or [head, d], not {prompt.shape}")
        rows = prompt if prompt.ndim == 2 else prompt[:, first_row:]
        if rows.size == 0:
            raise NoData(f"A pattern of shape {prompt.shape} has no rows from row {first_row} on.")
        total += _cosines(rows)
    return total / len(prompts)


def _cosines(rows: NDArray[np.floating[Any]]) -> Floats:
    products = np.zeros((len(rows), len(rows)))
    for block in _parts(rows):
        part = block.reshape(len(rows), -1).astype(np.float64)
        products += part @ part.T
    squares = products.diagonal()
    if not (np.isfinite(products).all() and (squares > 0).all()):
        raise NoData("The attention of a head is all zero or not finite: it has no direction.")
    cosines = cosine_of_products(products, squares[:, None], squares[None, :])
    return np.asarray((cosines + cosines.T) / 2)


def _parts(rows: NDArray[np.floating[Any]]) -> list[NDArray[np.floating[Any]]]:
    # All heads of a model in float64 could take gigabytes: use some columns of the flattened patterns at a time.
    step = max(1, 2**21 // max(1, rows[:, :1].size))
    return [rows[:, first : first + step] for first in range(0, rows.shape[1], step)]


def head_groups(similarity: Floats, threshold: float = 0.9) -> list[list[int]]:
    """Groups of similar heads: connected by similarities of `threshold` or more.

    Connected components: two heads of a group need not be similar themselves; a chain between them is enough.

    Args:
        similarity: [head, head] of `redundancy`.
        threshold: of the cosine.

    Returns:
        Groups of two heads or more, the largest first, heads in ascending order. Single heads are left out.
    """
    from scipy.sparse.csgraph import connected_components

    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"Similarities must be [head, head], not {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise NoData("A similarity of heads is not finite.")
    count, labels = connected_components(similarity >= threshold, directed=False)
    groups = [np.flatnonzero(labels == label).tolist() for label in range(count)]
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


def _require(profile: Profile, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in profile]
    if missing:
        raise NoData(f"The profile of a head has no {', '.join(missing)}; it has {', '.join(profile) or 'nothing'}.")
    bad = [name for name, value in profile.items() if not np.isfinite(value)]
    if bad:
        raise NoData(f"The profile of a head is not finite: {bad[0]} is {profile[bad[0]]}.")
