"""Charts of words of the embeddings suite: analogies with their answers, and cosines between words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.report.charts.base import Chart, Models, make_chart, make_panel, short_name
from gguf_harness.report.charts.embedding_layout import load_points, tell_models
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_value

__all__ = ["analogies_chart", "cosines_chart"]

Answers = dict[tuple[str, ...], tuple[str, int]]
"""(family, a, b, c, d) -> (nearest word, rank of d)."""

_TOLD: Final = 12
_SEEN: Final = 0.001
"""The least change of a mean cosine to speak of."""


# -- analogies --------------------------------------------------------------------------------------------------------


def analogies_chart(view: RunView, run_dir: Path) -> Chart | None:
    """Questions such as king - man + woman, with the word that each model finds."""
    stored = load_points(view, run_dir, "analogies")
    answers = {model.name: _answers(stored[model.name]) for model in view.models if model.name in stored}
    if not any(answers.values()):
        return None
    questions = list(dict.fromkeys(question for asked in answers.values() for question in asked))
    words = list(dict.fromkeys(word for q in questions for word in q[1:]))
    words = list(dict.fromkeys([*words, *(found for asked in answers.values() for found, _ in asked.values())]))
    families = list(dict.fromkeys(question[0] for question in questions))
    place = {word: row for row, word in enumerate(words)}
    distinct, of = _distinct(answers)
    shown = Models(view, list(answers))
    data = {
        "words": [visible(word) for word in words],
        "families": [visible(family) for family in families],
        "questions": [[families.index(q[0]), *(place[word] for word in q[1:])] for q in questions],
        "models": [entry | {"answers": row} for entry, row in zip(shown.entries, of, strict=True)],
        "answers": [
            [[place[asked[q][0]], asked[q][1]] if q in asked else None for q in questions] for asked in distinct
        ],
    }
    title, rows = _lost_answers(view, answers)
    return make_chart(
        "analogies",
        title,
        "For every pair of a family with every other pair: the word nearest to b - a + c, of all words of the list."
        " a, b and c are no answers.",
        [make_panel("analogies", f"{len(questions)} questions of {len(families)} families.", data)],
        f"{len(questions)} questions, answered by {len(answers)} models.",
        view="analogies",
        how="Each row is a question: king - man + woman asks for queen. A model's cell has the word that it finds"
        " nearest, and the rank of the right word: rank 1 is right. Rows that the candidate lost come first.",
        table=(["model", "question", "right", "reference", "candidate", "rank"], rows),
    )


def _answers(points: Mapping[str, Any]) -> Answers:
    rows = zip(points["families"], points["questions"], points["answers"], points["ranks"], strict=True)
    return {(family, *question): (answer, rank) for family, question, answer, rank in rows}


def _distinct(answers: Mapping[str, Answers]) -> tuple[list[Answers], list[int]]:
    """Sets of answers that differ, and the one of each model: many candidates store the same embeddings."""
    distinct: list[Answers] = []
    of = []
    for asked in answers.values():
        if asked not in distinct:
            distinct.append(asked)
        of.append(distinct.index(asked))
    return distinct, of


def _lost_answers(view: RunView, answers: Mapping[str, Answers]) -> tuple[str, list[list[str]]]:
    base = answers.get(view.reference or "")
    if base is None:
        return "Analogies between words", []
    reference = short_name(view, view.reference or "")
    right = sum(rank == 1 for _, rank in base.values())
    lost = {
        model.name: [q for q, (_, rank) in answers[model.name].items() if rank != 1 and q in base and base[q][1] == 1]
        for model in view.candidates
        if model.name in answers
    }
    most = max((len(questions) for questions in lost.values()), default=0)
    if most == 0:
        if lost:
            return f"No candidate loses one of the {right} analogies that {reference} gets right", []
        return f"{reference} gets {right} of {len(base)} analogies right", []
    worst = [name for name, questions in lost.items() if len(questions) == most]
    found = answers[worst[-1]]
    rows = [
        [
            visible(worst[-1]),
            visible(f"{b} - {a} + {c}"),
            *(visible(word) for word in (d, base[q][0], found[q][0])),
            str(found[q][1]),
        ]
        for q in sorted(lost[worst[-1]], key=lambda q: -found[q][1])[:_TOLD]
        for _, a, b, c, d in [q]
    ]
    told = tell_models(view, worst, "lose")
    return f"{told[0].upper()}{told[1:]} {most} of the {right} analogies that {reference} gets right", rows


# -- cosines ----------------------------------------------------------------------------------------------------------


def cosines_chart(view: RunView, run_dir: Path) -> Chart | None:
    """Cosines between words, of groups of words and within each, on one scale for all models."""
    import numpy as np

    stored = load_points(view, run_dir, "word_cosines")
    names = [model.name for model in view.models if model.name in stored]
    if not names:
        return None
    first = stored[view.reference] if view.reference in names else stored[names[0]]
    groups: dict[str, list[str]] = {}
    for text, group in zip(first["texts"], first["groups"], strict=True):
        groups.setdefault(group, []).append(text)
    parts = {name: _parts(stored[name], groups) for name in names}
    base = parts.get(view.reference or "")
    middle = float(np.nanmean(np.concatenate([each.ravel() for each in parts[names[0]]]) if base is None else base[0]))
    distinct: list[list[Any]] = []
    of = []
    for name in names:
        matrices = [_listed(matrix) for matrix in parts[name]]
        if matrices not in distinct:
            distinct.append(matrices)
        of.append(distinct.index(matrices))
    shown = Models(view, names)
    data = {
        "groups": [visible(group) for group in groups],
        "words": [[visible(word) for word in words] for words in groups.values()],
        "models": [entry | {"cosines": row} for entry, row in zip(shown.entries, of, strict=True)],
        "cosines": distinct,
        "middle": middle,
        # The same scales for all models: one for means of groups, one for pairs of words.
        "domains": [_domain(each) for each in _by_kind(parts.values())],
        "differences": None
        if base is None or len(names) < 2
        else [
            _domain(each)
            for each in _by_kind([[a - b for a, b in zip(mine, base, strict=True)] for mine in parts.values()])
        ],
    }
    title, rows = _farthest(view, parts, list(groups))
    return make_chart(
        "word-cosines",
        title,
        "Cosines between the embeddings of words: of two groups the mean over their pairs of words, of one group every"
        " pair. Blue pairs point more the same way than the reference's average, orange ones less.",
        [make_panel("cosines", "", data)],
        f"Cosines between {len(groups)} groups of words, for {len(names)} models.",
        view="cosines",
        how="The darker the tiles on the diagonal, the better groups hold together. Choose “difference” to see what a"
        " candidate changed: there the middle of the scale is no change, and its ends are the same for all candidates.",
        table=(["model", "groups", "reference", "candidate"], rows),
    )


def _parts(points: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[Any]:
    """[groups, groups] means without a word's cosine with itself, then [words, words] of each group; NaN for none."""
    import numpy as np

    place = {text: row for row, text in enumerate(points["texts"])}
    order = [place.get(word, -1) for words in groups.values() for word in words]
    there = np.array(order) >= 0
    cosines = np.array(points["cosines"], dtype=np.float64)[np.ix_(order, order)]
    cosines[~there] = np.nan
    cosines[:, ~there] = np.nan
    np.fill_diagonal(cosines, np.nan)
    ends = np.cumsum([len(words) for words in groups.values()])
    slices = [slice(end - len(words), end) for end, words in zip(ends.tolist(), groups.values(), strict=True)]
    means = np.array([[_mean(cosines[rows, columns]) for columns in slices] for rows in slices])
    return [means, *(cosines[each, each] for each in slices)]


def _mean(values: Any) -> float:
    import numpy as np

    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _by_kind(models: Iterable[list[Any]]) -> tuple[list[Any], list[Any]]:
    """Means of groups, and pairs of words, of all models."""
    models = list(models)
    return [matrices[0] for matrices in models], [matrix for matrices in models for matrix in matrices[1:]]


def _listed(matrix: Any) -> list[list[float | None]]:
    """JSON has no NaN; five decimals are finer than the colours."""
    return [[round(value, 5) if math.isfinite(value) else None for value in row] for row in matrix.tolist()]


def _domain(matrices: Sequence[Any]) -> list[float]:
    import numpy as np

    values = np.concatenate([matrix.ravel() for matrix in matrices])
    values = values[np.isfinite(values)]
    return [float(values.min()), float(values.max())] if values.size else [0.0, 0.0]


def _farthest(view: RunView, parts: Mapping[str, list[Any]], groups: list[str]) -> tuple[str, list[list[str]]]:
    """The pair of groups whose cosine a candidate changes most, and that of each candidate."""
    import numpy as np

    base = parts.get(view.reference or "")
    rows, most, finding = [], 0.0, ""
    for model in view.candidates:
        if base is None or model.name not in parts:
            continue
        changes = np.nan_to_num(np.abs(parts[model.name][0] - base[0]))
        row, column = (int(at) for at in np.unravel_index(changes.argmax(), changes.shape))
        before, after = float(base[0][row, column]), float(parts[model.name][0][row, column])
        pair = f"between {groups[row]} and {groups[column]}" if row != column else f"within {groups[row]}"
        rows.append([visible(model.name), visible(pair), format_value(before), format_value(after)])
        if changes.max() >= max(most, _SEEN):
            most = float(changes.max())
            name = short_name(view, model.name)
            finding = f"{name} shifts the mean cosine {visible(pair)} from {before:.3f} to {after:.3f}"
    if rows and not finding:
        return f"No candidate shifts the mean cosine of two groups of words by as much as {_SEEN}", rows
    return finding or "Cosines between words", rows
