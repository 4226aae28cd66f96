"""State of a session, kept in pytest's stash for hooks and fixtures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from gguf_harness.errors import HarnessError
from gguf_harness.inputs.options import Options, read_options
from gguf_harness.store.run_draft import RunDraft

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_harness.cluster.connection import Cluster
    from gguf_harness.inputs.ladder import Ladder
    from gguf_harness.inputs.pairing import Partner
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.words import WordList
    from gguf_harness.judge.advice import TextSize
    from gguf_harness.judge.baselines import Baseline
    from gguf_harness.judge.gates import Gate
    from gguf_harness.judge.regressions import Comparison
    from gguf_harness.measure.passes.calls import TextRead
    from gguf_harness.metrics.records import Row
    from gguf_harness.metrics.windows import WindowLimit
    from gguf_harness.pytest_plugin.foresight import Foresight
    from gguf_harness.report.charts import ChartBuilder

__all__ = ["BASELINE_PROPERTY", "ESTIMATE_PROPERTY", "FINDINGS", "GATE_PROPERTY", "STATE", "State", "only_plans"]

ESTIMATE_PROPERTY: Final = "gguf_estimate"
GATE_PROPERTY: Final = "gguf_gate"
BASELINE_PROPERTY: Final = "gguf_baseline"
"""Names in `user_properties`: results travel with the test reports, also through xdist."""
FINDINGS: Final = frozenset({ESTIMATE_PROPERTY, GATE_PROPERTY, BASELINE_PROPERTY})


@dataclass
class State:
    """State of a session.

    Attributes:
        run_id: shared by all processes of a session.
        options: read when first needed.
        ladder: planned when first needed.
        prompts: read when first needed.
        words: read when first needed.
        gates: read when first needed.
        suites: bundled suites from which tests were collected, selected or not.
        comparisons: number of collected tests that compare with the baseline.
        divergence: whether a collected test compares a candidate with its reference: then the reference's distributions
            are kept.
        problem: why there are no models; found while collecting and raised after it.
        draft: the run, in the reporting process; None until one of our tests was reported.
        text_read: facts about the corpus; None if nothing reads it.
        command: what the person typed.
        cluster: of --gguf-ray; None without it, and in processes of xdist until they measure.
        charts: functions that draw charts of other plugins, by plugin.
        shard: with --gguf-shard, once tests are collected: which part is measured, and the plan of the whole.
        is_ordered: whether the tests were collected without a problem, and are in order.
        started: when the session began, by `time.monotonic`.
        foresight: how long it will take, and what its budget leaves out; None for a session that is not foreseen.
        whole_ladder: the models as they were asked for, where a budget leaves some out; None without one.
    """

    config: pytest.Config
    run_id: str
    process: str = "main"
    divergence: bool = False
    comparisons: int = 0
    suites: set[str] = field(default_factory=set)
    problem: HarnessError | None = None
    draft: RunDraft | None = None
    report: Path | None = None
    saved_baseline: Path | None = None
    text_read: TextRead | None = None
    command: list[str] = field(default_factory=list)
    charts: dict[str, list[ChartBuilder]] = field(default_factory=dict)
    shard: dict[str, Any] | None = None
    cluster: Cluster | None = None
    is_ordered: bool = False
    started: float = field(default_factory=time.monotonic)
    foresight: Foresight | None = None
    whole_ladder: Ladder | None = None
    _extended: bool = False

    def extend(self) -> None:
        """Add metrics and charts of other plugins, once it is known that the session uses the harness.

        Raises:
            pytest.UsageError: a plugin returned something invalid.
        """
        from gguf_harness.pytest_plugin.extensions import add_charts, add_metrics

        if not self._extended:
            self._extended = True
            add_metrics(self.config)
            self.charts = add_charts(self.config)

    @cached_property
    def options(self) -> Options:
        """The checked options."""
        return read_options(self.config)

    @cached_property
    def ladder(self) -> Ladder:
        """The models of the session."""
        from gguf_harness.inputs.ladder import plan_ladder

        return plan_ladder(self.options)

    @property
    def planned_ladder(self) -> Ladder:
        """The models over which verdicts are: with those that a budget leaves out."""
        return self.whole_ladder or self.ladder

    @cached_property
    def prompts(self) -> PromptSet:
        """The prompts of the session."""
        from gguf_harness.inputs.prompts import load_prompts

        return load_prompts(self.options.prompts)

    @cached_property
    def words(self) -> WordList:
        """The words whose embeddings are compared."""
        from gguf_harness.inputs.words import load_words

        return load_words(self.options.words)

    @cached_property
    def gates(self) -> dict[str, Gate]:
        """Limits by metric: the built-in ones, overridden by those of --gguf-gates."""
        from gguf_harness.judge.gates import load_gates

        return load_gates(self.options.gates)

    @property
    def text(self) -> TextSize | None:
        """Size of the text that windows are taken from, once known."""
        from gguf_harness.judge.advice import TextSize

        read = self.text_read
        if read is None or read.windows is None:
            return None
        return TextSize(read.windows, read.text_bytes, read.window_bytes, self.options.logprobs_limit)

    @property
    def beyond(self) -> dict[str, str]:
        """Notes on numbers measured beyond a subject's context, by subject."""
        return {} if self.text_read is None else self.text_read.beyond

    @property
    def early_limits(self) -> tuple[WindowLimit, ...]:
        """Limits that stop a candidate's pass over the corpus once decided; empty if passes must not stop."""
        from gguf_harness.judge.gates import early_limits

        return early_limits(self.gates.values()) if self.options.until_decided else ()

    @cached_property
    def baseline(self) -> Baseline | None:
        """The checked baseline of --gguf-baseline."""
        from gguf_harness.judge.baseline_reader import load_baseline

        return None if self.options.baseline is None else load_baseline(self.options.baseline)

    @cached_property
    def partners(self) -> dict[str, Partner]:
        """The partner of each candidate in the baseline; empty without a baseline."""
        from gguf_harness.inputs.ladder import identities_of
        from gguf_harness.inputs.pairing import pair_up, read_pairs
        from gguf_harness.judge.plan import suites_under

        earlier = self.baseline.identities if self.baseline is not None else []
        now = identities_of(self.ladder, suites_under(self.config.args)) if earlier else []
        return pair_up(earlier, now, read_pairs(self.options.baseline_map, earlier, now))

    def compare(self, row: Row, gates: Mapping[str, Gate]) -> Comparison | None:
        """Compare a row of the run directly with the baseline; None if one of them has no such value.

        Suites other than quant need no separate test for this: a worse value fails the test that recorded it, at the
        end of the run, when all comparisons are known.
        """
        from gguf_harness.judge.regressions import CONFIDENCE, compare_row, is_compared

        partner = self.partners.get(row.model) if self.baseline is not None else None
        if self.baseline is None or partner is None or partner.earlier is None or not is_compared(row):
            return None
        confidence = gates[row.metric].confidence if row.metric in gates else CONFIDENCE
        return compare_row(row, self.baseline, partner.earlier, confidence, self.baseline_settings)

    @property
    def baseline_settings(self) -> dict[str, str]:
        """Settings, besides models, that estimates of prompts, words, layers and heads depend on."""
        options = self.options
        settings = {name: getattr(options, name) for name in ("gen_tokens", "layers", "head_windows", "head_limit")}
        hashes = {"prompts": self.prompts.sha256, "words": self.words.sha256}
        return hashes | {name: str(value) for name, value in settings.items()}

    @property
    def run_folder(self) -> Path:
        """Folder of this session's run."""
        return self.options.results / "runs" / self.run_id


STATE: Final = pytest.StashKey[State]()


def only_plans(config: pytest.Config) -> bool:
    """Whether pytest only shows what it would run: nothing is measured or reported."""
    return any(config.getoption(name, False) for name in ("collectonly", "setuponly", "setupplan"))
