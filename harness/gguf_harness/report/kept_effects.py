"""Adapters of a run: which quantized bases keep their effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gguf_harness.errors import visible
from gguf_harness.report.numbers import format_bytes

if TYPE_CHECKING:
    from gguf_harness.report.data import RunView

__all__ = ["smallest_base"]

_GATED: Final = "lora_effect_retained"


def smallest_base(view: RunView) -> str | None:
    """The smallest file on which an adapter keeps its effect, as a sentence; None if no gate decided."""
    verdicts = {gate["model"]: gate["verdict"] for gate in view.run.get("gates", []) if gate["metric"] == _GATED}
    tested = [model for model in view.models if model.name in verdicts and model.facts]
    if not tested:
        return None
    passing = [model for model in tested if verdicts[model.name] == "pass"]
    if not passing:
        return f"No quantized base clearly keeps the effect of its adapter ({len(tested)} tested)"
    best = min(passing, key=lambda model: float(model.facts["bytes"]))
    size = format_bytes(best.facts["bytes"])
    return f"Smallest base that keeps its adapter's effect: {visible(best.name)}, {size} ({len(tested)} tested)"
