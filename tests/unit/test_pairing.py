"""Models belong together by name, by type and family, or as a person says; what is ambiguous is never guessed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gguf_harness.errors import OptionError
from gguf_harness.inputs.pairing import Identity, pair_up, read_pairs, some_names

FAMILY = ("llama", "1000", "aa")
OTHER = ("llama", "2000", "aa")


def _models(*facts: str, family: tuple[str, ...] | None = FAMILY) -> list[Identity]:
    """`name:type`; a star in front makes it the reference, a type `?` is not known."""
    models = []
    for text in facts:
        name, kind = text.lstrip("*").split(":")
        models.append(Identity(name, None if kind == "?" else kind, family, reference=text.startswith("*")))
    return models


def _pairs(earlier: list[Identity], now: list[Identity], **told: str) -> dict[str, str | None]:
    return {name: partner.earlier for name, partner in pair_up(earlier, now, told).items()}


def test_the_same_name_comes_first() -> None:
    """Whatever the types are: that they differ is said with the comparison."""
    assert _pairs(_models("a:Q8_0", "b:Q4_0"), _models("a:Q4_0", "b:Q8_0")) == {"a": "a", "b": "b"}


def test_versions_in_names_are_matched_by_type() -> None:
    earlier = _models("*v1-F16:F16", "v1-Q8:Q8_0", "v1-Q4:Q4_K_M")
    now = _models("*v2-F16:F16", "v2-Q8:Q8_0", "v2-Q4:Q4_K_M", "v2-Q2:Q2_K")
    partners = pair_up(earlier, now)
    assert {name: partner.earlier for name, partner in partners.items()} == {
        "v2-Q8": "v1-Q8",
        "v2-Q4": "v1-Q4",
        "v2-Q2": None,
    }
    assert partners["v2-Q8"].reason == "same type Q8_0, same family"
    assert partners["v2-Q2"].reason.startswith("no model has its name, and none is Q2_K of its family")


def test_a_reference_of_the_same_type_does_not_stand_in_the_way() -> None:
    """Headers that were never written say the same type of all files."""
    assert _pairs(_models("*v1-F32:F32", "v1-Q8:F32"), _models("*v2-F32:F32", "v2-Q8:F32")) == {"v2-Q8": "v1-Q8"}


@pytest.mark.parametrize(
    ("earlier", "now", "reason"),
    [
        (_models("a:Q8_0", "b:Q8_0"), _models("c:Q8_0"), "2 are Q8_0 of its family .* there: a, b"),
        (_models("a:Q8_0"), _models("c:Q8_0", "d:Q8_0"), "2 are Q8_0 of its family .* here: c, d"),
        # The second of two may be anything, though the first has its partner by name.
        (_models("a:Q8_0", "b:Q8_0"), _models("a:Q8_0", "c:Q8_0"), "2 are Q8_0"),
        (_models("a:Q8_0"), _models("c:?"), "its file does not say of which type"),
        (_models("a:?"), _models("c:?"), "its file does not say of which type"),
        (_models("a:Q8_0", family=OTHER), _models("c:Q8_0"), "none is Q8_0 of its family"),
        (_models("a:Q8_0"), _models("c:Q8_0", family=None), "its file cannot be read"),
        (_models("a:Q8_0"), _models("a:Q4_0", "c:Q8_0"), "a belongs to a"),
        (_models("*a:Q8_0"), _models("c:Q8_0"), "none is Q8_0"),
        ([], _models("c:Q8_0"), "none is Q8_0"),
    ],
)
def test_nothing_is_guessed(earlier: list[Identity], now: list[Identity], reason: str) -> None:
    partner = pair_up(earlier, now)[now[-1].name]
    assert partner.earlier is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(partner.reason)


def test_what_a_person_says_counts_most() -> None:
    earlier, now = _models("a:Q8_0", "b:Q8_0"), _models("a:Q8_0", "c:Q4_0")
    assert _pairs(earlier, now, a="b", c="a") == {"a": "b", "c": "a"}


_NAMES = st.sampled_from(["a", "b", "c", "d"])
_SIDES = st.lists(
    st.builds(Identity, _NAMES, st.sampled_from(["Q8_0", "Q4_0", None]), st.sampled_from([FAMILY, OTHER, None])),
    unique_by=lambda subject: subject.name,
)


@given(_SIDES, _SIDES)
@example([Identity("a", "Q8_0", FAMILY)], [Identity("a", "Q8_0", FAMILY), Identity("b", "Q8_0", FAMILY)])
def test_every_candidate_gets_an_answer_and_no_partner_is_shared(earlier: list[Identity], now: list[Identity]) -> None:
    partners = pair_up(earlier, now)
    assert sorted(partners) == sorted(subject.name for subject in now)
    used = [partner.earlier for partner in partners.values() if partner.earlier is not None]
    assert len(used) == len(set(used))
    facts = {subject.name: subject for subject in earlier}
    for subject in now:
        partner = partners[subject.name]
        assert partner.reason
        if partner.how == "type" and partner.earlier is not None:
            other = facts[partner.earlier]
            assert (other.quantization, other.family) == (subject.quantization, subject.family)
    # The order of files in a folder decides nothing.
    for order in itertools.islice(itertools.permutations(now), 6):
        assert pair_up(earlier[::-1], order) == partners


def test_a_map_is_read() -> None:
    earlier, now = _models("*r:F16", "a:Q8_0", "x=y:Q4_0", "p,q:Q4_0"), _models("*s:F16", "b:Q8_0", "c:Q4_0")
    assert read_pairs(["a=b,x=y=c"], earlier, now) == {"b": "a", "c": "x=y"}
    assert read_pairs(["a=b", " p,q = c"], earlier, now) == {"b": "a", "c": "p,q"}
    assert read_pairs(["a=b,a=c"], earlier, now) == {"b": "a", "c": "a"}
    assert read_pairs([], earlier, now) == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "'' is not of the form OLD=NEW"),
        ("a", "'a' is not of the form OLD=NEW"),
        ("a=b,", "'' is not of the form"),
        ("z=b", "'z' is not a model of the baseline"),
        ("a=z", "'z' is not a model of this run"),
        ("b=a", "'b' is not a model of the baseline and 'a' is not a model of this run"),
        ("r=b", "'r' is the reference of the baseline, which is compared with nothing"),
        ("a=s", "'s' is the reference of this run"),
        ("a=b,x=b", "gives b two partners: a and x"),
    ],
)
def test_a_wrong_map_names_both_lists(spec: str, message: str) -> None:
    earlier, now = _models("*r:F16", "a:Q8_0", "x:Q4_0"), _models("*s:F16", "b:Q8_0")
    with pytest.raises(OptionError) as error:
        read_pairs([spec], earlier, now)
    assert message in error.value.message
    if "two partners" not in message:
        assert "Candidates of the baseline (OLD): a, x. Candidates of this run (NEW): b." in error.value.hint


def test_very_many_names_are_cut() -> None:
    assert some_names([]) == "none"
    assert some_names(["a\x1b[2J", "b"]) == "'a\\x1b[2J', b"
    assert some_names(f"m{index}" for index in range(100)).endswith("m11 and 88 more")
