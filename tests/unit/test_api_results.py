"""What the API returns, from arrays alone: short texts, tables with fixed types, pages that show text as text."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gguf_harness as gh
from gguf_harness import api
from gguf_harness.api import pictures
from gguf_harness.api.attention_results import attention_of
from gguf_harness.api.generated import collect, streamed
from gguf_harness.api.long_frames import make_frame
from gguf_harness.api.picture_page import render_page
from gguf_harness.api.state_results import hidden_states_of
from gguf_harness.errors import MissingExtra, ModelError, NoData, OptionError
from gguf_harness.measure.live.continuing import Step
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import Ablation, ModelFacts
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from gguf_harness.report.charts import build_charts
from gguf_harness.report.data import RunView
from gguf_harness.views.bundle import views_style
from gguf_harness.views.reading_data import attention_view, entries_of
from tests.unit.test_report import STORED

PIECES = (b"<s>", b" the", b" cat", b" the", b" cat", b"\xf0\x9f")
LONGEST = 500


def make_facts(layers: int = 2, heads: int = 3, **changes: Any) -> ModelFacts:
    """Facts of a model that is not there."""
    facts = ModelFacts(
        name="made-up",
        architecture="llama",
        n_layer=layers,
        d_model=8,
        n_ctx_train=128,
        n_vocab=50,
        heads=(heads,) * layers,
        kv_heads=(1,) * layers,
        causal=True,
        window=0,
        scale=0.0,
        softcap=0.0,
        attention=("pattern", "scores", "q", "k", "v"),
        states=("attn_out", "mlp_out", "resid_mid", "resid_post"),
        first_layer_alone=True,
        predicts=True,
        chats=False,
        facts=(),
        missing=(),
    )
    return replace(facts, **changes)


def make_reading(facts: ModelFacts, pieces: tuple[bytes, ...] = PIECES, seed: int = 0) -> Reading:
    """A reading of random numbers, whose patterns are patterns."""
    random, n = np.random.default_rng(seed), len(pieces)

    def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return random.normal(size=shape).astype(np.float32)

    pattern = {}
    for layer in facts.attention_layers:
        weights = np.tril(random.random((facts.heads[layer], n, n))) + 1e-9 * np.tri(n)
        pattern[layer] = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return Reading(
        facts=facts,
        ablation=Ablation(),
        tokens=np.arange(n, dtype=np.int32),
        pieces=pieces,
        pattern=pattern,
        scores={layer: normal(facts.heads[layer], n, n) for layer in pattern},
        q={layer: normal(n, facts.heads[layer], 4) for layer in pattern},
        k={layer: normal(n, 1, 4) for layer in pattern},
        v={layer: normal(n, 1, 4) for layer in pattern},
        states={
            "embed": normal(n, 8),
            **{name: normal(facts.n_layer, n, 8) for name in ("attn_out", "mlp_out", "resid_mid", "resid_post")},
        },
        logits=normal(n, facts.n_vocab),
    )


def test_attention_is_a_row_for_each_weight() -> None:
    reading = make_reading(make_facts())
    frame = attention_of(reading, None, None).to_frame()
    n = len(PIECES)
    assert len(frame) == 2 * 3 * n * (n + 1) // 2
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "layer": "Int64", "head": "Int64", "query": "Int64", "key": "Int64",
        "token": "string", "attended": "string", "weight": "float64",
    }  # fmt: skip
    row = frame.query("layer == 1 and head == 2 and query == 4 and key == 3").iloc[0]
    assert row["weight"] == pytest.approx(float(reading.pattern[1][2, 4, 3]), abs=0)
    assert (row["token"], row["attended"]) == (" cat", " the")
    assert frame.groupby(["layer", "head", "query"])["weight"].sum().to_numpy() == pytest.approx(1)


def test_chosen_layers_and_heads_are_those_of_the_whole() -> None:
    reading = make_reading(make_facts(layers=4))
    whole_one = attention_of(reading, None, None)
    part = attention_of(reading, [3, 1], [2, 0])
    assert (part.layers, part.heads) == ((1, 3), (0, 2))
    np.testing.assert_array_equal(part.pattern, whole_one.pattern[[1, 3]][:, [0, 2]])
    assert part.q is not None
    assert whole_one.q is not None
    np.testing.assert_array_equal(part.q, whole_one.q[[1, 3]][:, :, [0, 2]])
    assert part.k is not None
    assert part.k.shape == (2, len(PIECES), 1, 4)
    own = part.to_frame(heads=[2])
    every = whole_one.to_frame(layers=[1, 3], heads=[2])
    pd.testing.assert_frame_equal(own, every)
    assert part.plot().data["models"][0]["heads"] == [[1, 0], [1, 2], [3, 0], [3, 2]]
    assert whole_one.plot(layers=[2], heads=[1]).data["models"][0]["heads"] == [[2, 1]]


def test_tokens_are_places_and_not_texts() -> None:
    """Two tokens of one text are two rows and two columns."""
    attention = attention_of(make_reading(make_facts()), None, None)
    data = attention.plot().data
    assert data["tokens"] == ["<s>", " the", " cat", " the", " cat", "<F0><9F>"]
    assert data["models"][0]["side"] == len(PIECES)
    part = attention.plot(tokens=[4, 1, 2]).data
    assert part["tokens"] == [" the", " cat", " cat"]
    assert attention.plot(tokens=slice(1, 3)).data["tokens"] == [" the", " cat"]
    assert attention.plot(layer=1).state == {"head": [1, 0]}
    assert attention.plot(layer=1, head=2).state == {"head": [1, 2]}
    wrongs: tuple[dict[str, Any], ...] = (
        {"tokens": [6]},
        {"tokens": slice(9, 12)},
        {"layers": [2]},
        {"heads": [3]},
        {"layer": 2},
        {"head": 3},
    )
    for wrong in wrongs:
        with pytest.raises(OptionError):
            attention.plot(**wrong)


def test_layers_that_do_not_fit_are_named() -> None:
    facts = make_facts(heads=3)
    reading = make_reading(replace(facts, heads=(3, 2)))
    with pytest.raises(ModelError, match=r"pattern differs in shape between layers \(\(3, 6, 6\), \(2, 6, 6\)\)"):
        attention_of(reading, None, None)
    assert attention_of(reading, [1], None).pattern.shape == (1, 2, 6, 6)
    with pytest.raises(ModelError, match="its attention cannot be read"):
        attention_of(make_reading(replace(facts, heads=(0, 0), missing=("Because.",))), None, None)


def test_states_are_norms_by_layer_and_token() -> None:
    reading = make_reading(make_facts())
    states = hidden_states_of(reading)
    frame = states.to_frame()
    assert [str(dtype) for dtype in frame.dtypes] == ["Int64", "Int64", "string", *["float64"] * 4]
    row = frame.query("layer == 1 and position == 2").iloc[0]
    assert row["attn_out"] == pytest.approx(np.linalg.norm(reading.states["attn_out"][1, 2]))
    unnamed = replace(reading, states={name: reading.states[name] for name in ("embed", "resid_post")})
    assert hidden_states_of(unnamed).mlp_out is None
    assert hidden_states_of(unnamed).to_frame()["mlp_out"].isna().all()
    with pytest.raises(ModelError, match="its residual stream cannot be read"):
        hidden_states_of(replace(reading, states={}))


def test_texts_of_results_are_short() -> None:
    """Of a model as large as they come, and of tokens that do their worst."""
    facts = make_facts(layers=30, heads=9)
    pieces = (b"<script>alert(1)</script>" * 40, *PIECES * 10)
    reading = make_reading(facts, pieces)
    results: list[gh.Attention | gh.HiddenStates] = [
        attention_of(reading, None, None),
        attention_of(reading, range(0, 30, 2), None),
        hidden_states_of(reading),
    ]
    for result in results:
        assert len(repr(result)) < LONGEST
        told = result._repr_html_()
        assert "<table>" in told
        assert "<script>" not in told
    assert len(repr(facts)) < LONGEST
    assert len(repr(results[0].plot())) < LONGEST


def _steps(pieces: list[bytes], *, ends: bool) -> list[Step]:
    nothing = np.array([0]), (b"x",), np.array([-0.5])
    steps = [Step(token, piece, -0.5, False, *nothing) for token, piece in enumerate(pieces)]
    return [*steps, Step(99, b"</s>", -0.1, True, *nothing)] if ends else steps


@given(st.text(max_size=20), st.booleans())
def test_a_stream_adds_up_to_the_text(text: str, ends: bool) -> None:
    """Each byte is a token of its own: characters are given when they are whole."""
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    steps = _steps([bytes([byte]) for byte in raw], ends=ends)
    stream = list(streamed(iter(steps)))
    assert "".join(token.text for token in stream) == raw.decode()
    assert all("�" not in token.text for token in stream) or "�" in raw.decode()
    made = collect(streamed(iter(steps)), np.array([1], dtype=np.int32), len(steps) + (not ends), "m")
    assert made.text == str(made) == raw.decode()
    assert len(made.tokens) == len(raw)
    assert made.end == ("end" if ends else "context")
    assert len(repr(made)) < LONGEST
    assert collect(streamed(iter(steps)), made.prompt_tokens, len(steps), "m").end == ("end" if ends else "limit")


def test_what_was_written_is_a_table() -> None:
    made = collect(streamed(iter(_steps([b" a", b"\xf0"], ends=True))), np.array([5, 6], dtype=np.int32), 9, "m")
    frame = made.to_frame()
    assert [str(dtype) for dtype in frame.dtypes] == ["Int64", "Int64", "string", "float64", "float64"]
    assert frame["position"].tolist() == [2, 3]
    assert frame["probability"].to_numpy() == pytest.approx(np.exp(-0.5))
    assert made.plot().data["lines"][0]["points"][1] == [1, round(float(np.exp(-0.5)), 5), None, "“<F0>”"]
    assert made.text == " a�"


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=5))
def test_types_of_a_table_do_not_depend_on_its_rows(values: list[int | None]) -> None:
    frame = make_frame(
        {
            "whole": ("whole", values),
            "number": ("number", [None if value is None else value / 2 for value in values]),
            "text": ("text", [None if value is None else str(value) for value in values]),
            "yes": ("yes", [None if value is None else value > 0 for value in values]),
        }
    )
    assert [str(dtype) for dtype in frame.dtypes] == ["Int64", "float64", "string", "boolean"]
    assert frame["whole"].isna().tolist() == [value is None for value in values]


def test_names_that_are_no_text_are_in_tables() -> None:
    """Python has bytes of names that are not UTF-8 as lone surrogates."""
    assert make_frame({"name": ("text", ["blk.0.\udcff"])})["name"].item() == "blk.0.\udcff"


def test_a_model_beside_itself_is_two() -> None:
    reading = make_reading(make_facts())
    entries = entries_of([reading, reading, reading])
    assert [entry["name"] for entry in entries] == ["made-up", "made-up (2)", "made-up (3)"]
    assert [entry["role"] for entry in entries] == ["reference", "candidate", "candidate"]
    with pytest.raises(NoData, match="none of the chosen heads"):
        attention_view([reading], 4, heads={(9, 9)})


def test_entropy_and_probability_are_of_the_whole_distribution() -> None:
    from gguf_harness.api.prediction_results import next_tokens_of
    from gguf_harness.api.token_texts import ModelVocabulary

    class Known(ModelVocabulary):
        """Tokens with the numbers as texts; two of them are the same text."""

        def __init__(self) -> None:
            pass

        def pieces(self, tokens: Any) -> list[bytes]:
            return [f" {token % 49}".encode() for token in tokens]

        def all(self) -> list[bytes]:
            return self.pieces(range(50))

    reading = make_reading(make_facts())
    found = next_tokens_of(reading, Known(), 2)
    assert reading.logits is not None
    p = np.exp(log_softmax(reading.logits[2]))
    assert found.entropy == pytest.approx(-(p * np.log(p)).sum())
    assert found.probability(" 0") == pytest.approx(p[0] + p[49])
    assert found.probability(" 7") == pytest.approx(p[7])
    assert found.tokens.tolist() == np.argsort(-p, kind="stable").tolist()
    assert found.probabilities.sum() == pytest.approx(1)
    for text in ("0", " 50", ""):
        with pytest.raises(OptionError, match="No token of made-up is"):
            found.probability(text)
    with pytest.raises(OptionError, match="the first is ' 4'") as told:
        found.probability(" 4x")
    assert "text of one token" in str(told.value)
    with pytest.raises(TypeError, match="text is a str, got int"):
        found.probability(4)  # type: ignore[arg-type]
    assert [str(dtype) for dtype in found.to_frame().dtypes] == ["Int64", "Int64", "string", "float64", "float64"]


def test_a_page_shows_text_as_text() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    page = render_page([gh.Picture("bars", {"name": hostile}, hostile, hostile)])
    assert hostile not in page
    assert page.count("&lt;/script&gt;&lt;img") == 5
    both = gh.side_by_side(gh.Picture("bars", {}, "one"), gh.Picture("lines", {}, "two"))
    assert both.to_html().count("<figure") == 2
    assert "one; two" in both.to_html()


def test_without_anywidget_there_is_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = gh.Picture("bars", {"x": 1}, 'A "title"')
    monkeypatch.setattr(pictures, "is_installed", lambda _: False)
    told = picture._repr_html_()
    assert told is not None
    assert told.startswith('<iframe sandbox="allow-scripts allow-downloads" title="A &quot;title&quot;" srcdoc="')
    assert picture._repr_mimebundle_() == {"text/plain": '<picture bars: A "title">'}
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingExtra, match=r"(?s)A widget needs the package anywidget.*gguf-harness\[notebook\]"):
        picture.widget()


def test_styles_of_views_stay_inside_of_them() -> None:
    """Each rule, at the outermost level, is of the scope."""
    style = views_style(".gguf-view")
    depth, start, rules = 0, 0, []
    without = "".join(part.partition("*/")[2] if "*/" in part else part for part in style.split("/*"))
    for at, character in enumerate(without):
        if character == "{":
            if depth == 0:
                rules.append(without[start:at].strip())
            depth += 1
        elif character == "}":
            depth -= 1
            start = at + 1
    assert depth == 0
    assert set(rules) <= {
        ":where(.gguf-view)", ':where(.gguf-view[data-theme="light"])', ':where(.gguf-view[data-theme="dark"])',
        "@media (prefers-color-scheme: dark)",
    }  # fmt: skip
    assert ".gguf-view" not in views_style()
    dark = [part.partition("}")[0].split(";") for part in without.split("{") if "--page: #14171a" in part]
    assert len(dark) == 2
    first, second = ({line.strip() for line in block} - {"color-scheme: dark", ""} for block in dark)
    assert first == second, "the two dark themes differ"


def test_the_package_names_what_is_public_and_imports_nothing_for_it() -> None:
    code = (
        "import sys, gguf_harness as gh\n"
        "names = [name for name in dir(gh) if not name.startswith('__')]\n"
        "assert not {'numpy', 'pandas', 'gguf_harness.api', 'gguf_harness.measure'} & set(sys.modules)\n"
        "print(' '.join(names))\n"
        "for name in names: getattr(gh, name)\n"
        "assert not {'pandas', 'anywidget', 'plotly', 'sklearn', 'llama_cpp'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == sorted(api.__all__)
    assert {*gh.__all__, "open"} == set(api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gh.nothing  # noqa: B018


def test_a_star_import_leaves_pythons_own_names(tmp_path: Path) -> None:
    code = f"from gguf_harness import *\nopen({str(tmp_path / 'x')!r}, 'w').close()\nassert callable(attention)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures_of_a_run_are_those_of_its_report() -> None:
    run = gh.load_run(STORED)
    shown = gh.report_pictures(run)
    charts = [chart for section in build_charts(RunView(run.raw), run.folder).values() for chart in section]
    assert {chart["id"] for chart in charts} <= set(shown)
    assert len(shown) == sum(len(chart["figures"]) for chart in charts)
    several = next(chart for chart in charts if len(chart["figures"]) > 1)
    panels = [name for name in shown if name == several["id"] or name.startswith(f"{several['id']}/")]
    data = [shown[name].data for name in panels]
    assert all(panel["data"] in data for panel in several["figures"])
    assert shown["quality"].view == "tradeoff"
    assert "<html" in shown["quality"].to_html()
    with pytest.raises(TypeError, match="run is what load_run returns, got str"):
        gh.report_pictures("last")  # type: ignore[arg-type]
