"""Names and keys of what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gguf_harness.engine.settings import Adapter, KVTypes, RopeScaling, SessionSettings
from gguf_harness.errors import OptionError
from gguf_harness.inputs.ladder import PlannedModel, PlannedSubject

LEGAL, POLITE = Adapter("legal", Path("a.gguf"), "a" * 64, 0.5), Adapter("polite", Path("b.gguf"), "b" * 64)
SESSION = SessionSettings(threads=2)


def test_names_say_what_a_model_is_run_with() -> None:
    model = PlannedModel("tiny-Q4_K_M")
    names = {
        PlannedSubject(model).name,
        PlannedSubject(model, adapters=(LEGAL,)).name,
        PlannedSubject(model, KVTypes("q8_0", "q4_0"), (POLITE,)).name,
        PlannedSubject(model, adapters=(LEGAL, POLITE)).name,
        PlannedSubject(model, adapters=(Adapter("legal", Path(), "a", -2),)).name,
        PlannedSubject(model, KVTypes("q4_0", "q4_0", rotate=False), rope=RopeScaling("yarn", 4)).name,
    }
    assert names == {
        "tiny-Q4_K_M",
        "tiny-Q4_K_M [lora=legal:0.5]",
        "tiny-Q4_K_M [kv=q8_0/q4_0 lora=polite]",
        "tiny-Q4_K_M [lora=legal:0.5+polite]",
        "tiny-Q4_K_M [lora=legal:-2]",
        "tiny-Q4_K_M [kv=q4_0/q4_0+norot rope=yarn:4]",
    }
    settings = PlannedSubject(model, KVTypes("q8_0", "q4_0"), (LEGAL,)).settings(SESSION)
    assert (settings.cache_type_k, settings.cache_type_v, settings.adapters) == ("q8_0", "q4_0", (LEGAL,))
    assert settings.lane(2).adapters == (LEGAL,)


def test_keys_without_adapters_stay_as_they_were() -> None:
    assert SESSION.to_json() == {
        "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "threads": 2, "flash_attention": "auto", "cache_type_k": "f16",
        "cache_type_v": "f16", "n_gpu_layers": -1, "beyond_context": False,
    }  # fmt: skip


def test_keys_hold_rotation_and_rope_only_where_numbers_depend_on_them() -> None:
    plain = SESSION.to_json()
    assert replace(SESSION, rotate_kv=False).to_json() == plain  # nothing quantized is there to rotate
    quantized = SESSION.with_kv(KVTypes("q4_0", "q4_0"))
    unrotated = SESSION.with_kv(KVTypes("q4_0", "q4_0", rotate=False))
    assert unrotated.to_json() == quantized.to_json() | {"rotate_kv": False}
    assert str(unrotated.kv) == "q4_0/q4_0+norot"
    assert replace(SESSION, rope=RopeScaling("linear", 2)).to_json() == plain | {"rope": "linear:2"}


def test_rope_scaling_extends_the_context() -> None:
    assert SESSION.reach(512) == 512
    assert replace(SESSION, rope=RopeScaling("yarn", 4)).reach(512) == 2048
    with pytest.raises(OptionError, match=r"A rope factor of 0\.5 is not possible, expected 1 or more"):
        RopeScaling("yarn", 0.5)


def test_keys_hold_content_and_scale_of_adapters_in_any_order() -> None:
    def key(*adapters: Adapter) -> object:
        return replace(SESSION, adapters=adapters).to_json()

    both = key(LEGAL, POLITE)
    assert both == SESSION.to_json() | {
        "adapters": [{"sha256": "a" * 64, "scale": 0.5}, {"sha256": "b" * 64, "scale": 1.0}]
    }
    assert key(POLITE, LEGAL) == both
    moved = Adapter("renamed", Path("elsewhere/c.gguf"), "a" * 64, 0.5)
    assert key(moved) == key(LEGAL)
    assert SessionSettings(adapters=(moved,)) == SessionSettings(adapters=(LEGAL,))
    assert key(Adapter("legal", Path("a.gguf"), "a" * 64, 1)) != key(LEGAL) != key(POLITE)


def test_adapters_that_cannot_be_applied_are_refused() -> None:
    with pytest.raises(OptionError, match=r"legal:0\.5 and again are the same file: llama\.cpp would apply one"):
        SessionSettings(adapters=(LEGAL, Adapter("again", Path("b.gguf"), "a" * 64)))
    with pytest.raises(OptionError, match="The scale of the adapter legal is nan, expected a finite number"):
        Adapter("legal", Path("a.gguf"), "a" * 64, float("nan"))
