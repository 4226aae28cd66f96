"""Tensors by role and by layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.gguf.groups import by_layers, by_role, layer_of, role_of


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("blk.12.attn_q.weight", "attn_q", 12),
        ("blk.0.attn_q.bias", "attn_q.bias", 0),
        ("blk.3.ffn_gate_exps.weight", "ffn_gate_exps", 3),
        ("token_embd.weight", "token_embd", None),
        ("output_norm.bias", "output_norm.bias", None),
        ("enc.blk.2.attn_q.weight", "enc.attn_q", 2),
        ("dec.blk.2.attn_q.weight", "dec.attn_q", 2),
        ("enc.output_norm.weight", "enc.output_norm", None),
        ("blk.x.attn_q.weight", "blk.x.attn_q", None),
    ],
)
def test_names(name: str, role: str, layer: int | None) -> None:
    assert (role_of(name), layer_of(name)) == (role, layer)


def test_roles_keep_their_order() -> None:
    names = ["token_embd.weight", "blk.1.a.weight", "blk.0.b.weight", "blk.0.a.weight"]
    assert by_role(names) == {"token_embd": names[:1], "a": [names[1], names[3]], "b": [names[2]]}


@given(st.sets(st.integers(0, 100)), st.integers(1, 20))
def test_runs_of_layers_hold_every_layer_once(layers: set[int], most: int) -> None:
    names = [f"blk.{layer}.a.weight" for layer in layers] + ["output.weight"]
    runs = by_layers(names, most)
    assert len(runs) == min(most, len(layers))
    assert [layer_of(name) for group in runs.values() for name in group] == sorted(layers)
    sizes = [len(group) for group in runs.values()]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert all((layer_of(group[0]), layer_of(group[-1])) == span for span, group in runs.items())
