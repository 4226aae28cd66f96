"""Charts of single steps of a forward pass: the next token after a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from gguf_harness.report.charts.base import Chart, Figure, Models, make_chart, make_panel, short
from gguf_harness.report.data import RunView, visible

__all__ = ["next_token_charts"]

_DIGITS: Final = 5
_KNOWN: Final = 64


def next_token_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The next tokens after some prompts, if the run has them."""
    arrays = _arrays_of(view, run_dir, "next_tokens")
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
                "pieces": [_text(piece) for piece in each[f"pieces_{at}"].tolist()],
                "logprobs": [_rounded(row) for row in each[f"logprobs_{at}"]],
                "rest": [_rounded(row) for row in each[f"rest_{at}"]],
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
    named = visible(short(worst, view.models))
    if not many:
        return "Every candidate's likeliest next token is the reference's"
    return f"{named} would begin {many} of {count} texts with another token than the reference"


def _next_rows(name: str, arrays: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for at, prompt in enumerate(arrays["prompts"].tolist()):
        logprobs, pieces = arrays[f"logprobs_{at}"], arrays[f"pieces_{at}"].tolist()
        told = [
            f"{_text(pieces[int(row.argmax())])!r} {math.exp(float(row.max())):.1%}".replace("%", " %")
            for row in logprobs
        ]
        rows.append([visible(name), visible(prompt), *(visible(each) for each in told)])
    return rows


def _arrays_of(view: RunView, run_dir: Path, name: str) -> dict[str, Mapping[str, Any]]:
    """Arrays of this name by model, in the order of the models, of those that the run has."""
    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    files = {entry["model"]: entry["file"] for entry in view.run.get("arrays", []) if entry["name"] == name}
    return {
        model.name: load_arrays(run_file(run_dir, files[model.name]))
        for model in view.models
        if model.name in files and run_file(run_dir, files[model.name]).is_file()
    }


def _text(piece: bytes) -> str:
    """A token as text; one that is part of a character as its bytes."""
    try:
        return visible(piece.decode("utf-8").replace("\n", "↵"))
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in piece)


def _rounded(values: Any) -> list[float | None]:
    """Numbers of JSON, short; None for minus infinity."""
    return [round(float(value), _DIGITS) if np.isfinite(value) else None for value in values]
