"""What a step found, and what all of them come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

__all__ = ["FAILED", "NO_GPU", "PASSED", "Outcome", "StepResult", "exit_code"]

Verdict = Literal["pass", "fail", "not run"]

PASSED: Final = 0
FAILED: Final = 1
NO_GPU: Final = 3
"""Exit codes. 2 is argparse's, for a wrong command line."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step says of itself.

    Attributes:
        verdict: pass, fail, or not run. Nothing passes because nothing was there to look at.
        reason: one line: what was found, or why it did not run.
        numbers: what was measured, as JSON types.
        absent: of a step that did not run: what it needs is not on this machine (a second GPU, cuML, SmolLM2), so that
            nobody expects it to.
    """

    verdict: Verdict
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)
    absent: bool = False

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def outcome_of(content: Any) -> Outcome:
    """An outcome from what a child wrote.

    Raises:
        ValueError: it is none.
    """
    known = {"verdict", "reason", "numbers", "absent"}
    if not isinstance(content, dict) or set(content) != known or content["verdict"] not in ("pass", "fail", "not run"):
        raise ValueError(f"a step wrote {str(content)[:200]!r}, expected a verdict, a reason and numbers")
    return Outcome(**content)


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step with its outcome.

    Attributes:
        name: of the step.
        title: what it is about.
        outcome: what it found.
        seconds: that it took.
        limit_s: seconds that it was given; 0 if it was not started.
        device: what it was run on: "GPU", "CPU", or "CPU stand-in" where only the step itself was tried out.
        log: file with what it printed, relative to the folder of the check; None if it was not started.
    """

    name: str
    title: str
    outcome: Outcome
    seconds: float
    limit_s: float
    device: str
    log: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def exit_code(results: Iterable[StepResult]) -> int:
    """0 if every step passed that had to run; a step that is cut, or has no time, is not one that passed."""
    needed = [result for result in results if not result.outcome.absent]
    return PASSED if needed and all(result.outcome.verdict == "pass" for result in needed) else FAILED
