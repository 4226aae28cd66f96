"""Everything that the cache holds, each with the version of how it is computed."""

from __future__ import annotations

from typing import Final

__all__ = ["VERSIONS", "folders"]

VERSIONS: Final[dict[str, int]] = {
    "passes/reference": 2,
    "passes/candidate": 2,
    "passes/floor": 2,
    "passes/mixture": 2,
    "speed/speed": 2,
    "speed/served": 2,
    "texts/generations": 2,
    "texts/scores": 2,
    "attention/observed": 2,
    "attention/compared": 2,
    "attention/drift": 2,
    "heads/screen": 2,
    "heads/sweep": 2,
    "heads/values": 2,
    "heads/interchange": 2,
    "heads/removal": 2,
    "heads/path": 2,
    "layers/alone": 3,
    "layers/compared": 3,
    "layers/importance": 2,
    "layers/interchange": 2,
    "weights/errors": 2,
    "embeddings/space": 2,
    "embeddings/contexts": 2,
    "embeddings/aligned": 2,
    "analytics/project": 2,
    "analytics/cluster": 2,
    "analytics/neighbors": 2,
    "analytics/silhouette": 2,
    "analytics/cka": 2,
    "models/quantized": 2,
    "engine/description": 2,
}
"""Version of each measurement, by `folder/name`; it is part of the key of every entry.

Raise it when the same inputs would give other numbers (a corrected formula, another constant, other windows) or
arrays of another layout: what was stored before is then measured again. What is computed from an entry needs no raise:
its key holds the name of the entry that it was computed from. 1 is what was stored before there were versions; an
answer to another question could be stored there.
"""


def folders() -> list[str]:
    """Folders of the cache that hold entries, sorted."""
    return sorted({name.partition("/")[0] for name in VERSIONS})
