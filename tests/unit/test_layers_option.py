"""Layers on the command line: ranges and numbers."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.inputs.option_values import parse_layers


def test_ranges_and_numbers() -> None:
    assert parse_layers("0-3,7") == (0, 1, 2, 3, 7)
    assert parse_layers("7, 2 ,2-3") == (2, 3, 7)
    assert parse_layers("5-5") == (5,)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1))
def test_every_layer_of_every_range(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{start}-{start + more}" for start, more in ranges)
    assert parse_layers(text) == tuple(sorted({x for start, more in ranges for x in range(start, start + more + 1)}))


@pytest.mark.parametrize("text", ["", ",", "1,", "-1", "1-", "1-2-3", "a", "1.5", "3-1", "0-999999999999", "²"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_layers(text)
