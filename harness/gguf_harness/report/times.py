"""What a session was forecast to take, what it took, and what its budget left out: sentences from a stored run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gguf_harness.metrics.number_format import format_duration

__all__ = ["budget_told", "forecast_told", "wrong_forecast"]

_WRONG: Final = 0.25
_LONG_S: Final = 20.0
_CHANGED: Final = 3


def forecast_told(run: Mapping[str, Any]) -> str:
    """`4 min 10 s were forecast, and it took 4 min 32 s`; "" for a run without a forecast."""
    forecast = run.get("forecast")
    if not forecast:
        return ""
    return (
        f"{format_duration(forecast['predicted_s'])} were forecast, and it took {format_duration(forecast['actual_s'])}"
    )


def wrong_forecast(run: Mapping[str, Any]) -> str | None:
    """The same with what was most wrong, where it was wrong by more than a quarter; None where it was not.

    What was not done, because tests were skipped or failed, counts as well: the session then took less.
    """
    forecast = run.get("forecast")
    if not forecast or forecast["predicted_s"] < _LONG_S:
        return None
    if abs(forecast["actual_s"] / forecast["predicted_s"] - 1) <= _WRONG:
        return None
    rows = [(abs(row["actual_s"] - row["predicted_s"]), row) for row in forecast["measurements"]]
    rows.sort(key=lambda pair: -pair[0])
    most = "; ".join(
        f"{row['name']} {format_duration(row['actual_s'])} instead of {format_duration(row['predicted_s'])}"
        for _, row in rows[:_CHANGED]
    )
    return f"forecast: {forecast_told(run)} ({most})"


def budget_told(run: Mapping[str, Any]) -> str:
    """What a budget left out, as a sentence; "" for a run without one."""
    budget = run.get("budget")
    if not budget:
        return ""
    parts = [
        f"{each['kept']} of {'all' if each['of'] is None else each['of']} {each['what']} ({each['option']})"
        for each in budget["reduced"]
    ]
    models = dict.fromkeys(each["model"] for each in budget["left_out"] if each["model"])
    parts += [f"without {len(budget['left_out'])} tests of {', '.join(models)}"] if models else []
    return f"{format_duration(budget['seconds'])}: {'; '.join(parts) or 'nothing was left out'}"
