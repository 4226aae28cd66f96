"""Choose files of a Hugging Face repository by name, before anything is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from gguf_harness.errors import ModelNotFound
from gguf_harness.gguf.types import FTYPES

__all__ = ["SPLIT_NAME", "pick_files"]

SPLIT_NAME: Final = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.IGNORECASE)
"""How llama.cpp names the parts of a split model."""


def pick_files(names: list[str], what: str, spec: str) -> list[str]:
    """All files of the one model that matches a quantization or a file name.

    Names are compared part by part, so that Q4_K is not Q4_K_M.

    Args:
        names: all .gguf files of the repository.
        what: a type of quantization, or the name of a file.
        spec: what the user wrote.

    Raises:
        ModelNotFound: it matches no model, or several.
    """
    models: dict[str, list[str]] = {}
    for name in names:
        match = SPLIT_NAME.match(Path(name).name)
        stem = match["stem"] if match else Path(name).stem
        models.setdefault(str(Path(name).with_name(stem)), []).append(name)
    split = SPLIT_NAME.match(Path(what).name)
    wanted = str(Path(what).with_name(split["stem"])) if split else re.sub(r"\.gguf$", "", what, flags=re.IGNORECASE)
    chosen = [model for model in models if model == wanted] or [model for model in models if _means(model, wanted)]
    if len(chosen) > 1:
        # A projector is named like its model; the content is checked after the download.
        chosen = [model for model in chosen if "mmproj" not in _name_parts(model)] or chosen
    if len(chosen) != 1:
        answer = f"{len(chosen)} models ({', '.join(sorted(chosen)[:6])})" if chosen else "nothing"
        raise ModelNotFound(
            f"{spec!r}: {what!r} matches {answer} there.",
            f"Files of that repository: {', '.join(names[:12]) or 'none'}.",
        )
    return sorted(models[chosen[0]])


def _means(model: str, wanted: str) -> bool:
    """Whether consecutive parts of a file name match: `UD-Q4_K_XL` in `model-UD-Q4_K_XL`."""
    parts, asked = _name_parts(model), _name_parts(wanted)
    if any(parts[start : start + len(asked)] == asked for start in range(len(parts))):
        return True
    # model_Q4_K_M: names of types contain underscores themselves, so only a complete one counts.
    return wanted.upper() in FTYPES and parts[-1].endswith(f"_{wanted.lower()}")


def _name_parts(name: str) -> list[str]:
    return re.split(r"[-./]", name.lower())
