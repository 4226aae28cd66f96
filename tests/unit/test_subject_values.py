"""Options that make subjects of files, as text."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from gguf_harness.engine.settings import KVTypes, RopeScaling
from gguf_harness.inputs.subject_values import AdapterSpec, kv_list, kv_types, lora_list, rope_list


def test_types_of_the_cache() -> None:
    assert kv_types(" Q8_0/iq4_nl ") == KVTypes("q8_0", "iq4_nl")
    assert kv_list("f16/f16,q4_0/q4_0+norot,f16/f16") == (KVTypes("f16", "f16"), KVTypes("q4_0", "q4_0", rotate=False))
    assert kv_list("Default") == "default"


def test_scalings_of_positions() -> None:
    assert rope_list("none,linear:2,yarn:4,yarn:4.0") == (
        RopeScaling("none"), RopeScaling("linear", 2), RopeScaling("yarn", 4)
    )  # fmt: skip
    assert [str(each) for each in rope_list("none,yarn:2.5")] == ["none", "yarn:2.5"]


def test_adapters() -> None:
    assert lora_list("a.gguf,b.gguf:0.5,a.gguf:2+b.gguf:-1") == (
        (AdapterSpec("a.gguf"),),
        (AdapterSpec("b.gguf", 0.5),),
        (AdapterSpec("a.gguf", 2), AdapterSpec("b.gguf", -1)),
    )
    # A colon may belong to the path.
    assert lora_list("C:/a.gguf") == ((AdapterSpec("C:/a.gguf"),),)
    assert str(AdapterSpec("a.gguf", 0.5)) == "a.gguf:0.5"


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (kv_list, "q8_0", "'q8_0' is not a pair of types, expected K/V of f32, f16"),
        (kv_list, "q8_0/q9_9", "'q9_9' is not a KV-cache type"),
        (kv_list, "q8_0/q4_0+rot", "'q4_0\\+rot' is not a KV-cache type"),
        (kv_list, "f16/f16+norot", "llama.cpp rotates quantized K and V only, and neither is"),
        (rope_list, "yarn", "'' in 'yarn' is not a factor, expected such as yarn:4"),
        (rope_list, "ntk:2", "'ntk:2' is no rope scaling, expected none, linear:FACTOR or yarn:FACTOR"),
        (rope_list, "yarn:0.5", "A rope factor of 0.5 is not possible"),
        (rope_list, "linear:inf", "A rope factor of inf is not possible"),
        (rope_list, "none:2", "'none:2' is no rope scaling"),
        (lora_list, "a.gguf,,b.gguf", "'' names no adapter, expected FILE or FILE:SCALE"),
        (lora_list, ":0.5", "':0.5' names no adapter"),
        (lora_list, "a.gguf:nan", "'nan' in 'a.gguf:nan' is not a scale, expected a finite number"),
    ],
)
def test_mistakes_say_what_was_expected(parse: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)
