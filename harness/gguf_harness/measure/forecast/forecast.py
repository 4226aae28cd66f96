"""The forecast of a session: seconds of each measurement that the cache does not have, by suite and by subject.

Files that are given are timed (`calibration.py`), the reference first, and others as long as that takes little beside
what follows. A file that this session quantizes counts like the one that it is made from, and its factors are its own
from the second time on: it cannot be timed before there is one, and would be loaded once more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import HarnessError, visible
from gguf_harness.inputs.ladder import PlannedSubject
from gguf_harness.measure.core import Core
from gguf_harness.measure.forecast.expected import TESTS, Expected, Expecting, durations_on
from gguf_harness.measure.forecast.needs import USES, Asked, Piece, pieces_of
from gguf_harness.measure.forecast.scales import Costs, TextSize
from gguf_harness.measure.forecast.stored import Inputs, Looking, Stored
from gguf_harness.metrics.number_format import format_clock, format_duration

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import PlannedModel
    from gguf_harness.inputs.options import Options
    from gguf_harness.measure.measurement import Job
    from gguf_harness.measure.measuring import Progress
    from gguf_harness.store.learned_durations import Durations

__all__ = ["Forecast", "Forecaster"]

_MOST_TIMING_S, _MOST_TIMING_SHARE = 2.0, 0.03
"""Files after the first are timed while that takes no more than one of these."""
_SHOWN_FROM_S: Final = 20.0


@dataclass
class Forecast:
    """What a session will take, and what it took so far.

    Attributes:
        expected: what is not in the cache, by name and subject.
        needed: what each test needs of it.
        begun: when, by `time.monotonic`.
    """

    expected: Mapping[tuple[str, str], Expected]
    needed: Mapping[Asked, tuple[tuple[str, str], ...]]
    timing_s: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    took: dict[tuple[str, str], float] = field(default_factory=dict)
    durations: Durations | None = None

    @property
    def seconds(self) -> float:
        """Of all."""
        return sum(each.seconds for each in self.expected.values())

    def left(self, asked: Asked) -> float:
        """Seconds of what a test needs and nobody has measured yet, by how wrong the forecast was so far."""
        keys = [key for key in self.needed.get(asked, ()) if key not in self.took]
        return sum(self.expected[key].seconds * self._correction(self.expected[key].name) for key in keys)

    def _correction(self, name: str) -> float:
        """Taken over expected, of measurements of a kind that are done; else of all; 1 before there is any."""
        done = [key for key in self.took if key in self.expected and self.expected[key].plain_s > 0]
        same = [key for key in done if key[0] == name] or [key for key in done if not key[0].startswith(TESTS)]
        planned = sum(self.expected[key].seconds for key in same)
        return sum(self.took[key] for key in same) / planned if planned > 1.0 else 1.0

    def measured(self, job: Job[Any], seconds: float) -> bool:
        """Take what a job took; whether it was expected."""
        key = (job.name, "" if job.topic is None else job.topic.name)
        if key not in self.expected:
            return False
        self.took[key] = self.took.get(key, 0.0) + seconds
        return True

    def tested(self, suite: str, subject: str, seconds: float) -> None:
        """Take what a test took besides measurements that were expected."""
        key = (f"{TESTS}{suite}", subject)
        if key in self.expected:
            self.took[key] = self.took.get(key, 0.0) + seconds

    def learn(self) -> None:
        """Keep what was measured, for later forecasts. Only at the end: some measurements consist of many jobs."""
        for key, seconds in self.took.items():
            each = self.expected[key]
            if self.durations is not None and each.plain_s > 0:
                self.durations.add(each.name, each.file, each.plain_s, seconds)

    # -- words --------------------------------------------------------------------------------------------------------

    @property
    def measuring_s(self) -> float:
        """The same without what tests take besides measurements."""
        return sum(each.seconds for each in self.expected.values() if not each.name.startswith(TESTS))

    @property
    def is_long(self) -> bool:
        """Whether it is worth a line."""
        return self.seconds >= _SHOWN_FROM_S

    def sentence(self) -> str:
        """`about 4 min 10 s: quant 1:05, heads 2:20 (of these 1:50 for Q2_K)`."""
        by_suite = _sums((each.suite, each.seconds) for each in self.expected.values())
        parts = [f"{suite} {format_clock(seconds)}{self._most(suite, seconds)}" for suite, seconds in by_suite.items()]
        return f"about {format_duration(self.seconds)}: {', '.join(parts)}"

    def _most(self, suite: str, seconds: float) -> str:
        by_subject = _sums((each.subject, each.seconds) for each in self.expected.values() if each.suite == suite)
        subject, most = max(by_subject.items(), key=lambda pair: pair[1])
        if len(by_subject) < 2 or most < 0.5 * seconds or seconds < _SHOWN_FROM_S:
            return ""
        return f" (of these {format_clock(most)} for {visible(subject)})"

    def to_json(self, now: float | None = None) -> dict[str, Any]:
        """Predicted and actual seconds, of all and by kind of measurement."""
        names = dict.fromkeys(each.name for each in self.expected.values())
        rows = []
        for name in names:
            keys = [key for key in self.expected if key[0] == name]
            rows.append(
                {
                    "name": name,
                    "predicted_s": round(sum(self.expected[key].seconds for key in keys), 3),
                    "actual_s": round(sum(self.took.get(key, 0.0) for key in keys), 3),
                }
            )
        actual = (time.monotonic() if now is None else now) - self.begun
        return {
            "predicted_s": round(self.seconds, 3),
            "actual_s": round(actual, 3),
            "timing_s": round(self.timing_s, 3),
            "measurements": rows,
        }


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, value in pairs:
        total[name] = total.get(name, 0.0) + value
    return total


class Forecaster:
    """Makes forecasts of one session, for any choice of options.

    Args:
        options: of the session.
        inputs: what is measured.
        asked: the collected tests, in their order.
        progress: shows what is timed.
        session: the session's name.
    """

    def __init__(
        self, options: Options, inputs: Inputs, asked: Sequence[Asked], progress: Progress, session: str
    ) -> None:
        self._options = options
        self._inputs = inputs
        self._asked = asked
        self._progress = progress
        self._session = session
        self._expecting = Expecting(options.threads, lambda: len(inputs.corpus.text), inputs.ladder.infos)
        self._timing_s = 0.0
        self._looking = Looking(options, progress, session)
        self._found: dict[tuple[object, ...], bool] = {}

    def rough(self) -> float:
        """Seconds of measurements by the number of parameters alone, without timing anything."""
        return self._forecast(self._options, self._inputs, self._asked).measuring_s

    def time_files(self) -> None:
        """Time the given files: the reference, and others while that takes little beside what is to be measured."""
        core = Core(self._options, self._progress, self._session)
        try:
            with contextlib.suppress(HarnessError):
                self._expecting.durations = durations_on(self._options, core.machine_key)
            for planned in self._timed_files():
                all_s = self._forecast(self._options, self._inputs, self._asked).measuring_s
                if all_s == 0 or (
                    self._expecting.costs and self._timing_s > max(_MOST_TIMING_S, _MOST_TIMING_SHARE * all_s)
                ):
                    break
                # A model that cannot be loaded fails its own tests.
                with contextlib.suppress(HarnessError):
                    self._time(core, planned, all_s)
        finally:
            core.close()
            # A file that was made to be timed may have results from before.
            self._found.clear()

    def forecast(
        self, options: Options | None = None, inputs: Inputs | None = None, asked: Sequence[Asked] | None = None
    ) -> Forecast:
        """What the session takes, or would take with other options, inputs and tests."""
        made = self._forecast(options or self._options, inputs or self._inputs, asked or self._asked)
        made.timing_s = self._timing_s
        return made

    def _time(self, core: Core, planned: PlannedModel, all_s: float) -> None:
        from gguf_harness.measure.forecast.calibration import calibration_job

        subject = core.subject(PlannedSubject(planned))
        start = time.monotonic()
        self._expecting.costs[planned] = Costs(**core.measure(calibration_job(core, subject, all_s)))
        self._timing_s += time.monotonic() - start

    def _timed_files(self) -> list[PlannedModel]:
        """Files that are given, the reference first; and one that is only written in another type, if it is that."""
        models = dict.fromkeys(subject.model for subject in self._inputs.ladder.models)
        return [model for model in models if model.base is None]

    def _forecast(self, options: Options, inputs: Inputs, asked: Sequence[Asked]) -> Forecast:
        needed = pieces_of(asked, inputs.ladder, self._expecting.mixed(inputs.ladder, options.sensitivity))
        texts = TextSize.of(inputs.prompts)
        self._looking.options = options
        stored = Stored(self._looking, inputs)
        expected: dict[tuple[str, str], Expected] = {}
        for piece in dict.fromkeys(piece for pieces in needed.values() for piece in pieces):
            one = self._expecting.measurement(piece, options, texts)
            if one is not None and not self._has(stored, piece, options, inputs):
                expected[one.name, one.subject] = one
        by_test: dict[Asked, tuple[tuple[str, str], ...]] = {}
        for each, pieces in needed.items():
            keys = [(piece.name, piece.subject.name) for piece in pieces]
            by_test[each] = tuple(key for key in keys if key in expected)
        for one in self._expecting.tests(asked, inputs.ladder):
            expected[one.name, one.subject] = one
        return Forecast(expected, by_test, durations=self._expecting.durations)

    def _has(self, stored: Stored, piece: Piece, options: Options, inputs: Inputs) -> bool:
        """Whether the cache has it; asked once for all choices that make no difference to it."""
        values = {"prompts": inputs.prompts.sha256}
        uses = (use for start, uses in USES.items() if piece.name.startswith(start) for use in uses)
        key = (piece.name, piece.subject, *(values.get(use) or getattr(options, use) for use in uses))
        if key not in self._found:
            self._found[key] = stored.has(piece)
        return self._found[key]

    def close(self) -> None:
        """Stop what was started to look into the cache."""
        self._looking.close()
