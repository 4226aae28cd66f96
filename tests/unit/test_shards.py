"""Parts of a run: who measures what, which parts belong together, and what a part says of the whole."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import OptionError, StoreError
from gguf_harness.inputs.option_values import Shard, shard_text
from gguf_harness.judge.claims import judge_claims
from gguf_harness.judge.shards import LOCAL, assign, difference, digest_of, machines_of, planned_here
from gguf_harness.report.badge import badge_message
from gguf_harness.report.data import RunView
from gguf_harness.report.shard_runs import check_parts, find_parts
from gguf_harness.report.standing import undecided_gates
from gguf_harness.store.run_content import content_problem
from gguf_harness.store.runs import load_run

WEIGHTS = st.dictionaries(st.text(max_size=8), st.integers(0, 10**6), max_size=30)


@given(weights=WEIGHTS, shards=st.integers(1, 12), data=st.data())
def test_assignment_depends_on_nothing_but_names_and_weights(
    weights: dict[str, int], shards: int, data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(weights.items()))))
    chosen = assign(weights, shards)
    assert assign(shuffled, shards) == chosen
    assert chosen.keys() == weights.keys()
    assert all(1 <= shard <= shards for shard in chosen.values())


@given(
    weights=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 50), min_size=1, max_size=7),
    shards=st.integers(1, 3),
)
def test_the_heaviest_part_is_within_grahams_bound(weights: dict[str, int], shards: int) -> None:
    def heaviest(places: dict[str, int]) -> int:
        return max(sum(weights[name] for name in weights if places[name] == shard) for shard in range(1, shards + 1))

    best = min(
        heaviest(dict(zip(weights, places, strict=True)))
        for places in itertools.product(range(1, shards + 1), repeat=len(weights))
    )
    assert heaviest(assign(weights, shards)) <= (4 / 3 - 1 / (3 * shards)) * best + 1e-9


def test_the_longest_file_comes_first() -> None:
    sizes = {"Q2": 2, "F16": 16, "Q8": 8, "Q4": 4, "Q6": 6}
    assert assign(sizes, 2) == {"F16": 1, "Q8": 2, "Q6": 2, "Q4": 2, "Q2": 1}
    assert assign({"b": 1, "a": 1}, 3) == {"a": 1, "b": 2}


def test_a_shard_is_written_as_a_part_of_all() -> None:
    assert shard_text("2/3") == Shard(2, 3) == (2, 3)
    assert str(Shard(2, 3)) == "shard 2 of 3"


@pytest.mark.parametrize(
    "text", ["", "x", "3", "0/3", "4/3", "1/0", "1/2/3", "-1/3", "+1/3", " 1/3", "1/3 ", "1.5/3", "²/3", f"1/{10**9}"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="shard"):
        shard_text(text)


def _model(name: str, shard: int, file: str | None = None) -> dict[str, Any]:
    identity = {"quantization": name, "family": ["llama", "1", "a"], "reference": name == "F16", "variant": None}
    content: dict[str, Any] = {"sample": f"of {name}", "quant": None, "adapters": []}
    return {
        "name": name, "file": file or name, "shard": shard, "bytes": 1, "content": content, "identity": identity,
    }  # fmt: skip


def _plan(**changed: Any) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "of": 3,
        "harness": "0.1.0",
        "reference": "F16",
        "models": [_model("F16", 1), _model("Q8_0", 2), _model("Q4_0", 3)],
        "settings": {"ctx": 512, "holm": False},
        "gates": {"kld_mean": {"metric": "kld_mean", "limit": 0.1, "confidence": 0.95, "source": ""}},
        "texts": {"corpus": "a" * 64},
        "suites": ["quant"],
        "compared_with": {},
        "comparisons": [],
        "tests": {"count": 9, "sha256": "b" * 64},
        "baseline": None,
    } | changed
    return plan | {"digest": digest_of(plan)}


def _gate(model: str, verdict: str = "pass") -> dict[str, Any]:
    value = 0.05 if verdict == "pass" else 0.5
    return {
        "suite": "quant", "test": f"t[{model}]", "model": model, "metric": "kld_mean", "value": value, "limit": 0.1,
        "better": "lower", "confidence": 0.95, "bound": value, "verdict": verdict, "p_value": 0.01, "detail": "KL.",
        "more_clusters": None, "prompt": None, "layer": None, "head": None, "part": None,
    }  # fmt: skip


def _part(index: int, *models: str, plan: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    plan = plan or _plan()
    planned = [{"model": model, "suite": "quant", "test": "t", "metric": "kld_mean"} for model in ("Q8_0", "Q4_0")]
    tests = [
        {
            "id": f"t[{model}]", "suite": "quant", "model": model, "outcome": "passed", "message": "", "kind": None,
            "summary": None, "duration_s": 0.1, "attempts": 1,
        }
        for model in models
    ]  # fmt: skip
    return {
        "schema_version": 2, "id": f"run-{index}", "command": [], "started": "2026-11-28T11:00:00+00:00",
        "duration_s": 1.0, "finished": True, "session": {"selected": len(models), "ran": len(models), "exit_status": 0},
        "harness": "0.1.0", "machine": {"cpu": "A", "cores": 2}, "engine": None, "models": [], "reference": "F16",
        "reference_reason": "", "corpus": None, "prompts": None, "texts": [], "settings": {"holm": False},
        "tests": tests, "estimates": [], "metrics": [], "arrays": [], "planned": planned,
        "gates": [_gate(model) for model in models if model != "F16"], "early": [], "heads": [], "analytics": [],
        "baseline": None, "warnings": [], "cache": {"hits": 0, "misses": 0},
        "shard": {"index": index, "of": plan["of"], "plan": plan, "failed": 0}, "merged": None,
    } | changed  # fmt: skip


def _write(folder: Path, run: dict[str, Any], name: str = "") -> Path:
    path = folder / "runs" / (name or run["id"]) / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run))
    return path


def test_a_digest_is_of_the_content_and_not_of_the_order_of_files() -> None:
    plan = _plan()
    turned = _plan(models=plan["models"][::-1])
    assert turned["digest"] == plan["digest"]
    sections = [key for key in plan if key != "digest"]
    others = {_plan(**{key: [] if key == "models" else "other"})["digest"] for key in sections}
    assert len(others | {plan["digest"]}) == len(sections) + 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"settings": {"ctx": 256, "holm": False}}, "the settings differ (ctx: 512 and 256)"),
        ({"of": 4}, "the number of shards differs (3 and 4)"),
        ({"tests": {"count": 5, "sha256": "c"}}, "the selected tests differ (9 and 5 tests)"),
        ({"tests": {"count": 9, "sha256": "c"}}, "the selected tests differ (9 each, and not the same ones)"),
        (
            {"models": [_model(f"{name}", 1) for name in ("F16", "Q8_0", "Q4_0")], "of": 3, "suites": []},
            "the suites differ (quant and )",
        ),
        (
            {"models": [_model("F16", 1), _model("Q8_0", 2), _model("Q4_0", 3), _model("Q4_0 [kv=a]", 3, "Q4_0")]},
            "the models differ (Q4_0: another file)",
        ),
        ({"models": [_model("F16", 1)]}, "the models differ (Q4_0: in one of them only; Q8_0: in one of them only)"),
        ({"texts": {"corpus": "c" * 64}}, f"the texts differ (corpus: {'a' * 12} and {'c' * 12})"),
        ({"baseline": "d" * 64}, f"the baseline differs (none and {'d' * 12})"),
        ({"harness": "0.2.0"}, "the version of gguf-harness differs (0.1.0 and 0.2.0)"),
    ],
)
def test_what_differs_is_named(changed: dict[str, Any], told: str) -> None:
    assert difference(_plan(), _plan(**changed)) == told


def test_every_local_setting_exists() -> None:
    from dataclasses import fields

    from gguf_harness.inputs.options import Options

    assert {field.name for field in fields(Options)} >= LOCAL


def test_a_part_answers_for_its_own_gates() -> None:
    part = _part(2, "Q8_0")
    assert content_problem(part) is None
    assert [gate["model"] for gate in planned_here(part, part["planned"])] == ["Q8_0"]
    assert undecided_gates(part) == []
    # A gate of its own that no test decided is left open, and is told.
    assert [one.model for one in undecided_gates(part | {"gates": []})] == ["Q8_0"]
    whole = part | {"shard": None}
    assert [one.model for one in undecided_gates(whole)] == ["Q4_0"]


def test_a_part_never_reads_as_a_pass_of_the_whole() -> None:
    model: dict[str, Any] = {
        "file": "Q8_0", "variant": None, "context": None, "adapters": [], "bytes": 8, "bits_per_weight": 8.0,
        "sha256": "a", "order": 1, "name": "Q8_0",
    }  # fmt: skip
    view = RunView(_part(2, "Q8_0", models=[model]))
    assert [one.verdict for one in view.candidates] == ["pass"]
    assert view.recommended is None
    assert view.headline() == "Shard 2 of 3: 1 of 2 gates are decided here; merge the runs to decide the rest"
    assert badge_message(view) == ("shard 2 of 3", "none")
    failing = _part(2, "Q8_0", models=[model], gates=[_gate("Q8_0", "fail")])
    assert "1 of 2 gates are decided here, 1 failed; merge" in RunView(failing).headline()
    assert badge_message(RunView(failing)) == ("shard 2 of 3 fails", "fail")
    whole = RunView(_part(2, "Q8_0", models=[model], shard=None, planned=[]))
    assert whole.recommended is not None
    assert whole.part is None


def test_a_part_with_nothing_to_do_says_so() -> None:
    view = RunView(_part(3, plan=_plan(models=[_model("F16", 1), _model("Q8_0", 2)]), planned=[], models=[]))
    assert view.headline() == "Shard 3 of 3: nothing to do, since the run has 2 files; merge the others"


def test_older_runs_were_measured_at_once(tmp_path: Path) -> None:
    run = _part(1, "Q8_0")
    del run["shard"], run["merged"]
    path = _write(tmp_path, run)
    read = load_run(path)
    assert RunView(read).part is None
    assert len(planned_here(read, read["planned"])) == 2
    assert machines_of(read) == {}
    with pytest.raises(OptionError, match="is a whole run"):
        find_parts([str(path)], tmp_path)


@pytest.mark.parametrize(
    ("shard", "told"),
    [
        ([], "shard is a list"),
        ({"index": 1, "of": 3}, "shard has no plan"),
        ({"index": "1", "of": 3, "plan": {}}, "shard.index is a text"),
        ({"index": 1, "of": 3, "plan": {}}, "shard.plan has no digest"),
        ({"index": 1, "of": 3, "plan": _plan(models=[{"name": "a"}])}, "shard.plan.models[0] has no file"),
    ],
)
def test_a_damaged_part_is_no_run(shard: object, told: str) -> None:
    problem = content_problem(_part(1) | {"shard": shard})
    assert problem is not None
    assert problem.startswith(told)


# -- which parts belong together ------------------------------------------------------------------------------------


def test_parts_are_found_by_id_and_in_folders_of_downloads(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _write(results, _part(1, "F16"))
    _write(tmp_path / "downloads" / "shard-2", _part(2, "Q8_0"))
    whole = _write(tmp_path / "downloads" / "other", _part(1, "F16", shard=None), "whole")
    parts, notes = find_parts(["run-1", str(tmp_path / "downloads"), str(tmp_path / "downloads")], results)
    assert [part.index for part in parts] == [1, 2]
    assert notes[:1] == [f"{whole} is left out: it is a whole run"]
    checked = check_parts(parts, notes)
    assert checked.missing == (3,)
    assert checked.stopped == "shard 3 of 3 is missing: its models are Q4_0"


def test_a_whole_run_is_no_part(tmp_path: Path) -> None:
    path = _write(tmp_path, _part(1, "F16", shard=None))
    with pytest.raises(OptionError, match="is a whole run") as raised:
        find_parts([str(path)], tmp_path)
    assert "gguf-harness compare" in str(raised.value)
    with pytest.raises(OptionError, match="contains no part of a run"):
        find_parts([str(tmp_path)], tmp_path)


def _checked(tmp_path: Path, *runs: dict[str, Any]) -> Any:
    paths = [_write(tmp_path, run, f"{index}") for index, run in enumerate(runs)]
    return check_parts(*find_parts([str(path) for path in paths], tmp_path))


def test_the_same_part_twice_counts_once(tmp_path: Path) -> None:
    parts = _checked(tmp_path, _part(1, "F16"), _part(2, "Q8_0"), _part(2, "Q8_0"), _part(3, "Q4_0"))
    assert [part.index for part in parts.parts] == [1, 2, 3]
    assert parts.stopped is None
    assert parts.notes == (f"{tmp_path}/runs/2/run.json is left out: {tmp_path}/runs/1/run.json is the same run",)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (_part(2, "Q8_0", id="again"), "There are two runs of shard 2 of 3"),
        (_part(3, "Q4_0", plan=_plan(settings={"ctx": 256})), "not parts of one run: the settings differ"),
        (
            _part(3, "Q4_0", corpus={"name": "a", "sha256": "c", "windows": 4, "n_ctx": 32, "scored_tokens": 9}),
            "was measured with another text",
        ),
        (_part(3, "Q4_0", engine={"llama_cpp": "b2"}), "was measured with another llama.cpp"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    corpus = {"name": "a", "sha256": "b", "windows": 4, "n_ctx": 32, "scored_tokens": 9}
    measured = _part(2, "Q8_0", corpus=corpus, engine={"llama_cpp": "b1"})
    with pytest.raises(OptionError, match=told):
        _checked(tmp_path, _part(1, "F16"), measured, other)


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    model: dict[str, Any] = {
        "name": "F16", "file": "F16", "variant": None, "context": None, "adapters": [], "bytes": 1, "sha256": "a" * 64,
    }  # fmt: skip
    runs = (_part(1, "F16", models=[model]), _part(2, "Q8_0", models=[model | {"sha256": "b" * 64}]))
    with pytest.raises(OptionError, match="F16 is another file in shard 2 of 3"):
        _checked(tmp_path, *runs)


def test_a_changed_plan_is_damage(tmp_path: Path) -> None:
    plan = _plan() | {"settings": {"ctx": 1}}
    with pytest.raises(StoreError, match="another digest"):
        _checked(tmp_path, _part(1, "F16", plan=plan))


def test_a_part_without_a_file_is_not_missed(tmp_path: Path) -> None:
    plan = _plan(of=4)
    parts = _checked(tmp_path, *(_part(i, name, plan=plan) for i, name in enumerate(("F16", "Q8_0", "Q4_0"), 1)))
    assert parts.missing == ()
    assert parts.notes == ("shard 4 of 4 is not there: it had nothing to do",)
    assert parts.stopped is None


def test_an_unfinished_part_is_named(tmp_path: Path) -> None:
    session = {"selected": 4, "ran": 1, "stopped": "KeyboardInterrupt", "exit_status": 2}
    parts = _checked(tmp_path, _part(1, "F16"), _part(2, finished=False, session=session), _part(3, "Q4_0"))
    assert parts.stopped == "shard 2 of 3 (run-2) did not finish: 1 of 4 tests ran (KeyboardInterrupt)"


# -- several machines -----------------------------------------------------------------------------------------------


def _merged(*cpus: str) -> dict[str, Any]:
    shards = [
        {"index": index, "machine": {"cpu": cpu, "cores": 2}, "models": [model]}
        for index, (cpu, model) in enumerate(zip(cpus, ("F16", "Q8_0", "Q4_0"), strict=False), 1)
    ]
    return {"of": 3, "shards": shards, "missing": []}


def test_machines_are_named_where_they_differ() -> None:
    assert machines_of({"merged": _merged("A", "A", "A")}) == {}
    assert machines_of({}) == {}
    assert machines_of({"merged": _merged("A", "A", "B")})["Q4_0"] == "the machine of shard 3 (B, 2 cores)"


def test_no_ratio_of_speeds_across_machines() -> None:
    """The claim on speed compares neighbours by size, whose ratios to the reference were timed apart."""
    facts = {"architecture": "llama", "n_layer": 1, "n_embd": 32, "n_vocab": 9}
    sizes = {"F16": 16, "Q8_0": 8, "Q4_0": 4}
    models = [
        {"name": name, "bytes": size, "bits_per_weight": size, "reference": name == "F16", **facts}
        for name, size in sizes.items()
    ]
    rows = [
        {"model": name, "metric": metric, "value": 2.0, "se": 0.01, "clusters": 5}
        for name in sizes
        for metric in ("tg_speed_ratio", "tg_tokens_per_s")
    ]

    def told(*cpus: str) -> str:
        findings = judge_claims({"models": models, "estimates": rows, "merged": _merged(*cpus)})
        return next(one.detail for one in findings if "Q8_0" in one.detail and "Q4_0" in one.detail)

    assert "timed on" not in told("A", "A", "A")
    assert "it was timed on the machine of shard 3 (B, 2 cores), Q8_0 on the machine of shard 2" in told("A", "A", "B")


def test_written_parts_are_read_as_they_are(tmp_path: Path) -> None:
    path = _write(tmp_path, _part(1, "F16"))
    assert load_run(path)["shard"]["plan"] == _plan()
