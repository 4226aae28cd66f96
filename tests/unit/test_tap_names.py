"""Tap names: patterns, layers, and what differs by architecture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.engine.tap_names import TAPS, GraphNode, expand_taps, generic_tap, graph_nodes
from gguf_harness.errors import TapNotFound


def test_patterns_expand_in_order_and_once() -> None:
    assert expand_taps(["blocks.*.attn.z"], 3) == ("blocks.0.attn.z", "blocks.1.attn.z", "blocks.2.attn.z")
    assert expand_taps(["logits", "blocks.[1-2].attn.q", "logits"], 12) == (
        "logits",
        "blocks.1.attn.q",
        "blocks.2.attn.q",
    )
    assert len(expand_taps(["*"], 5)) == 3 + 5 * (len(TAPS) - 3)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.*.attn.patern", "No tap matches|Unknown tap"),
        ("blocks.7.attn.z", "the model has 4 layers"),
        ("logit", "Unknown tap 'logit'.\n  Did you mean 'logits'"),
        ("", "Unknown tap ''"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(TapNotFound, match=message):
        expand_taps([pattern], 4)


@given(st.integers(1, 90), st.data())
def test_every_expanded_tap_has_nodes(n_layer: int, data: st.DataObject) -> None:
    tap = data.draw(st.sampled_from(expand_taps(["*"], n_layer)))
    (node,) = graph_nodes(tap, "qwen2", n_layer)
    assert node.name == TAPS[generic_tap(tap)].graph + (f"-{tap.split('.')[1]}" if tap.startswith("blocks.") else "")


def test_no_two_taps_share_a_node() -> None:
    for architecture in ("llama", "gpt2", "gemma", "gemma2", "gemma3", "gemma4", "qwen3moe", "phi3"):
        names: list[str] = []
        for tap in expand_taps(["*"], 2):
            try:
                names += [node.name for node in graph_nodes(tap, architecture, 2)]
            except TapNotFound:
                continue
        assert len(names) == len(set(names)), architecture


def test_no_two_taps_of_t5_are_the_same_node() -> None:
    """Attention's result and what it adds to the stream have one name there, and differ by operation and root."""
    for pattern in ("*", "encoder.*"):
        nodes = [node for tap in expand_taps([pattern], 3) for node in graph_nodes(tap, "t5", 3)]
        assert len(nodes) == len(set(nodes))
    assert graph_nodes("encoder.blocks.2.attn.z", "t5", 3)[0].name == "kqv_out-2"
    assert graph_nodes("blocks.2.attn.z", "t5", 3) == (GraphNode("kqv_out-2", frozenset({"CONT"}), "cache_v_l2"),)


def test_an_encoders_taps_expand_by_their_prefix_alone() -> None:
    assert expand_taps(["encoder.blocks.*.attn.z"], 2) == ("encoder.blocks.0.attn.z", "encoder.blocks.1.attn.z")
    assert not any(tap.startswith("encoder.") for tap in expand_taps(["*"], 2))
    plain = [tap for tap in expand_taps(["*"], 2) if tap != "logits"]
    assert expand_taps(["encoder.*"], 2) == tuple(f"encoder.{tap}" for tap in plain)
    assert generic_tap("encoder.blocks.1.attn.z") == generic_tap("blocks.0.attn.z")


def test_experts_are_an_alternative_only_where_a_layer_has_one_of_both() -> None:
    either = (GraphNode("ffn_out-3", frozenset()), GraphNode("ffn_moe_out-3", frozenset()))
    assert graph_nodes("blocks.3.mlp_out", "llama", 4) == either
    # deepseek2 adds shared experts: ffn_moe_out is only a part of what the MLP adds.
    assert graph_nodes("blocks.3.mlp_out", "deepseek2", 4) == either[:1]


def test_layers_without_rope() -> None:
    roped = [graph_nodes(f"blocks.{layer}.attn.q", "smollm3", 8)[0].operations == {"ROPE"} for layer in range(8)]
    assert roped == [True, True, True, False] * 2
    (node,) = graph_nodes("blocks.3.attn.k", "smollm3", 8)
    assert node.operations == {"RESHAPE", "VIEW"}


def test_a_tensor_without_a_name_of_its_own_is_refused_with_a_way_out() -> None:
    with pytest.raises(TapNotFound, match=r"does not name this tensor .* gemma2\.\n .*resid_mid, resid_post"):
        graph_nodes("blocks.0.mlp_out", "gemma2", 26)
