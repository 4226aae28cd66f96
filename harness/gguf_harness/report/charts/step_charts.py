"""Charts of single steps of a forward pass: a head's way from a query to its output, the next token after a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.report.charts.base import Chart, Figure, Models, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.data import RunView, visible
from gguf_harness.views.step_data import head_steps, output_cosines
from gguf_harness.views.token_data import rounded, token_text

__all__ = ["next_token_charts", "step_charts"]

_KNOWN: Final = 64
_SHOWN_HEADS: Final = 4
_MOST_CELLS: Final = 30_000
"""Numbers of products and weights in a page: with many candidates, fewer tokens are shown."""


def step_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """How the heads that changed most compute their output for one query, if the run has their vectors."""
    steps, patterns = (arrays_of(view, run_dir, name) for name in ("attention_steps", "attention"))
    names = [name for name in steps if name in patterns and "pattern_0" in patterns[name]]
    if view.reference not in names:
        return []
    heads = _changed_heads(view, patterns[view.reference]["kept"].tolist())
    if not heads:
        return []
    models = Models(view, names)
    n = _tokens_shown(steps[view.reference], patterns[view.reference], len(heads) * len(names))
    entries = [
        _head_entry(view, models, {name: (steps[name], patterns[name]) for name in names}, head, n) for head in heads
    ]
    base = patterns[view.reference]
    pieces = base["pieces_0"].tolist()
    facts = dict.fromkeys(str(fact) for name in names for fact in steps[name]["step_facts"].tolist())
    data: dict[str, Any] = {
        "tokens": [token_text(piece) for piece in pieces[:n]],
        "total": len(pieces),
        "causal": bool(steps[view.reference]["step_causal"].item()),
        "models": models.entries,
        "heads": entries,
        "facts": [visible(fact) for fact in facts],
    }
    data["start"] = _start(data)
    prompt = visible(str(base["kept_prompts"][0]))
    return [
        make_chart(
            "qkv-steps",
            _step_title(data),
            "How a head computes its output for one token of a prompt: products of its query with the keys, weights,"
            " and what it takes of each value.",
            [make_panel("steps", f"The prompt {prompt!r}, measured while llama.cpp decoded it with each file.", data)],
            f"Queries, keys and values of {len(entries)} heads in {len(names)} models, for each token of a prompt.",
            view="qkv",
            how="A row is a token that the query may look at. q · k: how well its key fits the query. Times the scale,"
            " it goes into a softmax, which makes weights that add up to 1; later tokens are masked. The head's output"
            " is the sum of the values, each times its weight: the last column is how much each adds at most."
            " Above the reference, below the candidate, on one scale for all models.",
            table=(["head", "model", "scale", "cosine of outputs, least", "at token"], _step_rows(data)),
        )
    ]


def _start(data: Mapping[str, Any]) -> int:
    """The query to begin with: where the output changed most in the last candidate, among those with many keys."""
    n = len(data["tokens"])
    cosines = data["heads"][0]["models"][-1]["cosine"]
    return min(range(n // 2, n), key=lambda query: math.inf if cosines[query] is None else cosines[query])


def _step_title(data: Mapping[str, Any]) -> str:
    """Where the head that changed most looks in the last candidate, at the query to begin with."""
    head = data["heads"][0]
    by_role: dict[str, list[Mapping[str, Any]]] = {"reference": [], "candidate": []}
    for entry in head["models"]:
        by_role[data["models"][entry["model"]]["role"]].append(entry)
    if not by_role["candidate"]:
        return f"From a query to the output of head {head['name']}, step by step"
    (reference,), candidate = by_role["reference"], by_role["candidate"][-1]
    query = data["start"]
    expected, found = (int(np.argmax(each["weights"][query])) for each in (reference, candidate))
    if expected == found:
        return f"Head {head['name']} changed most: from a query to its output, step by step"
    at, there, here = (data["tokens"][token].strip() or "a space" for token in (query, expected, found))
    named = data["models"][candidate["model"]]["short"]
    return f"Head {head['name']} changed most: at “{at}”, {named} looks at “{here}” instead of “{there}”"


def _changed_heads(view: RunView, kept: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The heads whose patterns changed most, by the mean of their cosines over all candidates; else the first."""
    cosines: dict[tuple[int, int], list[float]] = {(layer, head): [] for layer, head in kept}
    for model in view.candidates:
        for row in view.rows_of(model.name, "attn_cosine"):
            place = (row.get("layer"), row.get("head"))
            if place in cosines:
                cosines[place].append(float(row["value"]))
    order = sorted(cosines, key=lambda place: sum(cosines[place]) / len(cosines[place]) if cosines[place] else math.inf)
    return order[:_SHOWN_HEADS]


def _tokens_shown(steps: Mapping[str, Any], patterns: Mapping[str, Any], parts: int) -> int:
    vectors = next(values for name, values in steps.items() if name.startswith("step_q_"))
    return int(min(len(vectors), patterns["pattern_0"].shape[1], max(8, (_MOST_CELLS / parts) ** 0.5)))


def _head_entry(
    view: RunView,
    models: Models,
    arrays: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    place: tuple[int, int],
    n: int,
) -> dict[str, Any]:
    reference = str(view.reference)
    base = arrays[reference][1]
    found = {}
    for name, (steps, patterns) in arrays.items():
        kept = patterns["kept"].tolist()
        if list(place) in kept and patterns["pieces_0"].tolist() == base["pieces_0"].tolist():
            found[name] = _steps_of(steps, patterns, kept.index(list(place)), n)
    entries = [
        {"model": models[name], "cosine": rounded(output_cosines(output, found[reference][1]))} | entry
        for name, (entry, output) in found.items()
        # A candidate of another shape has no output that could be compared.
        if output.shape == found[reference][1].shape
    ]
    kinds = {
        (row["layer"], row["head"]): row["kind"] for row in view.run.get("heads", []) if row["model"] == view.reference
    }
    kind = f", {visible(str(kinds[place]))}" if kinds.get(place, "other") != "other" else ""
    name = f"{place[0]}.{place[1]}"
    return {
        "name": name,
        "label": f"layer {place[0]}, head {place[1]}{kind}",
        "models": entries,
    }


def _steps_of(
    steps: Mapping[str, Any], patterns: Mapping[str, Any], at: int, n: int
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """(what the view draws of a head in a model, [query, d_head] its outputs)."""
    kept = patterns["kept"]
    layer = int(kept[at, 0])
    place = int((kept[:at, 0] == layer).sum())
    key_head, value_head = steps["step_kv"][at].tolist()
    q = steps[f"step_q_{layer}"][:n, place].astype(np.float32)
    k, v = (
        steps[f"step_{kind}_{layer}"][:n, head].astype(np.float32)
        for kind, head in (("k", key_head), ("v", value_head))
    )
    return head_steps(
        q,
        k,
        v,
        patterns["pattern_0"][at, :n, :n].astype(np.float32),
        causal=bool(steps["step_causal"].item()),
        scale=float(steps["step_scale"].item()),
        window=int(steps["step_window"].item()),
        softcap=float(steps["step_softcap"].item()),
    )


def _step_rows(data: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for head in data["heads"]:
        for entry in head["models"]:
            cosines = [math.inf if value is None else value for value in entry["cosine"]]
            least = min(cosines)
            named = data["models"][entry["model"]]["name"]
            rows.append(
                [head["name"], named, f"{entry['scale']:.4g}", f"{least:.4f}", data["tokens"][cosines.index(least)]]
            )
    return rows


def next_token_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The next tokens after some prompts, if the run has them; not of files with adapters, which are no candidates."""
    adapted = {model.name for model in view.models if model.facts.get("adapters")}
    stored = arrays_of(view, run_dir, "next_tokens")
    arrays = {name: each for name, each in stored.items() if name not in adapted}
    if not arrays or view.reference is None:
        return []
    models = Models(view, [view.reference, *arrays])
    prompts = list(dict.fromkeys(str(prompt) for each in arrays.values() for prompt in each["prompts"].tolist()))
    panels = [_next_panel(view, models, arrays, prompt) for prompt in prompts]
    rows = [row for name, each in arrays.items() for row in _next_rows(name, each)]
    return [
        make_chart(
            "next-tokens",
            _next_title(view, arrays),
            "What each model would write next after a prompt: its likeliest tokens, and what sampling leaves of them.",
            panels,
            f"Next tokens of {len(arrays)} candidates and the reference after {len(prompts)} prompts.",
            view="next_tokens",
            how="Each pair of bars is a token: above the reference, below the candidate. The thin marks are its"
            " probabilities without any setting. Settings apply as in llama.cpp's default chain: first top-k, then"
            " top-p (of what top-k left), then min-p, then the temperature."
            " ␣ is a space (␣×4: four of them), ↵ a new line.",
            table=(["candidate", "prompt", "likeliest of the reference", "likeliest of the candidate"], rows),
        )
    ]


def _next_panel(view: RunView, models: Models, arrays: Mapping[str, Mapping[str, Any]], prompt: str) -> Figure:
    pairs: list[dict[str, Any]] = []
    temperatures: list[float] = []
    for name, each in arrays.items():
        prompts = each["prompts"].tolist()
        if prompt not in prompts:
            continue
        at = prompts.index(prompt)
        temperatures = [round(float(value), 3) for value in each["temperatures"]]
        pairs.append(
            {
                "model": models[name],
                "pieces": [token_text(piece) for piece in each[f"pieces_{at}"].tolist()],
                "logprobs": [rounded(row) for row in each[f"logprobs_{at}"]],
                "rest": [rounded(row) for row in each[f"rest_{at}"]],
            }
        )
    given = next((str(row["given"]) for row in view.run.get("texts") or [] if row["prompt"] == prompt), "")
    told = f"After the prompt {visible(prompt)!r}" + (f", which ends: …{visible(given[-80:])!r}." if given else ".")
    known = min(_KNOWN, *(len(pair["pieces"]) for pair in pairs))
    data = {"known": known, "temperatures": temperatures, "models": models.entries, "pairs": pairs}
    return make_panel(visible(prompt), told, data)


def _next_title(view: RunView, arrays: Mapping[str, Mapping[str, Any]]) -> str:
    """How often candidates would begin as the reference does, where they do not all."""
    changed = {}
    for name, each in arrays.items():
        count = len(each["prompts"])
        best = [each[f"logprobs_{at}"].argmax(axis=1) for at in range(count)]
        changed[name] = (sum(int(one != other) for one, other in best), count)
    worst = max(changed, key=lambda name: changed[name][0] / changed[name][1])
    many, count = changed[worst]
    named = short_name(view, worst)
    if not many:
        return "Every candidate's likeliest next token is the reference's"
    return f"{named} would begin {many} of {count} texts with another token than the reference"


def _next_rows(name: str, arrays: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for at, prompt in enumerate(arrays["prompts"].tolist()):
        logprobs, pieces = arrays[f"logprobs_{at}"], arrays[f"pieces_{at}"].tolist()
        told = [
            f"{token_text(pieces[int(row.argmax())])!r} {math.exp(float(row.max())):.1%}".replace("%", " %")
            for row in logprobs
        ]
        rows.append([visible(name), visible(prompt), *(visible(each) for each in told)])
    return rows
