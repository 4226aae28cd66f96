"""The forecast of a session: seconds of each measurement that the cache does not have, by suite and by subject.

Files that are given are timed (`calibration.py`), the reference first, and others as long as that takes little beside
what follows. A file that this session quantizes counts like the one that it is made from, and its factors are its own
from the second time on: it cannot be timed before there is one, and would be loaded once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import HarnessError, visible
from gguf_harness.gguf.types import FTYPES
from gguf_harness.inputs.ladder import PlannedSubject
from gguf_harness.inputs.models import load_info
from gguf_harness.measure.core import Core
from gguf_harness.measure.forecast.efforts import EFFORTS, FITTED, TESTS_S, Costs, Effort, Fit, Scale, TextSize
from gguf_harness.measure.forecast.needs import USES, Asked, Piece, is_foreseen, pieces_of
from gguf_harness.measure.forecast.stored import Inputs, Looking, Stored
from gguf_harness.metrics.number_format import format_clock, format_duration
from gguf_harness.store.learned_durations import Durations

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder, PlannedModel
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.inputs.options import Options
    from gguf_harness.measure.measurement import Job
    from gguf_harness.measure.measuring import Progress

__all__ = ["Expected", "Forecast", "Forecaster"]

_GUESSED_S: Final = 1e-10
"""Of a parameter and a token, with one thread: a guess, to see whether anything is worth timing."""
_MOST_TIMING_S, _MOST_TIMING_SHARE = 2.0, 0.03
"""Files after the first are timed while that takes no more than one of these."""
_TESTS: Final = "tests/"
_SHOWN_FROM_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What a measurement, or the tests of a suite on a subject, will take.

    Attributes:
        name: of the measurement in `EFFORTS`, or `tests/SUITE`.
        subject: its name.
        suite: that is the first to need it.
        file: what its factor is remembered by.
        plain_s: seconds by effort and cost alone, without what was learned.
        seconds: the same times the factor.
        kind: of the measurement, as jobs name it.
    """

    name: str
    subject: str
    suite: str
    file: str
    plain_s: float
    seconds: float
    kind: str


@dataclass
class Forecast:
    """What a session will take, and what it took so far.

    Attributes:
        expected: what is not in the cache, by name and subject.
        needed: what each test needs of it.
        unforeseen: suites of which nothing is known.
        begun: when, by `time.monotonic`.
    """

    expected: Mapping[tuple[str, str], Expected]
    needed: Mapping[Asked, tuple[tuple[str, str], ...]]
    unforeseen: tuple[str, ...] = ()
    timing_s: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    took: dict[tuple[str, str], float] = field(default_factory=dict)
    durations: Durations | None = None

    @property
    def seconds(self) -> float:
        """Of all."""
        return sum(each.seconds for each in self.expected.values())

    def of(self, suite: str, subject: str) -> float:
        """Seconds of a suite and a subject: what a scheduler needs to know."""
        return sum(each.seconds for each in self.expected.values() if (each.suite, each.subject) == (suite, subject))

    def left(self, asked: Asked) -> float:
        """Seconds of what a test needs and nobody has measured yet, by how wrong the forecast was so far."""
        keys = [key for key in self.needed.get(asked, ()) if key not in self.took]
        return sum(self.expected[key].seconds * self._correction(self.expected[key].name) for key in keys)

    def _correction(self, name: str) -> float:
        """Taken over expected, of measurements of a kind that are done; else of all; 1 before there is any."""
        done = [key for key in self.took if key in self.expected and self.expected[key].plain_s > 0]
        same = [key for key in done if key[0] == name] or [key for key in done if not key[0].startswith(_TESTS)]
        planned = sum(self.expected[key].seconds for key in same)
        return sum(self.took[key] for key in same) / planned if planned > 1.0 else 1.0

    def measured(self, job: Job[Any], seconds: float) -> bool:
        """Take what a job took; whether it was expected."""
        if job.topic is None:
            return False
        keys = [key for key, each in self.expected.items() if each.kind == job.measurement.kind]
        key = next((key for key in keys if key[1] == job.topic.name), None)
        if key is None:
            return False
        self.took[key] = self.took.get(key, 0.0) + seconds
        return True

    def tested(self, suite: str, subject: str, seconds: float) -> None:
        """Take what a test took besides measurements that were expected."""
        key = (f"{_TESTS}{suite}", subject)
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
        return sum(each.seconds for each in self.expected.values() if not each.name.startswith(_TESTS))

    @property
    def is_long(self) -> bool:
        """Whether it is worth a line."""
        return self.seconds >= _SHOWN_FROM_S

    def sentence(self) -> str:
        """`about 4 min 10 s: quant 1:05, heads 2:20 (of these 1:50 for Q2_K)`."""
        by_suite = _sums((each.suite, each.seconds) for each in self.expected.values())
        parts = [f"{suite} {format_clock(seconds)}{self._most(suite, seconds)}" for suite, seconds in by_suite.items()]
        more = f"; suites/{', suites/'.join(self.unforeseen)} not counted" if self.unforeseen else ""
        return f"about {format_duration(self.seconds)}: {', '.join(parts)}{more}"

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
        self._infos: dict[PlannedModel, ModelInfo | None] = {}
        self._costs: dict[PlannedModel, Costs] = {}
        self._durations: Durations | None = None
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
                self._durations = Durations(self._options.cache, self._machine(core))
            for planned in self._timed_files():
                all_s = self._forecast(self._options, self._inputs, self._asked).measuring_s
                if all_s == 0 or (self._costs and self._timing_s > max(_MOST_TIMING_S, _MOST_TIMING_SHARE * all_s)):
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
        self._costs[planned] = Costs(**core.measure(calibration_job(core, subject, all_s)))
        self._timing_s += time.monotonic() - start

    def _timed_files(self) -> list[PlannedModel]:
        """Files that are given, the reference first; and one that is only written in another type, if it is that."""
        models = dict.fromkeys(subject.model for subject in self._inputs.ladder.models)
        return [model for model in models if model.base is None]

    def _machine(self, core: Core) -> str:
        options = self._options
        about = {"machine": core.machine_key, "threads": options.threads, "gpu": options.gpu_layers}
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _forecast(self, options: Options, inputs: Inputs, asked: Sequence[Asked]) -> Forecast:
        mixed = self._mixed(inputs.ladder, options.sensitivity)
        needed = pieces_of(asked, inputs.ladder, mixed)
        texts = TextSize.of(inputs.prompts)
        self._looking.options = options
        stored = Stored(self._looking, inputs)
        expected: dict[tuple[str, str], Expected] = {}
        for piece in dict.fromkeys(piece for pieces in needed.values() for piece in pieces):
            scale = self._scale(piece.subject.model, options, texts)
            if scale is not None and not self._has(stored, piece, options, inputs):
                one = self._expect(piece, EFFORTS[piece.name](scale))
                expected[one.name, one.subject] = one
        by_test: dict[Asked, tuple[tuple[str, str], ...]] = {}
        for each, pieces in needed.items():
            keys = [(piece.name, piece.subject.name) for piece in pieces]
            by_test[each] = tuple(key for key in keys if key in expected)
        for one in self._tests(asked, inputs.ladder):
            expected[one.name, one.subject] = one
        unforeseen = tuple(dict.fromkeys(each.suite for each in asked if not is_foreseen(each)))
        return Forecast(expected, by_test, unforeseen, durations=self._durations)

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

    def _expect(self, piece: Piece, effort: Effort) -> Expected:
        model = piece.subject.model
        fit, file = FITTED.get(piece.name, Fit()), self._file(model)
        plain = fit.times * effort.at(self._cost(model)) + fit.start_s
        seconds = plain * self._factor(piece.name, file)
        return Expected(piece.name, piece.subject.name, piece.suite, file, plain, seconds, piece.kind)

    def _tests(self, asked: Sequence[Asked], ladder: Ladder) -> list[Expected]:
        """What tests take besides measurements: metrics, errors by bootstrap, pictures."""
        found = []
        pairs = dict.fromkeys((each.suite, each.subject or ladder.reference) for each in asked if is_foreseen(each))
        for suite, subject in pairs:
            if subject is not None:
                name, plain, file = f"{_TESTS}{suite}", TESTS_S[suite], self._file(subject.model)
                seconds = plain * self._factor(name, file)
                found.append(Expected(name, subject.name, suite, file, plain, seconds, name))
        return found

    def _factor(self, name: str, file: str) -> float:
        """How much longer than expected it takes on this machine, as far as that is known."""
        known = None if self._durations is None else self._durations.factor(name, file)
        return 1.0 if known is None else known

    def _cost(self, model: PlannedModel) -> Costs:
        """Of a file, or of the one that it is made from; else of any that was timed, by the parameters; or guessed."""
        origin: PlannedModel | None = model
        while origin is not None and origin not in self._costs:
            origin = origin.base
        if origin is not None:
            return self._costs[origin]
        parameters = self._parameters(model)
        if self._costs:
            known, costs = next(iter(self._costs.items()))
            ratio = parameters / max(1, self._parameters(known))
            return Costs(costs.token * ratio, costs.row * ratio, costs.step * ratio, costs.weight)
        token = _GUESSED_S * parameters / self._options.threads
        return Costs(token=token, row=token, step=4 * token, weight=3e-9)

    def _parameters(self, model: PlannedModel) -> int:
        info = self._info(model)
        return 0 if info is None else info.parameters

    def _file(self, model: PlannedModel) -> str:
        """What factors of a file are remembered by: what it holds, not where it is; the same before it is made."""
        info = self._info(model)
        facts = None if info is None else (info.shape, info.vocab_sha256, info.parameters, info.bytes)
        return hashlib.sha256(repr((facts, model.quant)).encode()).hexdigest()[:16]

    def _info(self, model: PlannedModel) -> ModelInfo | None:
        """Facts from the header; of a file that is not made yet, those of its source with the bytes of its type."""
        if model not in self._infos:
            with contextlib.suppress(HarnessError):
                self._infos[model] = _read_info(model)
        return self._infos.setdefault(model, None)

    def _scale(self, model: PlannedModel, options: Options, texts: TextSize) -> Scale | None:
        info = self._info(model)
        # The text is only measured where its length counts.
        text_bytes = len(self._inputs.corpus.text) if options.chunks is None else 0
        return None if info is None else Scale.of(info, options, texts, text_bytes)

    def _mixed(self, ladder: Ladder, count: int | None) -> list[PlannedSubject]:
        """The smallest candidates, of which mixtures are decoded."""
        known = [(info.bytes, each) for each in ladder.candidates if (info := self._info(each.model)) is not None]
        return [each for _, each in sorted(known, key=lambda pair: pair[0])][: len(known) if count is None else count]


def _read_info(model: PlannedModel) -> ModelInfo | None:
    origin = model
    while origin.base is not None:
        origin = origin.base
    if origin.source is None:
        return None
    info = load_info(origin.source)
    if model.quant is None:
        return info
    return replace(info, bytes=round(info.parameters * _bits(model.quant) / 8))


def _bits(quant: str) -> float:
    """Of a weight in a type, about: the number in its name, and what scales add."""
    number = next((int(letter) for letter in quant.removeprefix("BF").removeprefix("F") if letter.isdigit()), 8)
    plain = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
    # Types of one number are in the order of their sizes.
    return plain.get(quant, number + 0.9 - 0.02 * [*FTYPES].index(quant))
