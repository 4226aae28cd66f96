"""Graphs of real models by the command line: what is in their tables is what the models computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gguf_harness
from gguf_harness.cli import main
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import CorpusError
from gguf_harness.gguf.weights import Weights
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import expand
from gguf_harness.inputs.words import load_words
from gguf_harness.measure.embeddings.tasks import read_rows
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.metrics.kernels.directions import cosine
from tests.integration.small_bert import write_small_bert
from tests.loaded import open_context

pytestmark = pytest.mark.model

(TINY,) = expand("tiny")
DATA = Path(__file__).parent.parent / "data"
HOSTILE = "</script><img src=x onerror=alert(1)> <b> \x1b[2J é"


@pytest.fixture(scope="module", params=["text", "repetition"])
def stored(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A prompt, and what PyTorch computed of it."""
    with np.load(DATA / f"tiny-{request.param}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    with open_context(TINY.files, SessionSettings(n_ctx=64)) as context:
        prompt = context.model.detokenize(arrays["tokens"]).decode()
        if not np.array_equal(context.model.tokenize(prompt), arrays["tokens"]):
            pytest.skip("random tokens are not what their text is cut into")
    return prompt, arrays


def test_hidden_states_are_what_pytorch_computed(stored: tuple[str, dict[str, Any]]) -> None:
    prompt, arrays = stored
    states = gguf_harness.hidden_states("tiny", prompt, threads=2)
    assert states.tokens.tolist() == arrays["tokens"].tolist()
    assert len(states.pieces) == len(states.tokens)
    for name in ("resid_mid", "attn_out", "mlp_out", "resid_post"):
        values = getattr(states, name)
        expected = np.stack([arrays[f"blocks.{layer}.{name}"] for layer in range(5)])
        assert (values.dtype, values.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(values, expected, atol=1e-2 * float(np.abs(expected).max()))
    np.testing.assert_allclose(states.embed, arrays["embed"], atol=1e-3 * float(np.abs(arrays["embed"]).max()))


def test_long_prompts_are_not_cut() -> None:
    """The layers suite looks at the first 128 tokens; this one is asked for all."""
    states = gguf_harness.hidden_states("tiny", "the value of a name " * 60, threads=2)
    assert len(states.tokens) > 200
    assert states.resid_post.shape == (5, len(states.tokens), 256)
    assert np.isfinite(states.resid_post).all()


def _graph(folder: Path, *options: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any], str]:
    """(nodes, edges, provenance, page)."""
    assert main(["graph", "tiny", "--threads=2", "-o", str(folder), *options]) == 0
    nodes, edges = (pq.read_table(next(folder.glob(f"*.{part}.parquet"))) for part in ("nodes", "edges"))
    provenance = json.loads(nodes.schema.metadata[b"gguf_harness.provenance"])
    return nodes.to_pylist(), edges.to_pylist(), provenance, next(folder.glob("*.html")).read_text(encoding="utf-8")


def _places(edges: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(key, query) of edges between tokens of neighbouring levels."""
    return [(int(e["source"].split(".t")[1]), int(e["target"].split(".t")[1])) for e in edges]


def test_edges_of_attention_are_the_pattern_above_the_threshold(tmp_path: Path) -> None:
    prompt = "the value of the value of the name"
    _, edges, provenance, _ = _graph(tmp_path, "--kind=attention", "--prompt", prompt)
    pattern = gguf_harness.attention("tiny", prompt, threads=2).pattern
    found = np.zeros_like(pattern)
    for edge, (key, query) in zip(edges, _places(edges), strict=True):
        found[edge["layer"], edge["head"], query, key] = edge["weight"]
    rank = np.argsort(np.argsort(-pattern, axis=-1, kind="stable"), axis=-1, kind="stable")
    kept = (pattern >= provenance["threshold"]) & (rank < provenance["top_k"])
    np.testing.assert_allclose(found, np.where(kept, pattern, 0), atol=1e-6)
    assert (provenance["prompt"], provenance["model"]) == (prompt, "tiny-F16")


def test_the_flow_has_cosines_of_states_and_means_of_heads(tmp_path: Path) -> None:
    nodes, edges, provenance, _ = _graph(tmp_path, "--kind=flow")
    prompt = provenance["prompt"]
    states = gguf_harness.hidden_states("tiny", prompt, threads=2)
    attention = gguf_harness.attention("tiny", prompt, threads=2)
    assert [node["label"] for node in nodes[: len(states.pieces)]] == list(states.pieces)
    stream = np.concatenate([states.embed[None], states.resid_post])
    residual = [edge for edge in edges if edge["kind"] == "residual"]
    found = np.full((5, len(states.tokens)), np.nan)
    for edge, (source, target) in zip(residual, _places(residual), strict=True):
        assert source == target
        found[edge["layer"], source] = edge["weight"]
    np.testing.assert_allclose(found, cosine(stream[:-1], stream[1:]), atol=1e-6)
    looks = [edge for edge in edges if edge["kind"] == "attention"]
    mean = attention.pattern.mean(axis=1)
    for edge, (key, query) in zip(looks, _places(looks), strict=True):
        assert edge["weight"] == pytest.approx(mean[edge["layer"], query, key], abs=1e-6)


def test_the_network_of_words_has_their_cosines(tmp_path: Path) -> None:
    nodes, edges, provenance, _ = _graph(tmp_path, "--kind=cosine")
    words = load_words()
    labels = [node["label"] for node in nodes]
    assert sorted([*labels, *provenance["missing"]]) == sorted(words.words)
    assert [node["group"] for node in nodes] == [words.group_of.get(word) for word in labels]
    with open_context(TINY.files, SessionSettings(n_ctx=64)) as context:
        # Words of one token, from the file.
        single = {
            word: tokens[0]
            for word in labels
            if len(tokens := context.model.tokenize(f" {word}", add_special=False)) == 1
        }
    rows = read_rows(Weights(TINY.files), np.array([*single.values()], dtype=np.int64)).astype(np.float64)
    vectors = dict(zip(single, rows, strict=True))
    named = {node["id"]: node["label"] for node in nodes}
    checked = 0
    for edge in edges:
        a, b = (vectors.get(named[edge[end]]) for end in ("source", "target"))
        if a is not None and b is not None:
            assert edge["weight"] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-6)
            checked += 1
    assert checked > 100


def test_a_word_list_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[groups]\nones = ["the", "a"]\nothers = ["value", "龘龘"]\n', encoding="utf-8")
    nodes, _, provenance, _ = _graph(tmp_path, "--kind=cosine", "--words", str(file))
    written = {node["label"] for node in nodes} | set(provenance["missing"])
    assert written == {"the", "a", "value", "龘龘"}
    assert provenance["words"] == "own.toml"


@pytest.mark.parametrize("kind", ["attention", "flow"])
def test_a_hostile_prompt_is_text(tmp_path: Path, kind: str) -> None:
    nodes, _, provenance, page = _graph(tmp_path, f"--kind={kind}", "--prompt", HOSTILE)
    assert provenance["prompt"] == HOSTILE
    assert "<img" not in page
    assert "\x1b" not in page
    assert page.count("</script>") == page.count("<script")
    first = [node["label"] for node in nodes if node["level"] == 0]
    assert "<img" in "".join(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.gguf", "--kind=flow"], "There is no model 'missing.gguf'"),
        (["missing.gguf", "--kind=cosine"], "There is no model 'missing.gguf'"),
        (["tiny", "--kind=attention", "--prompt", "word " * 2000], "do not fit into the model's context of 512"),
        (["tiny", "--kind=flow", "--prompt", "a\udcffb"], "is not valid text"),
        (["tiny", "--prompt", "x"], "--prompt has no meaning for --kind=structure"),
        (["tiny", "--kind=attention", "--words", "x.toml"], "--words has no meaning for --kind=attention"),
        (["{without_z}", "--kind=attention"], "puzzle has attention in layers 0 only"),
        (["tiny", "--kind=cosine", "--words", "missing.toml"], "missing.toml' cannot be read"),
        (["{bert}", "--kind=flow"], "bert: its residual stream cannot be read"),
    ],
)
def test_mistakes_are_one_message(
    without_z: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    bert = write_small_bert(tmp_path / "bert.gguf")
    given = [argument.format(without_z=without_z, bert=bert) for argument in arguments]
    folder = tmp_path / "out"
    assert main(["graph", *given, "-o", str(folder)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert "--gguf" not in told
    assert not folder.exists()


def test_attention_that_memory_cannot_hold_is_refused() -> None:
    (source,) = expand("tiny")
    settings = SessionSettings(threads=2)
    with (
        LiveModel(load_info(source), settings, gpu=-1, limit_bytes=4 * 40 * 9) as live,
        pytest.raises(CorpusError, match="would take"),
    ):
        live.read("the value of a name")
