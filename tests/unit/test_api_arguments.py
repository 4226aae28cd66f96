"""Arguments of the API: wrong types are TypeErrors that say what was expected, wrong values have a hint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gguf_harness as gh
from gguf_harness.api.arguments import chosen, place_of, prompt_of, whole
from gguf_harness.errors import HarnessError, OptionError, PromptError


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), st.lists(st.integers(0, 9)))
def test_the_same_choice_is_the_same_ablation(heads: list[tuple[int, int]], layers: list[int]) -> None:
    made = gh.off(heads=heads, layers=layers)
    again = gh.off(heads=[*reversed(heads), *heads], layers=[*reversed(layers)] * 2)
    assert made == again
    assert hash(made) == hash(again)
    assert set(made.heads) == set(heads)
    assert set(made.layers) == set(layers)


@given(st.integers(1, 40), st.integers(-60, 60))
def test_places_are_those_of_a_list(count: int, place: int) -> None:
    if -count <= place < count:
        assert place_of(place, count) == range(count)[place]
    else:
        with pytest.raises(OptionError, match=f"has {count} tokens, and none at {place}"):
            place_of(place, count)


WRONG: list[tuple[Any, str]] = [
    (lambda: gh.open(3), r"a model is a str or a Path.*'tiny'.*got int"),  # type: ignore[arg-type]
    (lambda: gh.open("tiny", threads="2"), r"threads is a whole number, got '2' \(str\)"),  # type: ignore[arg-type]
    (lambda: gh.open("tiny", gpu=True), r"gpu is a whole number, got True \(bool\)"),
    (lambda: gh.off(heads=[1]), r"a head is a pair of layer and head such as \(1, 1\), got 1 \(int\)"),  # type: ignore[list-item]
    (lambda: gh.off(heads=(1, 1)), r"a head is a pair"),  # type: ignore[arg-type]
    (lambda: gh.off(heads="1.1"), r"heads is a list of pairs.*got '1.1' \(str\)"),  # type: ignore[arg-type]
    (lambda: gh.off(layers=2), r"layers is a list of numbers, got 2 \(int\)"),  # type: ignore[arg-type]
    (lambda: gh.off(layers=[0.5]), r"a layer is a whole number, got 0.5 \(float\)"),  # type: ignore[list-item]
    (lambda: gh.compare("tiny", "tiny", "x", off=[(1, 1)]), r"off is what gguf_harness.off.*got list"),  # type: ignore[arg-type]
    (lambda: gh.compare("tiny", None, "x"), r"a model is a str or a Path.*got NoneType"),  # type: ignore[arg-type]
    (lambda: gh.quantize("tiny", 2, "."), r"quant is the name of a type such as 'Q4_K_M', got int"),  # type: ignore[arg-type]
    (lambda: gh.quantize("tiny", "Q2_K", 3), r"folder is a str or a Path, got int"),  # type: ignore[arg-type]
    (lambda: gh.side_by_side("x"), r"a picture is what .plot\(\) returns, got str"),  # type: ignore[arg-type]
    (gh.side_by_side, "one picture at least"),
    (lambda: prompt_of(3), r"a prompt is a text, a chat.*got int"),
    (lambda: prompt_of(b"text"), r"a prompt is a text.*got bytes"),
    (lambda: prompt_of([1, "two"]), r"a prompt is a text.*got a list of int and str"),
    (lambda: prompt_of({"role": "user"}), r"a prompt is a text.*got dict"),
    (lambda: prompt_of([{"role": "user", "content": 3}]), "role and content of a message are texts"),
    (lambda: chosen(3, range(4), "layer"), r"layers is a list of numbers such as \[0, 2\], got 3 \(int\)"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_type_is_told_with_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_a_wrong_value_is_an_error_with_a_hint() -> None:
    for call in (
        lambda: gh.open("tiny", threads=0),
        lambda: gh.open("no-such-model.gguf"),
        lambda: gh.quantize("tiny", "Q9_Z", "."),
        lambda: gh.quantize("tiny", "Q2_K,Q3_K", "."),
        lambda: gh.quantize("tiny", "Q2_K", ".", imatrix="no-such-file"),
        lambda: prompt_of([{"role": "robot", "content": "x"}]),
        lambda: prompt_of([{"role": "user"}]),
        lambda: chosen([7], range(4), "layer"),
        lambda: chosen([], range(4), "layer"),
    ):
        with pytest.raises(HarnessError) as told:
            call()
        assert told.value.hint


def test_chats_and_tokens_are_prompts() -> None:
    chat = prompt_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    assert isinstance(chat, gh.Prompt)
    assert [(each.role, each.content) for each in chat.messages] == [("system", "Be brief."), ("user", "Hello")]
    assert prompt_of(np.array([1, 2, 3])) == (1, 2, 3)
    assert prompt_of([np.int64(4)]) == (4,)
    assert hash(prompt_of([1, 2])) == hash(prompt_of((1, 2)))
    with pytest.raises(PromptError, match="Message 2 of the chat has 'role', 'text'"):
        prompt_of([{"role": "user", "content": "x"}, {"role": "user", "text": "x"}])
    assert whole(np.int32(3), "n") == 3
