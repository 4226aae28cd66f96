"""The GitHub workflows among the examples, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["EXAMPLES", "read_workflow", "script_of", "steps_of"]

EXAMPLES = Path(__file__).parent.parent / "examples"


def read_workflow(name: str) -> dict[Any, Any]:
    """The content of a workflow's file."""
    content: dict[Any, Any] = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    return content


def steps_of(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    """The steps of all jobs."""
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def script_of(workflow: dict[Any, Any], name: str) -> str:
    """The script of the one step with this name."""
    (script,) = [step["run"] for step in steps_of(workflow) if step.get("name") == name]
    return str(script)
