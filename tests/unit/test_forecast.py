"""How long a session takes: what its tests need, what that costs, and what was learned from what it took."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.engine.settings import GGML_TYPES, KVTypes
from gguf_harness.inputs.ladder import Ladder, PlannedModel, PlannedSubject, plan_ladder
from gguf_harness.inputs.options import Options, read_options
from gguf_harness.inputs.prompts import load_prompts
from gguf_harness.measure.forecast import scales, variant_efforts
from gguf_harness.measure.forecast.efforts import EFFORTS
from gguf_harness.measure.forecast.expected import Expected, Expecting, seconds_by_test
from gguf_harness.measure.forecast.fitted import FITTED, SLOWER, TESTS_S
from gguf_harness.measure.forecast.forecast import Forecast
from gguf_harness.measure.forecast.needs import NEEDS, USES, Asked, pieces_of
from gguf_harness.measure.forecast.scales import Costs, Effort, Scale, TextSize
from gguf_harness.measure.forecast.stored import CALLS
from gguf_harness.measure.kv import cache_tasks, needle
from gguf_harness.measure.lora import calls as lora_calls
from gguf_harness.measure.measurement import Job
from gguf_harness.metrics.by_position import FIRST_POSITION
from gguf_harness.pytest_plugin.default_grid import LONG_ON_CACHES, LONG_ON_FILES
from gguf_harness.report.times import budget_told, forecast_told, wrong_forecast
from gguf_harness.store.learned_durations import Durations
from tests.command_line import parse_command_line

SUITES = Path(str(resources.files("gguf_harness.suites")))
REFERENCE = PlannedSubject(PlannedModel("tiny"))
MADE = PlannedSubject(PlannedModel("tiny-Q2_K", base=REFERENCE.model, quant="Q2_K"))
LADDER = Ladder(REFERENCE, (MADE,), "it is")


@pytest.fixture(scope="module")
def scale() -> Scale:
    """A model of 30 layers with 9 heads each, as the default options measure it."""
    options = read_options(parse_command_line())
    texts = TextSize(24, 600, 200, 24 * 25**2)
    return Scale(options, texts, 30, 270, 49152, 576, 134_000_000, 270_000_000, 16, own_windows=3)


def _tests(suite: Path, using: str = "") -> set[str]:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in suite.glob("test_*.py")]
    functions = (node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef))
    return {
        node.name
        for node in functions
        if node.name.startswith("test_") and using in "".join(map(ast.unparse, node.decorator_list))
    }


def test_what_every_test_of_the_suites_needs_is_known() -> None:
    suites = {folder.name: folder for folder in SUITES.iterdir() if (folder / "__init__.py").is_file()}
    assert {*NEEDS} == {*suites}
    for suite, needs in NEEDS.items():
        # Benchmarks repeat what others measure, as often as pytest-benchmark wants.
        benchmarks = {"test_load_time", "test_serving", "test_generation", "test_prompt_processing"}
        assert {*needs} - benchmarks == _tests(suites[suite]) - benchmarks, suite


def test_everything_needed_has_an_effort_and_a_place_in_the_cache() -> None:
    needed = {need.partition(" ")[2] for needs in NEEDS.values() for each in needs.values() for need in each}
    needed.add("models/quantized")
    assert needed == {*EFFORTS} == {*CALLS}
    assert {*FITTED} <= needed
    assert {*TESTS_S} == {*NEEDS}
    assert all(any(name.startswith(start) for name in needed) for start in USES)


def test_the_tests_that_take_long_on_caches_are_known() -> None:
    assert _tests(SUITES / "kv", "usefixtures('chosen_cache')") == LONG_ON_CACHES
    assert _tests(SUITES / "kv", "usefixtures('chosen_file')") == LONG_ON_FILES


def test_efforts_count_what_is_measured() -> None:
    assert variant_efforts.FIRST_SCORED == FIRST_POSITION
    assert 1 + len(needle.DEPTHS) == variant_efforts.HIDDEN
    assert variant_efforts.PATCHED_PROMPTS == cache_tasks._PATCHED_PROMPTS
    assert len(lora_calls.SCALES) == variant_efforts.SCALES
    assert lora_calls.SWEEP_WINDOWS == variant_efforts.SWEPT_WINDOWS
    assert lora_calls.MOVED_PROMPTS == scales.FIRST_PROMPTS
    assert {*SLOWER} == {*GGML_TYPES}


def test_a_measurement_is_needed_once_however_many_tests_ask_for_it() -> None:
    asked = [
        Asked("quant", "test_perplexity", REFERENCE),
        Asked("quant", "test_perplexity", MADE),
        Asked("quant", "test_distribution_stays_close_to_reference", MADE),
        Asked("heads", "test_behaviour", MADE),
        Asked("attention", "test_attention_stays_close_to_reference", MADE),
        Asked("layers", "test_groups_of_tensors", MADE),
        Asked("mine", "test_other", MADE),
    ]
    needed = pieces_of(asked, LADDER, mixed=[])
    names = [[f"{piece.name} {piece.subject.name} {piece.suite}" for piece in pieces] for pieces in needed.values()]
    assert names == [
        ["passes/reference tiny quant"],
        ["passes/reference tiny quant", "models/quantized tiny-Q2_K quant", "passes/candidate tiny-Q2_K quant"],
        ["passes/reference tiny quant", "models/quantized tiny-Q2_K quant", "passes/candidate tiny-Q2_K quant"],
        ["attention/observed tiny heads", "models/quantized tiny-Q2_K quant", "attention/compared tiny-Q2_K heads"],
        ["attention/observed tiny heads", "models/quantized tiny-Q2_K quant", "attention/compared tiny-Q2_K heads"],
        ["passes/reference tiny quant"],
        [],
    ]
    with_mixtures = pieces_of(asked, LADDER, mixed=[MADE])[asked[5]]
    assert [piece.name for piece in with_mixtures] == ["passes/reference", "models/quantized", "passes/mixture"]


def test_of_the_reference_nothing_is_compared() -> None:
    asked = Asked("heads", "test_importance_of_heads", REFERENCE)
    (pieces,) = pieces_of([asked], LADDER, mixed=[]).values()
    assert [piece.name for piece in pieces] == ["heads/screen", "heads/sweep"]


def _pieces(ladder: Ladder, suite: str, test: str, subject: PlannedSubject) -> list[str]:
    (pieces,) = pieces_of([Asked(suite, test, subject)], ladder, mixed=[]).values()
    return [f"{piece.name} {piece.subject.name}" for piece in pieces if piece.name != "models/quantized"]


@pytest.fixture(scope="module")
def variants() -> Ladder:
    """The model `tiny` and a type of it, each with another cache and with an adapter; the full cache is in q8_0."""
    options = ("--models=tiny", "--gguf-quants=Q8_0", "--gguf-kv=q8_0/q8_0,q4_0/q4_0", "--gguf-kv-reference=q8_0/q8_0")
    return plan_ladder(read_options(parse_command_line(*options)))


def test_a_cache_is_compared_with_its_own_file_and_with_the_reference(variants: Ladder) -> None:
    of_reference, of_other = variants.cached
    test = "test_cost_of_weights_and_cache_together"
    assert _pieces(variants, "kv", test, of_reference) == [
        "passes/reference-depth tiny-F16 [kv=q8_0/q8_0]",
        "passes/candidate-depth tiny-F16 [kv=q4_0/q4_0]",
    ]
    assert _pieces(variants, "kv", test, of_other) == [
        "passes/reference-depth tiny-Q8_0 [kv=q8_0/q8_0]",
        "passes/reference-depth tiny-F16 [kv=q8_0/q8_0]",
        "passes/joint tiny-Q8_0 [kv=q4_0/q4_0]",
        "passes/candidate-depth tiny-Q8_0 [kv=q8_0/q8_0]",
        "passes/candidate-depth tiny-F16 [kv=q4_0/q4_0]",
    ]


def test_an_adapter_is_compared_with_its_base_and_with_the_reference(variants: Ladder) -> None:
    on_reference, on_other = variants.adapted
    test = "test_merging_before_quantizing"
    assert _pieces(variants, "lora", test, on_other) == [
        f"lora/effect-own {on_reference.name}",
        f"lora/retained-own {on_other.name}",
        f"lora/merged {on_other.name}",
    ]
    assert _pieces(variants, "lora", "test_effect_elsewhere", on_reference) == [
        f"lora/effect-corpus {on_reference.name}"
    ]
    (one,) = on_reference.adapters
    several = replace(on_reference, adapters=(one, replace(one, name="other", scale=0.5)))
    assert _pieces(variants, "lora", "test_adapters_together", several) == [
        f"lora/effect-own {several.name}",
        f"lora/effect-corpus {several.name}",
        f"lora/effect-own {on_reference.name}",
        "lora/effect-own tiny-F16 [lora=other:0.5]",
        f"lora/effect-corpus {on_reference.name}",
        "lora/effect-corpus tiny-F16 [lora=other:0.5]",
    ]


def test_a_file_that_cannot_be_compared_is_measured_against_itself(variants: Ladder) -> None:
    """With another vocabulary there is no joint pass."""
    _, other = variants.cached
    infos = {"tiny-F16": variants.infos["tiny-F16"], "tiny": replace(variants.infos["tiny-F16"], vocab_sha256="other")}
    model = replace(other.model, base=None, quant=None, name="tiny")
    ladder = replace(variants, infos=infos)
    assert _pieces(ladder, "kv", "test_cache_keeps_the_distribution", replace(other, model=model)) == [
        "passes/reference-depth tiny [kv=q8_0/q8_0]",
        "passes/candidate-depth tiny [kv=q4_0/q4_0]",
    ]


def test_seconds_count_for_the_first_test_that_needs_them(variants: Ladder) -> None:
    options = read_options(parse_command_line())
    (of_reference, of_other), reference = variants.cached, variants.reference
    plain = variants.with_full_cache(replace(of_reference, kv=None))
    assert reference is not None
    asked = [
        Asked("kv", "test_cache_keeps_the_distribution", of_reference),
        Asked("kv", "test_loss_does_not_grow_with_depth", of_reference),
        Asked("kv", "test_cache_keeps_the_distribution", of_other),
        Asked("kv", "test_speed_at_depth", plain),
        Asked("mine", "test_other", of_other),
    ]
    seconds = seconds_by_test(Expecting(1, lambda: 0, variants.infos), asked, variants, options, load_prompts())
    assert [*seconds] == asked[:4]
    assert seconds[asked[0]] > 2.0
    # All that it needs is measured; nothing is timed beside other processes.
    assert seconds[asked[1]] == 0.0
    assert seconds[asked[2]] > seconds[asked[0]]
    assert seconds[asked[3]] == TESTS_S["kv"]


def test_another_cache_is_slower_but_of_one_fast_type(variants: Ladder) -> None:
    options, texts = read_options(parse_command_line()), TextSize.of(load_prompts())
    expecting = Expecting(1, lambda: 0, variants.infos)

    def seconds(kv: KVTypes | None) -> float:
        subject = PlannedSubject(variants.cached[0].model, kv)
        (piece,) = pieces_of([Asked("kv", "test_facts_are_found", subject)], variants, mixed=[]).popitem()[1]
        expected = expecting.measurement(piece, options, texts)
        assert expected is not None
        return expected.seconds

    assert seconds(None) == seconds(KVTypes("f32", "f32")) < seconds(KVTypes("q8_0", "q8_0"))
    assert seconds(KVTypes("q8_0", "q8_0")) < seconds(KVTypes("q4_0", "q4_0"))


@given(
    name=st.sampled_from(sorted(EFFORTS)),
    field=st.sampled_from(["chunks", "head_windows", "head_limit", "gen_tokens", "repetitions", "pp", "tg"]),
    less=st.integers(2, 60),
    more=st.integers(2, 60),
)
def test_more_of_anything_takes_no_less(scale: Scale, name: str, field: str, less: int, more: int) -> None:
    costs = Costs(token=3e-3, row=1e-3, step=2e-2, weight=1e-8, compare=1e-4)

    def seconds(count: int) -> float:
        options: Options = replace(scale.options, **cast("dict[str, Any]", {field: count}))
        changed = replace(scale, options=options, windows=options.chunks or 1)
        return EFFORTS[name](changed).at(costs)

    low, high = sorted((less, more))
    assert 0 < seconds(low) <= seconds(high)


def test_a_pass_decodes_its_windows_and_scores_half_of_each(scale: Scale) -> None:
    effort = EFFORTS["passes/candidate"](scale)
    # llama-perplexity scores positions n_ctx/2 to n_ctx - 2.
    assert (effort.tokens, effort.rows, effort.steps) == (16 * 512, 16 * 255, 0)
    assert effort.at(Costs(2.0, 3.0, 1.0, 1.0, 1.0)) == 16 * (512 * 2.0 + 255 * 3.0)


def test_a_joint_pass_decodes_every_position_once_and_compares_it_twice(scale: Scale) -> None:
    effort = EFFORTS["passes/joint"](scale)
    # Scored are positions 1 to n_ctx - 2.
    assert (effort.tokens, effort.rows, effort.compares) == (16 * 512, 16 * 510, 16 * 510)
    assert EFFORTS["passes/candidate-depth"](scale) == replace(effort, compares=0.0)


def test_an_adapter_is_read_on_no_more_windows_than_its_text_has(scale: Scale) -> None:
    own, elsewhere = (EFFORTS[f"lora/effect-{text}"](scale).tokens for text in ("own", "corpus"))
    assert (own, elsewhere) == (2 * 3 * 512, 2 * 8 * 512)
    assert EFFORTS["lora/sweep"](scale).tokens == 2 * 6 * (3 + 4) * 512
    short = replace(scale, options=replace(scale.options, chunks=2))
    assert EFFORTS["lora/effect-own"](short).tokens == 2 * 2 * 512


def test_heads_that_are_not_chosen_cost_only_the_screen(scale: Scale) -> None:
    few = replace(scale, options=replace(scale.options, head_limit=8))
    assert EFFORTS["heads/screen"](few) == EFFORTS["heads/screen"](scale)
    # Decodes begin at the layer that they change, the middle one on average.
    assert EFFORTS["heads/sweep"](scale).tokens == pytest.approx((2 * 64 * 15.5 / 30 + 1) * 4 * 96)
    assert EFFORTS["heads/sweep"](few).tokens == pytest.approx((2 * 8 * 15.5 / 30 + 1) * 4 * 96)


def test_the_size_of_prompts_is_about_that_of_their_tokens() -> None:
    size = TextSize.of(load_prompts())
    assert size.prompts == len(load_prompts().prompts)
    assert 10 * size.prompts < size.tokens < 200 * size.prompts
    assert size.first_tokens < size.tokens
    # Of equal prompts; of others more.
    assert size.squares >= size.tokens**2 / size.prompts
    assert Effort(seconds=2.0).at(Costs(1, 1, 1, 1, 1)) == 2.0


# -- what is told -----------------------------------------------------------------------------------------------------

ASKED = Asked("heads", "test_importance_of_heads", MADE)
SWEEP = Expected("heads/sweep", "tiny-Q2_K", "heads", "file", 50.0, 110.0)
BASE = Expected("heads/sweep", "tiny", "heads", "base", 20.0, 30.0)
PASS = Expected("passes/candidate", "tiny-Q2_K", "quant", "file", 65.0, 65.0)
TESTS = Expected("tests/quant", "tiny-Q2_K", "quant", "file", 1.0, 1.0)


def _forecast(*expected: Expected, durations: Durations | None = None, **more: Any) -> Forecast:
    by_key = {(each.name, each.subject): each for each in expected}
    needed = {ASKED: tuple(key for key in by_key if not key[0].startswith("tests/"))}
    return Forecast(by_key, needed, durations=durations, **more)


def _job(kind: str, subject: str | None) -> Job[Any]:
    topic = None if subject is None else SimpleNamespace(name=subject)
    return cast("Job[Any]", SimpleNamespace(name=kind, topic=topic))


def test_it_is_told_by_suite_with_what_takes_most() -> None:
    forecast = _forecast(SWEEP, BASE, PASS, TESTS)
    assert forecast.seconds == 206
    assert forecast.is_long
    assert forecast.sentence() == "about 3 min 26 s: heads 2:20 (of these 1:50 for tiny-Q2_K), quant 1:06"
    assert not _forecast(TESTS).is_long


def test_what_is_left_follows_from_how_wrong_it_was_so_far() -> None:
    forecast = _forecast(SWEEP, BASE, PASS)
    assert forecast.left(ASKED) == 205
    assert forecast.left(replace(ASKED, test="test_other")) == 0
    assert forecast.measured(_job("heads/sweep", "tiny"), 60.0)
    # Twice as long: the other sweep will be, and nothing else is known of the rest.
    assert forecast.left(ASKED) == 2 * 110 + 2 * 65
    assert forecast.measured(_job("passes/candidate", "tiny-Q2_K"), 65.0)
    assert forecast.left(ASKED) == 2 * 110


def test_what_nobody_expected_is_no_measurement_of_the_forecast() -> None:
    forecast = _forecast(SWEEP)
    assert not forecast.measured(_job("heads/sweep", "other"), 5.0)
    assert not forecast.measured(_job("analyses/kmeans", None), 5.0)
    assert not forecast.measured(_job("passes/candidate", "tiny-Q2_K"), 5.0)
    forecast.tested("heads", "tiny-Q2_K", 5.0)
    assert forecast.took == {}


def test_it_learns_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    durations = Durations(tmp_path, "here")
    forecast = _forecast(SWEEP, PASS, TESTS, durations=durations)
    for seconds in (25.0, 50.0):  # in two jobs
        forecast.measured(_job("heads/sweep", "tiny-Q2_K"), seconds)
    forecast.tested("quant", "tiny-Q2_K", 3.0)
    forecast.learn()
    known = Durations(tmp_path, "here")
    assert known.factor("heads/sweep", "file") == pytest.approx(1.5**0.5)
    assert known.factor("tests/quant", "file") == pytest.approx(3.0**0.5)
    assert known.factor("passes/candidate", "file") is None


def test_a_run_says_what_was_forecast_and_when_that_was_wrong() -> None:
    forecast = _forecast(SWEEP, BASE, PASS, TESTS, begun=100.0)
    forecast.measured(_job("heads/sweep", "tiny-Q2_K"), 220.0)
    run = {"forecast": forecast.to_json(now=400.0)}
    assert run["forecast"]["measurements"][0] == {"name": "heads/sweep", "predicted_s": 140.0, "actual_s": 220.0}
    assert forecast_told(run) == "3 min 26 s were forecast, and it took 5 min"
    assert wrong_forecast(run) == (
        "forecast: 3 min 26 s were forecast, and it took 5 min (heads/sweep 3 min 40 s instead of 2 min 20 s;"
        " passes/candidate 0 s instead of 1 min 5 s; tests/quant 0 s instead of 1 s)"
    )
    assert wrong_forecast({"forecast": forecast.to_json(now=320.0)}) is None
    assert wrong_forecast({"forecast": _forecast(TESTS, begun=100.0).to_json(now=400.0)}) is None
    assert wrong_forecast({}) is None
    assert forecast_told({}) == budget_told({}) == ""


def test_a_run_says_what_its_budget_left_out() -> None:
    left_out = [{"suite": "quant", "test": name, "model": "Q3_K_M"} for name in ("test_a", "test_b")]
    reduced = [{"what": "windows of the text", "option": "--gguf-chunks", "kept": 8, "of": 16}]
    budget = {"seconds": 600.0, "reduced": reduced, "left_out": left_out}
    assert budget_told({"budget": budget}) == (
        "10 min: 8 of 16 windows of the text (--gguf-chunks); without 2 tests of Q3_K_M"
    )
    assert budget_told({"budget": {"seconds": 90, "reduced": [], "left_out": []}}) == "1 min 30 s: nothing was left out"
