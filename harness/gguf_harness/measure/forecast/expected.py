"""What each measurement is expected to take: its effort, times what one costs, times what was learned.

No model is opened here, and the cache is not asked: the schedule of `pytest -n` needs an answer at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import HarnessError
from gguf_harness.gguf.types import FTYPES
from gguf_harness.inputs.adapters import own_text
from gguf_harness.inputs.ladder import origin_of
from gguf_harness.inputs.models import load_info
from gguf_harness.measure.forecast.efforts import EFFORTS
from gguf_harness.measure.forecast.fitted import FITTED, SLOWER, TESTS_S, Fit
from gguf_harness.measure.forecast.needs import Asked, Piece, is_foreseen, pieces_of
from gguf_harness.measure.forecast.scales import Costs, Scale, TextSize
from gguf_harness.store.learned_durations import Durations

if TYPE_CHECKING:
    from gguf_harness.engine.settings import KVTypes
    from gguf_harness.inputs.ladder import Ladder, PlannedModel, PlannedSubject
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.prompts import PromptSet

__all__ = ["TESTS", "Expected", "Expecting", "durations_on", "seconds_by_test"]

TESTS: Final = "tests/"
_GUESSED_S: Final = 1e-10
"""Of a parameter and a token, with one thread: a guess, where no file was timed."""
_EXCLUSIVE: Final = "speed/"
"""Nothing is timed beside other processes."""


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
    """

    name: str
    subject: str
    suite: str
    file: str
    plain_s: float
    seconds: float


class Expecting:
    """Expects measurements of one session.

    Args:
        threads: that decode.
        text_bytes: length of the corpus; only called where all of it is measured.
        known: facts from headers that were read already, by name of the file.

    Attributes:
        costs: of files that were timed.
        durations: what was learned; None if nothing is known.
    """

    def __init__(self, threads: int, text_bytes: Callable[[], int], known: Mapping[str, ModelInfo]) -> None:
        self.costs: dict[PlannedModel, Costs] = {}
        self.durations: Durations | None = None
        self._threads = threads
        self._measure_text = text_bytes
        self._known = known
        self._infos: dict[PlannedModel, ModelInfo | None] = {}

    def measurement(self, piece: Piece, options: Options, texts: TextSize) -> Expected | None:
        """One of a subject; None for a file that cannot be read, whose tests say so."""
        scale = self._scale(piece.subject, options, texts)
        if scale is None:
            return None
        model = piece.subject.model
        fit, file = FITTED.get(piece.name, Fit()), self.file(model)
        effort, costs = EFFORTS[piece.name](scale), self._cost(model)
        read_s = effort.attended * scale.layers * scale.width * _slower(piece.subject.kv) * costs.weight
        plain = fit.times * (effort.at(costs) + read_s / self._threads) + fit.start_s
        seconds = plain * self._factor(piece.name, file)
        return Expected(piece.name, piece.subject.name, piece.suite, file, plain, seconds)

    def tests(self, asked: Iterable[Asked], ladder: Ladder) -> list[Expected]:
        """What tests take besides measurements: metrics, errors by bootstrap, pictures."""
        found = []
        pairs = dict.fromkeys((each.suite, each.subject or ladder.reference) for each in asked)
        for suite, subject in pairs:
            if subject is not None:
                name, plain, file = f"{TESTS}{suite}", TESTS_S[suite], self.file(subject.model)
                seconds = plain * self._factor(name, file)
                found.append(Expected(name, subject.name, suite, file, plain, seconds))
        return found

    def mixed(self, ladder: Ladder, count: int | None) -> list[PlannedSubject]:
        """The smallest candidates, of which mixtures are decoded."""
        known = [(info.bytes, each) for each in ladder.candidates if (info := self.info(each.model)) is not None]
        return [each for _, each in sorted(known, key=lambda pair: pair[0])][: len(known) if count is None else count]

    def info(self, model: PlannedModel) -> ModelInfo | None:
        """Facts from the header; of a file that is not made yet, those of its source with the bytes of its type."""
        if model not in self._infos:
            with contextlib.suppress(HarnessError):
                self._infos[model] = self._read_info(model)
        return self._infos.setdefault(model, None)

    def _read_info(self, model: PlannedModel) -> ModelInfo | None:
        origin = origin_of(model)
        if origin.source is None:
            return None
        info = self._known.get(origin.name) or load_info(origin.source)
        return info if model.quant is None else replace(info, bytes=round(info.parameters * _bits(model.quant) / 8))

    def _factor(self, name: str, file: str) -> float:
        """How much longer than expected it takes on this machine, as far as that is known."""
        known = None if self.durations is None else self.durations.factor(name, file)
        return 1.0 if known is None else known

    def _cost(self, model: PlannedModel) -> Costs:
        """Of a file, or of the one that it is made from; else of any that was timed, by the parameters; or guessed."""
        origin: PlannedModel | None = model
        while origin is not None and origin not in self.costs:
            origin = origin.base
        if origin is not None:
            return self.costs[origin]
        parameters = self._parameters(model)
        if self.costs:
            known, costs = next(iter(self.costs.items()))
            ratio = parameters / max(1, self._parameters(known))
            return replace(costs, token=costs.token * ratio, row=costs.row * ratio, step=costs.step * ratio)
        token = _GUESSED_S * parameters / self._threads
        return Costs(token=token, row=token, step=4 * token, weight=3e-9, compare=0.2 * token)

    def _parameters(self, model: PlannedModel) -> int:
        info = self.info(model)
        return 0 if info is None else info.parameters

    def file(self, model: PlannedModel) -> str:
        """What factors of a file are remembered by: what it holds, not where it is; the same before it is made."""
        info = self.info(model)
        facts = None if info is None else (info.shape, info.vocab_sha256, info.parameters, info.bytes)
        return hashlib.sha256(repr((facts, model.quant)).encode()).hexdigest()[:16]

    def _scale(self, subject: PlannedSubject, options: Options, texts: TextSize) -> Scale | None:
        info = self.info(subject.model)
        if info is None:
            return None
        # The text is only measured where its length counts.
        text_bytes = self._text_bytes if options.chunks is None else 0
        path = own_text(options, subject.adapters) if subject.adapters else None
        own_bytes = 0
        with contextlib.suppress(OSError):
            own_bytes = 0 if path is None else path.stat().st_size
        return Scale.of(info, options, texts, text_bytes, own_bytes)

    @cached_property
    def _text_bytes(self) -> int:
        return self._measure_text()


def durations_on(options: Options, machine: Mapping[str, Any]) -> Durations:
    """What was learned on a machine.

    Args:
        options: of the session.
        machine: what identifies it.
    """
    about = {"machine": machine, "threads": options.threads, "gpu": options.gpu_layers}
    name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Durations(options.cache, name)


def seconds_by_test(
    expecting: Expecting, asked: Sequence[Asked], ladder: Ladder, options: Options, prompts: PromptSet
) -> dict[Asked, float]:
    """Seconds of each test, for processes beside each other and an empty cache.

    A measurement counts for the first test that needs it, what the tests of a suite and a subject take besides for the
    first of these. Tests that nothing is known of are left out.
    """
    texts = TextSize.of(prompts)
    found: dict[Asked, float] = {}
    seen: set[Piece] = set()
    for each, pieces in pieces_of(asked, ladder, expecting.mixed(ladder, options.sensitivity)).items():
        if is_foreseen(each):
            new = [piece for piece in pieces if piece not in seen and not piece.name.startswith(_EXCLUSIVE)]
            expected = (expecting.measurement(piece, options, texts) for piece in new)
            found[each] = sum(one.seconds for one in expected if one is not None)
            seen.update(new)
    first: dict[tuple[str, str], Asked] = {}
    for each in found:
        subject = each.subject or ladder.reference
        first.setdefault((each.suite, "" if subject is None else subject.name), each)
    for one in expecting.tests(found, ladder):
        found[first[one.suite, one.subject]] += one.seconds
    return found


def _slower(kv: KVTypes | None) -> float:
    """What reading a number of a key and of a value costs more than from a plain cache; see `SLOWER`."""
    if kv is None or (kv.k == kv.v and kv.k in {"f16", "f32"}):
        return 0.0
    return SLOWER[kv.k] + SLOWER[kv.v]


def _bits(quant: str) -> float:
    """Of a weight in a type, about: the number in its name, and what scales add."""
    number = next((int(letter) for letter in quant.removeprefix("BF").removeprefix("F") if letter.isdigit()), 8)
    plain = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
    # Types of one number are in the order of their sizes.
    return plain.get(quant, number + 0.9 - 0.02 * [*FTYPES].index(quant))
