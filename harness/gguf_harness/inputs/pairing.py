"""Pair the models of two measurements: by name, by type and family, or as the user says; never by guessing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from gguf_harness.errors import OptionError

__all__ = ["FAMILY", "Identity", "Partner", "identities_of_run", "pair_up", "read_pairs", "some_names"]

FAMILY: Final = ("architecture", "parameters", "vocab_sha256")
"""Properties that all quantizations of a model share."""

_MOST_NAMES: Final = 12


@dataclass(frozen=True, slots=True)
class Identity:
    """The properties of a subject that matter for pairing.

    Attributes:
        quantization: llama.cpp's name of its type; None if the file does not say.
        family: values of `FAMILY`, as text; None if the file could not be read.
        reference: whether others are compared with it; it is then not compared with anything itself.
        variant: how it is run, if not with default settings.
    """

    name: str
    quantization: str | None
    family: tuple[str, ...] | None
    reference: bool = False
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Partner:
    """The model that a model is compared with.

    Attributes:
        earlier: name of the other model; None if there is none.
        how: how it was chosen: by name, by type and family, or by the user; "none" if there is no partner.
        reason: why, as a clause: "same type Q8_0, same family".
    """

    earlier: str | None
    how: Literal["name", "type", "told", "none"]
    reason: str


def pair_up(
    earlier: Sequence[Identity], now: Sequence[Identity], told: Mapping[str, str] | None = None
) -> dict[str, Partner]:
    """The partner of each model of this run except the reference.

    The user's choice comes first, then the name. Otherwise two models are paired if each is the only one of its type
    and family on its side. Models that have a partner by name count there too, since the second of two Q8_0 may be
    anything. References are never paired by type.

    Args:
        earlier: models of the earlier measurement.
        now: models of this one.
        told: names of earlier models by names of now.
    """
    told = told or {}
    names = {subject.name for subject in earlier}
    candidates = [subject for subject in now if not subject.reference]
    partners: dict[str, Partner] = {}
    for subject in candidates:
        if subject.name in told:
            partners[subject.name] = Partner(told[subject.name], "told", "as requested")
        elif subject.name in names:
            partners[subject.name] = Partner(subject.name, "name", "same name")
    taken = {partner.earlier: name for name, partner in partners.items()}
    old = [subject for subject in earlier if not subject.reference]
    by_type = {
        subject.name: _by_type(subject, old, candidates, taken)
        for subject in candidates
        if subject.name not in partners
    }
    return partners | by_type


def _by_type(
    subject: Identity, earlier: Sequence[Identity], now: Sequence[Identity], taken: Mapping[str | None, str]
) -> Partner:
    if subject.family is None:
        return _nobody("its file cannot be read")
    if subject.quantization is None:
        return _nobody("no model has its name, and its file does not say of which type it is")
    kind = f"{subject.quantization} of its family (same architecture, parameters and vocabulary)"
    if subject.variant is not None:
        kind = f"{kind}, run with {subject.variant}"
    here, there = (sorted(one.name for one in side if _same_type(one, subject)) for side in (now, earlier))
    if not there:
        return _nobody(f"no model has its name, and none is {kind}")
    if len(there) > 1 or len(here) > 1:
        side, several = ("there", there) if len(there) > 1 else ("here", here)
        return _nobody(f"no model has its name, and {len(several)} are {kind} {side}: {some_names(several)}")
    if there[0] in taken:
        return _nobody(f"no model has its name, and {there[0]} belongs to {taken[there[0]]}")
    return Partner(there[0], "type", f"same type {subject.quantization}, same family")


def _same_type(one: Identity, other: Identity) -> bool:
    ours, theirs = ((each.quantization, each.family, each.variant) for each in (one, other))
    return ours == theirs


def _nobody(reason: str) -> Partner:
    return Partner(None, "none", reason)


def read_pairs(specs: Sequence[str], earlier: Sequence[Identity], now: Sequence[Identity]) -> dict[str, str]:
    """Parse --gguf-baseline-map: names of earlier models by names of this run.

    Args:
        specs: OLD=NEW, or several separated by commas; a name may hold either character where only one reading
            gives names that exist.
        earlier: models of the baseline.
        now: models of this run.

    Raises:
        OptionError: wrong form, an unknown name, a reference, or two partners for one model.
    """
    told: dict[str, str] = {}
    for spec in specs:
        whole = _readings(spec, earlier, now)
        for part in [spec] if whole else spec.split(","):
            readings = whole or _readings(part, earlier, now)
            if len(readings) != 1:
                raise _unreadable(part, readings, earlier, now)
            old, new = readings[0]
            if told.setdefault(new, old) != old:
                raise OptionError(
                    f"--gguf-baseline-map gives {new} two partners: {told[new]} and {old}.", "Give one of them."
                )
    return told


def _readings(text: str, earlier: Sequence[Identity], now: Sequence[Identity]) -> list[tuple[str, str]]:
    """All ways to read a text as OLD=NEW with names of candidates."""
    sides = [{subject.name for subject in side if not subject.reference} for side in (earlier, now)]
    ends = [index for index, character in enumerate(text) if character == "="]
    readings = [(text[:end].strip(), text[end + 1 :].strip()) for end in ends]
    return [(old, new) for old, new in readings if old in sides[0] and new in sides[1]]


def _unreadable(
    text: str, readings: Sequence[tuple[str, str]], earlier: Sequence[Identity], now: Sequence[Identity]
) -> OptionError:
    old, equals, new = (part.strip() for part in text.partition("="))
    problem = f"{text!r} can be read in {len(readings)} ways"
    if not equals:
        problem = f"{text!r} is not of the form OLD=NEW"
    elif not readings:
        wrong = [
            f"{name!r} is the reference of {where}, which is compared with nothing"
            if any(subject.name == name for subject in side)
            else f"{name!r} is not a model of {where}"
            for name, side, where in ((old, earlier, "the baseline"), (new, now, "this run"))
            if not any(subject.name == name and not subject.reference for subject in side)
        ]
        problem = " and ".join(wrong) or problem
    names = (some_names(one.name for one in side if not one.reference) for side in (earlier, now))
    return OptionError(
        f"--gguf-baseline-map: {problem}.",
        "Expected OLD=NEW. Candidates of the baseline (OLD): {}. Candidates of this run (NEW): {}.".format(*names),
    )


def some_names(names: Iterable[str]) -> str:
    """Names separated by commas, at most the first few. Control characters are shown as codes."""
    listed = [name if name.isprintable() else repr(name) for name in names]
    more = len(listed) - _MOST_NAMES
    shown = ", ".join(listed[:_MOST_NAMES]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown


def identities_of_run(run: Mapping[str, Any]) -> list[Identity]:
    """Identities of the models of a run.json."""
    return [
        Identity(
            model["name"],
            model.get("quantization"),
            tuple(str(model.get(key)) for key in FAMILY),
            reference=bool(model.get("reference")),
            variant=model.get("variant"),
        )
        for model in run.get("models", [])
    ]
