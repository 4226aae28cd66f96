"""--gguf-depths: numbers of tokens, in order."""

from __future__ import annotations

import argparse

import pytest

from gguf_harness.inputs.option_values import depth_list


@pytest.mark.parametrize(("text", "depths"), [("0", (0,)), ("4096,0,512", (0, 512, 4096)), ("7,7", (7,))])
def test_depths_are_each_once_in_order(text: str, depths: tuple[int, ...]) -> None:
    assert depth_list(text) == depths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a list of whole numbers such as 0,4096"),
        ("512,", "is not a list of whole numbers"),
        ("half", "'half' is not a list"),
        ("-1,5", "-1 in '-1,5' is no number of tokens, expected 0 to"),
        ("0,99999999999", "99999999999 in '0,99999999999' is no number of tokens"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message.replace("(", r"\(")):
        depth_list(text)
