"""The plan of a session: which model is the reference, which are candidates, and what must be quantized first."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from gguf_harness.engine.settings import DEFAULT_KV, KVTypes
from gguf_harness.errors import HarnessError, ModelNotFound, OptionError
from gguf_harness.inputs import adapters as lora
from gguf_harness.inputs.cache_limits import why_not
from gguf_harness.inputs.models import ModelInfo, choose_reference, load_info, shape_difference
from gguf_harness.inputs.pairing import FAMILY, Identity
from gguf_harness.inputs.sources import ModelSource, distinct_name, folded_name, select
from gguf_harness.inputs.subjects import describe_variant, subject_name

if TYPE_CHECKING:
    from gguf_harness.engine.settings import Adapter, RopeScaling, SessionSettings
    from gguf_harness.inputs.options import Options

__all__ = ["Ladder", "PlannedModel", "PlannedSubject", "identities_of", "origin_of", "plan_ladder", "quantized_name"]

_PRECISION: Final = re.compile(r"[-_.](F32|F16|BF16)$", re.IGNORECASE)
_EXPANDED_BITS: Final = 16.0
_GRID: Final = tuple(KVTypes(k, v) for k in ("f16", "q8_0", "q4_0") for v in ("f16", "q8_0", "q4_0"))
"""Types of the cache by default, on the reference; those of one type for both on the first and last candidate."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model of a session, which may not be on disk yet.

    Attributes:
        name: as shown in tests, tables and results.
        source: existing files; None if it is quantized from `base`.
        base: the model that it is quantized from.
        quant: the type that it is quantized to; None to use the source as it is.
    """

    name: str
    source: ModelSource | None = None
    base: PlannedModel | None = None
    quant: str | None = None

    def __repr__(self) -> str:
        """Short: pytest shows it in messages of failed assertions."""
        return f"<planned model {self.name}>"


@dataclass(frozen=True, slots=True)
class PlannedSubject:
    """A model of a session and how it will be run.

    Attributes:
        kv: types of the K and the V cache, if they differ from the session's.
        adapters: LoRA adapters that it is run with.
        rope: how positions are scaled, if not as the file says.
    """

    model: PlannedModel
    kv: KVTypes | None = None
    adapters: tuple[Adapter, ...] = ()
    rope: RopeScaling | None = None

    @property
    def variant(self) -> str | None:
        """What differs from the settings of the session; see `describe_variant`."""
        return describe_variant(self.kv, self.adapters, self.rope)

    @property
    def name(self) -> str:
        """As shown in tests, tables and results: `tiny-Q4_K_M [kv=q8_0/q4_0]`."""
        return subject_name(self.model.name, self.variant)

    def settings(self, session: SessionSettings) -> SessionSettings:
        """How it is run in a session with such settings."""
        own = replace(session, adapters=self.adapters, rope=self.rope)
        return own if self.kv is None else own.with_kv(self.kv)

    def __repr__(self) -> str:
        """Short: pytest shows it in messages of failed assertions."""
        return f"<planned subject {self.name}>"


@dataclass(frozen=True, slots=True)
class Ladder:
    """A reference and the candidates that are compared with it.

    Attributes:
        reason: a sentence that says why this is the reference.
        asked_for: whether --reference names it.
        notes: sentences on files that were left out, renamed, or do not match the reference.
        cached: files with other types of the KV cache, for suites/kv; with --gguf-kv they are candidates as well.
        impossible: those of them that llama.cpp cannot run, each with the reason as a sentence.
        full_kv: types of the cache that these are compared with.
        adapted: files with LoRA adapters, for suites/lora.
        infos: facts from the headers of the given files that are valid, by name.
    """

    reference: PlannedSubject | None
    candidates: tuple[PlannedSubject, ...]
    reason: str
    asked_for: bool = False
    notes: tuple[str, ...] = ()
    cached: tuple[PlannedSubject, ...] = ()
    impossible: tuple[tuple[PlannedSubject, str], ...] = ()
    full_kv: KVTypes = DEFAULT_KV
    adapted: tuple[PlannedSubject, ...] = ()
    infos: Mapping[str, ModelInfo] = field(default_factory=dict, hash=False)

    @property
    def models(self) -> tuple[PlannedSubject, ...]:
        """The reference first, then the candidates."""
        return (*((self.reference,) if self.reference else ()), *self.candidates)

    @property
    def adapted_references(self) -> tuple[PlannedSubject, ...]:
        """The reference with adapters."""
        return tuple(each for each in self.adapted if self.reference is not None and each.model is self.reference.model)

    @property
    def adapted_candidates(self) -> tuple[PlannedSubject, ...]:
        """All other files with adapters."""
        return tuple(each for each in self.adapted if each not in self.adapted_references)

    @property
    def subjects(self) -> tuple[PlannedSubject, ...]:
        """All that the tests of the session can be about, each once; those of one file together."""
        known = list(dict.fromkeys((*self.models, *self.cached, *self.adapted)))
        files = {model: index for index, model in reversed(list(enumerate(subject.model for subject in known)))}
        return tuple(sorted(known, key=lambda subject: files[subject.model]))

    def with_full_cache(self, planned: PlannedSubject) -> PlannedSubject:
        """The same, with the types of the KV cache that others are compared with."""
        return replace(planned, kv=None if self.full_kv == DEFAULT_KV else self.full_kv)


def plan_ladder(options: Options) -> Ladder:
    """Find the models and the reference. Reads headers only.

    An invalid file stays a candidate: its own tests report what is wrong with it.

    Raises:
        ModelNotFound: a spec matches nothing, or --reference matches several models.
    """
    named = select([*options.models, *([options.reference] if options.reference else [])])
    planned = _planned(named.models)
    infos = _infos(named.models, planned)
    if options.reference:
        asked = select([options.reference]).models
        if len(asked) != 1:
            raise ModelNotFound(
                f"--reference={options.reference} matches {len(asked)} models.", "Give exactly one reference."
            )
        reference: PlannedModel | None = planned[asked[0].identity]
        reason = f"{planned[asked[0].identity].name} is the reference, as requested."
    elif infos:
        best, reason = choose_reference(infos)
        reference = next(model for model in planned.values() if model.name == best.name)
    else:
        reference, reason = None, "No valid model was given, so there is no reference."
    asked_for = options.reference is not None
    sizes = {info.name: info for info in infos}
    quantized, renamed = _quantized(reference, options.quants, list(planned.values())) if reference else ((), [])
    others = (*(model for model in planned.values() if model is not reference), *quantized)
    compared = _notes_on_candidates(reference, infos, asked_for=asked_for) if reference else []
    cached = _cached(reference, others, options)
    refused = {subject: why for subject in cached if (why := _why_not(subject, sizes, options)) is not None}
    return Ladder(
        None if reference is None else PlannedSubject(reference),
        _candidates(reference, others, options),
        reason,
        asked_for,
        (*named.notes, *renamed, *compared),
        cached=tuple(subject for subject in cached if subject not in refused),
        impossible=tuple(refused.items()),
        full_kv=options.kv_reference,
        adapted=_adapted(reference, others, lora.find_adapters(options, infos), infos),
        infos=sizes,
    )


def _candidates(
    reference: PlannedModel | None, others: Sequence[PlannedModel], options: Options
) -> tuple[PlannedSubject, ...]:
    """Each model with each pair of cache types and scaling; those of one file together: it is loaded once."""
    models = [*((reference,) if reference and (options.kv or options.rope) else ()), *others]
    found = (
        PlannedSubject(model, kv, rope=rope)
        for model in models
        for kv in _pairs(model, reference, others, options.kv)
        for rope in options.rope or (None,)
    )
    # The reference with its own settings is not a candidate.
    plain = None if reference is None else PlannedSubject(reference)
    return tuple(subject for subject in found if subject != plain)


def _pairs(
    model: PlannedModel, reference: PlannedModel | None, others: Sequence[PlannedModel], kv: Sequence[KVTypes] | str
) -> list[KVTypes | None]:
    """Types of the cache that a model is run with; None for f16/f16."""
    if isinstance(kv, str):
        ends = model in {others[0], others[-1]} if others else False
        kv = (
            _GRID
            if model is reference
            else [pair for pair in _GRID if pair == DEFAULT_KV or (ends and pair.k == pair.v)]
        )
    return [None if pair == DEFAULT_KV else pair for pair in kv] or [None]


def _cached(
    reference: PlannedModel | None, others: Sequence[PlannedModel], options: Options
) -> tuple[PlannedSubject, ...]:
    """Each model with each pair of cache types but the one that they are compared with."""
    full = None if options.kv_reference == DEFAULT_KV else options.kv_reference
    return tuple(
        PlannedSubject(model, pair)
        for model in (*((reference,) if reference else ()), *others)
        for pair in _pairs(model, reference, others, options.kv or "default")
        if pair != full
    )


def _why_not(subject: PlannedSubject, infos: Mapping[str, ModelInfo], options: Options) -> str | None:
    """Why llama.cpp cannot run a file with these types of its KV cache, by its header; None if it can."""
    try:
        settings = subject.settings(options.session_settings)
    except OptionError as error:
        return error.message
    info = infos.get(origin_of(subject.model).name)
    return None if info is None else why_not(info, settings)


def _adapted(
    reference: PlannedModel | None,
    others: Sequence[PlannedModel],
    applied: Sequence[tuple[Adapter, ...]],
    infos: Sequence[ModelInfo],
) -> tuple[PlannedSubject, ...]:
    """Each model with each group of adapters that fits it. A model that cannot be read is left out."""
    fitting = {info.name: [adapters for adapters in applied if lora.why_not(adapters, info) is None] for info in infos}
    return tuple(
        PlannedSubject(model, adapters=adapters)
        for model in (*((reference,) if reference else ()), *others)
        for adapters in fitting.get((model.base or model).name, [])
    )


def _planned(sources: Sequence[ModelSource]) -> dict[tuple[object, ...], PlannedModel]:
    """A model for each source, by its identity. Existing files get their names before quantized models get theirs."""
    taken = {folded_name(source.name) for source in sources if source.expand_to is None}
    planned = {}
    for source in sources:
        name = source.name
        if source.expand_to is not None:
            name = _name_of_made(f"{source.name}-{source.expand_to}", taken)
            taken.add(folded_name(name))
        planned[source.identity] = PlannedModel(name, source, quant=source.expand_to)
    return planned


def _infos(sources: Sequence[ModelSource], planned: dict[tuple[object, ...], PlannedModel]) -> list[ModelInfo]:
    infos: list[ModelInfo] = []
    for source in sources:
        try:
            info = replace(load_info(source), name=planned[source.identity].name)
        except HarnessError:
            continue  # its tests fail with this error; the others can still be compared
        if source.expand_to:
            info = replace(
                info, quantization=source.expand_to, bits_per_weight=_EXPANDED_BITS, precision=_EXPANDED_BITS
            )
        infos.append(info)
    return infos


def _quantized(
    reference: PlannedModel, quants: tuple[str, ...], others: Sequence[PlannedModel]
) -> tuple[tuple[PlannedModel, ...], list[str]]:
    """Models to quantize from the reference, and notes on names that existing files already have."""
    taken = {folded_name(model.name) for model in others}
    models: list[PlannedModel] = []
    notes: list[str] = []
    for quant in quants:
        wanted = quantized_name(reference.name, quant)
        name = _name_of_made(wanted, taken)
        taken.add(folded_name(name))
        models.append(PlannedModel(name, base=reference, quant=quant))
        if name != wanted:
            notes.append(
                f"{wanted} is the name of a given file; the model quantized from {reference.name} is called {name!r}."
            )
    return tuple(models), notes


def _name_of_made(wanted: str, taken: set[str]) -> str:
    """A name for a model quantized in this session: a given file of the same name keeps its name."""
    return distinct_name(wanted if folded_name(wanted) not in taken else f"{wanted} (quantized here)", taken)


def _notes_on_candidates(reference: PlannedModel, infos: Sequence[ModelInfo], *, asked_for: bool) -> list[str]:
    """Notes on anything unexpected in the comparison with this reference."""
    base = next((info for info in infos if info.name == reference.name), None)
    if base is None:
        return []
    notes: list[str] = []
    for info in infos:
        difference = shape_difference(info, base)
        if info.vocab_sha256 != base.vocab_sha256:
            notes.append(f"{info.name} is not compared with {base.name}: they have different vocabularies.")
        elif difference is not None and asked_for:
            notes.append(f"{info.name} is compared with {base.name} because --reference asks for it: {difference}.")
        elif difference is not None:
            notes.append(f"{info.name} is not compared with {base.name}: {difference}.")
        elif info.precision > base.precision:
            notes.append(
                f"{info.name} is more precise than its reference: {info.bits_per_weight:.2f} bits per weight,"
                f" {base.name} has {base.bits_per_weight:.2f}. Differences are not errors of {info.name} alone."
            )
    return notes


def quantized_name(name: str, quant: str) -> str:
    """`model-F16` quantized to Q4_K_M is `model-Q4_K_M`."""
    return f"{_PRECISION.sub('', name)}-{quant}"


def identities_of(ladder: Ladder, suites: Collection[str]) -> list[Identity]:
    """Identities of the subjects of a session, for pairing with earlier ones. Reads headers only.

    Args:
        ladder: its subjects.
        suites: those that may run: others have subjects of their own, which then are nobody's.
    """
    own = (*(ladder.cached if "kv" in suites else ()), *(ladder.adapted if "lora" in suites else ()))
    subjects = [subject for subject in ladder.subjects if subject in {*ladder.models, *own}]
    return [_identity(planned, reference=planned is ladder.reference) for planned in subjects]


def origin_of(model: PlannedModel) -> PlannedModel:
    """The model whose file there is already, from which this one is made."""
    while model.base is not None:
        model = model.base
    return model


def _identity(planned: PlannedSubject, *, reference: bool) -> Identity:
    origin = origin_of(planned.model)
    try:
        info = load_info(origin.source) if origin.source is not None else None
    except HarnessError:
        info = None  # its tests fail with this error
    family = None if info is None else tuple(str(getattr(info, key)) for key in FAMILY)
    quantization = planned.model.quant or (info.quantization if info else None)
    return Identity(planned.name, quantization, family, reference, planned.variant)
