"""Changes in a history: their errors, what is tested, and how often chance alone is called worse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.judge.history import Change, Family, History, Moment, Point, Segment, Series, read_history
from gguf_harness.judge.history.verdicts import judge_series
from gguf_harness.metrics.kernels.standard_errors import clustered_se
from gguf_harness.metrics.registry import METRICS
from gguf_harness.metrics.windows import from_mean, to_mean
from gguf_harness.store.arrays import load_arrays, save_arrays
from tests.history_runs import Measured, write_run_of

Floats = NDArray[np.float64]

TEXT = np.random.default_rng(1).gamma(9.0, 0.03 / 9, 16)
"""KL of each window: their spread is that of the text, the same in all runs."""


def hashed(number: int) -> str:
    return f"{number:064x}"


def stored(results: Path, *runs: Measured, **changed: Any) -> History:
    for number, candidate in enumerate(runs):
        write_run_of(results, number, [candidate], **changed)
    return read_history(results, metrics=["all"])


def of(history: History, metric: str = "kld_mean", role: str = "Q4_K_M") -> list[Point]:
    (series,) = [one for one in history.families[0].series if (one.role, one.metric.name) == (role, metric)]
    return series.points


def last(history: History, metric: str = "kld_mean", role: str = "Q4_K_M") -> Change:
    change = of(history, metric, role)[-1].previous
    assert change is not None
    return change


def test_windows_of_both_runs_are_paired(tmp_path: Path) -> None:
    """The error is that of the differences, from the textbook: t is their mean over s / sqrt(n)."""
    after = TEXT + np.random.default_rng(2).normal(0.002, 0.0005, 16)
    change = last(stored(tmp_path, Measured(TEXT), Measured(after, sha256=hashed(2))))
    differences = after - TEXT
    assert (change.how, change.windows, change.clusters) == ("paired", 16, 16)
    assert change.difference == pytest.approx(differences.mean(), rel=1e-12)
    assert change.se == pytest.approx(differences.std(ddof=1) / math.sqrt(16), rel=1e-12)
    assert change.outcome == "worse"


def test_without_stored_windows_the_values_are_independent(tmp_path: Path) -> None:
    after = TEXT + 0.002
    change = last(stored(tmp_path, Measured(TEXT), Measured(after, sha256=hashed(2), pairs=False)))
    alone = TEXT.std(ddof=1) / math.sqrt(16)
    assert (change.how, change.windows) == ("independent", 0)
    assert change.se == pytest.approx(math.sqrt(2) * alone, rel=1e-12)
    assert change.outcome == "no change"


def test_other_windows_are_not_paired(tmp_path: Path) -> None:
    write_run_of(tmp_path, 0, [Measured(TEXT)])
    file = write_run_of(tmp_path, 1, [Measured(TEXT + 0.002, sha256=hashed(2))]).parent / "arrays" / "0.npz"
    save_arrays(file, load_arrays(file) | {"window": np.arange(16)})
    assert last(read_history(tmp_path)).how == "independent"


@pytest.mark.parametrize("damage", ["missing", "broken", "shape", "nan", "outside"])
def test_arrays_that_cannot_be_used_only_cost_the_pairing(tmp_path: Path, damage: str) -> None:
    write_run_of(tmp_path, 0, [Measured(TEXT)])
    run = write_run_of(tmp_path, 1, [Measured(TEXT + 0.002, sha256=hashed(2))])
    file = run.parent / "arrays" / "0.npz"
    if damage == "missing":
        file.unlink()
    elif damage == "broken":
        file.write_bytes(b"no zip")
    elif damage == "shape":
        save_arrays(file, load_arrays(file) | {"window_kld": TEXT[:3]})
    elif damage == "nan":
        save_arrays(file, load_arrays(file) | {"window_kld": np.full(16, np.nan)})
    else:
        content = json.loads(run.read_text())
        file.rename(tmp_path / "elsewhere.npz")
        content["arrays"][0]["file"] = "../../elsewhere.npz"
        run.write_text(json.dumps(content))
    change = last(read_history(tmp_path))
    assert change.how == "independent"
    assert change.difference == pytest.approx(0.002)


def test_means_that_do_not_give_the_recorded_values_are_not_used(tmp_path: Path) -> None:
    """The loss of the reference must cancel: where it changed too, the candidate's own windows do not say how."""
    ratios = [(1.05, 1.07), (1.05, 1.05 * math.exp(0.002))]
    expected = ["independent", "paired"]
    for place, ((old, new), how) in enumerate(zip(ratios, expected, strict=True)):
        noise = np.random.default_rng(3).normal(0, 0.0003, 16)
        after = TEXT + 0.002 + noise - noise.mean()
        runs = [
            Measured(TEXT, more=[("ppl_ratio", old, 0.01)]),
            Measured(after, more=[("ppl_ratio", new, 0.01)], sha256=hashed(2)),
        ]
        assert last(stored(tmp_path / str(place), *runs), "ppl_ratio").how == how


def test_the_error_of_a_ratio_is_that_of_its_logarithm_times_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(0, 0.0003, 16)
    after = TEXT + 0.002 + noise - noise.mean()
    new = 1.05 * math.exp(0.002)
    runs = [
        Measured(TEXT, more=[("ppl_ratio", 1.05, 0.01)]),
        Measured(after, more=[("ppl_ratio", new, 0.01)], sha256=hashed(2)),
    ]
    change = last(stored(tmp_path, *runs), "ppl_ratio")
    assert change.se == pytest.approx(new * noise.std(ddof=1) / 4, rel=1e-9)
    assert change.outcome == "worse"


@pytest.mark.parametrize("metric", ["ppl", "ppl_ratio", "kld_mean", "delta_p_rms", "same_top"])
def test_the_mean_of_a_value_is_the_inverse_of_the_value_of_a_mean(metric: str) -> None:
    for value in (0.01, 0.5, 0.97):
        at = to_mean(metric, value)
        back, slope = from_mean(metric, at)
        assert back == pytest.approx(value, rel=1e-12)
        above, below = (from_mean(metric, at + step)[0] for step in (1e-7, -1e-7))
        assert slope == pytest.approx((above - below) / 2e-7, rel=1e-4)


def test_the_same_file_with_the_same_number_claims_nothing(tmp_path: Path) -> None:
    history = stored(tmp_path, Measured(TEXT), Measured(TEXT), Measured(TEXT))
    changes = [point.previous for point in of(history)[1:]]
    assert [change and (change.how, change.outcome, change.p_worse) for change in changes] == [
        ("same file", "same", None)
    ] * 2
    assert {point.mark for point in of(history)} == {""}
    assert history.tested == 0


def test_another_number_of_the_same_file_is_marked_with_what_else_changed(tmp_path: Path) -> None:
    write_run_of(tmp_path, 0, [Measured(TEXT)])
    write_run_of(tmp_path, 1, [Measured(TEXT * 1.3)], engine={"llama_cpp": "abc1234"})
    write_run_of(tmp_path, 2, [Measured(TEXT * 1.3 * (1 + 1e-6))], engine={"llama_cpp": "abc1234"})
    history = read_history(tmp_path)
    (_, point, later) = of(history)
    assert point.previous is not None
    assert (point.mark, point.previous.outcome) == ("another number", "another number")
    assert point.previous.circumstances == ("llama.cpp (0c1e570 -> abc1234)",)
    # Another number by rounding is told, and not marked.
    assert later.previous is not None
    assert (later.mark, later.previous.outcome) == ("", "another number")
    assert history.tested == 0


def test_a_fact_of_a_file_that_changed_is_certain(tmp_path: Path) -> None:
    sizes = (500.0, 500.2, 600.0, 400.0)
    runs = [Measured(None, more=[("bits_per_weight", size, None)], sha256=hashed(at)) for at, size in enumerate(sizes)]
    points = of(stored(tmp_path, *runs), "bits_per_weight")
    assert [point.previous.how for point in points[1:] if point.previous] == ["fact"] * 3
    # Less than a thousandth is no change.
    assert [point.mark for point in points] == ["", "", "worse", "better"]


@pytest.mark.parametrize(
    ("metric", "se", "doubt", "reason"),
    [
        ("tg_tokens_per_s", 0.1, None, "times of two runs are not compared; ratios to the reference are"),
        ("kld_max", None, None, "its error is not known"),
        ("delta_p_max", 0.1, None, "neither direction is better"),
        ("kld_mean", 0.001, "the machine was busy", "in doubt: the machine was busy"),
    ],
)
def test_what_decides_nothing_is_not_judged(
    tmp_path: Path, metric: str, se: float | None, doubt: str | None, reason: str
) -> None:
    for number, value in enumerate((0.5, 0.9)):
        file = write_run_of(tmp_path, number, [Measured(None, more=[(metric, value, se)], sha256=hashed(number))])
        run = json.loads(file.read_text())
        run["estimates"][-1]["doubt"] = doubt
        file.write_text(json.dumps(run))
    history = read_history(tmp_path, metrics=[metric], models=["Q4_K_M"])
    change = last(history, metric)
    assert (change.how, change.reason, change.outcome, change.p_worse) == ("not judged", reason, "not judged", None)
    assert change.difference == pytest.approx(0.4)
    assert history.tested == 0


def test_a_pass_that_stopped_when_it_knew_enough_decides_nothing(tmp_path: Path) -> None:
    """Its numbers lean towards what it stopped for."""
    early = [{"model": "toy-Q4_K_M", "windows": 16, "planned": 32, "saved_tokens": 8192}]
    runs = [Measured(TEXT + level, more=[("file_bytes", 5.0, None)], sha256=hashed(level)) for level in (0, 1)]
    history = stored(tmp_path, *runs, early=early)
    assert last(history).reason.startswith("in doubt: the pass stopped when its gates were decided")
    assert last(history, "file_bytes").how == "fact"


def test_higher_is_better_where_the_registry_says_so(tmp_path: Path) -> None:
    runs = [
        Measured(None, more=[("same_top", value, 0.002)], sha256=hashed(at))
        for at, value in enumerate((0.9, 0.8, 0.95))
    ]
    assert [point.mark for point in of(stored(tmp_path, *runs), "same_top")] == ["", "worse", "better"]


def test_a_slow_drift_is_found_against_the_first_value(tmp_path: Path) -> None:
    """No step is beyond its error, their sum is."""
    noise = np.random.default_rng(5).normal(0, 0.0004, (8, 16))
    noise -= noise.mean(axis=1, keepdims=True)
    runs = [Measured(TEXT + 0.00025 * at + noise[at], sha256=hashed(at)) for at in range(8)]
    points = of(stored(tmp_path, *runs))
    assert [point.mark for point in points].count("drifted") == 1
    assert {point.mark for point in points} == {"", "drifted"}
    at = next(place for place, point in enumerate(points) if point.mark)
    assert [point.first.outcome for point in points[at:] if point.first] == ["worse"] * (8 - at)


def test_a_regression_is_marked_once_where_it_happened(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    levels = (0, 0, 0.004, 0.004, 0, 0)
    runs = [Measured(TEXT + level + rng.normal(0, 0.0003, 16), sha256=hashed(at)) for at, level in enumerate(levels)]
    assert [point.mark for point in of(stored(tmp_path, *runs))] == ["", "", "worse", "", "better", ""]


# -- the level over a whole history ---------------------------------------------------------------------------------

RUNS, ROLES, WINDOWS, HISTORIES = 5, 2, 24, 1000

Draw = Callable[[np.random.Generator, int], Floats]
"""Window means of all runs, [runs, windows]."""


def simulated(windows: Sequence[Floats], *, paired: bool) -> Family:
    """A family with a series for each role, of means of windows [runs, windows]."""
    moments = tuple(
        Moment(str(at), datetime(2026, 1, 1 + at, tzinfo=UTC), None, None, Path(), True, {}, {}) for at in range(RUNS)
    )
    series = []
    for role, of_role in enumerate(windows):
        points = tuple(
            Point(
                at=at,
                model="m",
                content=(hashed(at),),
                value=float(means.mean()),
                se=clustered_se(means[:, None]),
                n=len(means),
                clusters=len(means),
                doubt=None,
                means={"kld_mean": dict(enumerate(means.tolist()))} if paired else {},
            )
            for at, means in enumerate(of_role)
        )
        series.append(Series(f"Q{role}", False, METRICS["kld_mean"], (Segment({}, "", points),)))
    return Family(
        "f" * 64, "f", True, moments, tuple(one.role for one in series), (METRICS["kld_mean"],), tuple(series)
    )


def marks(family: Family) -> list[tuple[str, int, str]]:
    ((judged,), _) = judge_series([family])
    return [(one.role, point.at, point.mark) for one in judged.series for point in one.points if point.mark]


def same_text(rng: np.random.Generator, windows: int) -> Floats:
    """What windows have in common is the text; each new file differs a little in each of them."""
    return rng.gamma(9.0, 0.03 / 9, windows) + rng.normal(0, 0.0008, (RUNS, windows))


def skewed(rng: np.random.Generator, windows: int) -> Floats:
    """The same with a few windows that differ much more than others."""
    return rng.gamma(9.0, 0.03 / 9, windows) + 0.0005 * rng.lognormal(0, 0.8, (RUNS, windows))


def other_text(rng: np.random.Generator, windows: int) -> Floats:
    return rng.gamma(9.0, 0.03 / 9, (RUNS, windows))


@pytest.mark.parametrize(("draw", "paired"), [(same_text, True), (skewed, True), (other_text, False)])
def test_without_a_change_at_most_one_history_in_twenty_says_worse(draw: Draw, paired: bool) -> None:
    rng = np.random.default_rng(16)
    wrong = 0
    for _ in range(HISTORIES):
        found = marks(simulated([draw(rng, WINDOWS) for _ in range(ROLES)], paired=paired))
        wrong += any(mark in {"worse", "drifted"} for *_, mark in found)
    assert wrong <= 0.05 * HISTORIES
    assert wrong > 0, "a test that never fires holds any level"


def test_a_change_of_five_standard_errors_is_found_where_it_is() -> None:
    rng = np.random.default_rng(16)
    found = 0
    for _ in range(200):
        windows = [same_text(rng, WINDOWS) for _ in range(ROLES)]
        # The error of a difference of two runs.
        windows[1][3:] += 5 * 0.0008 * math.sqrt(2 / WINDOWS)
        found += ("Q1", 3, "worse") in marks(simulated(windows, paired=True))
    assert found >= 170
    exact = [np.tile(TEXT, (RUNS, 1)) for _ in range(ROLES)]
    noise = rng.normal(0, 0.0008, len(TEXT))
    step = noise - noise.mean() + 5 * float(noise.std(ddof=1)) / math.sqrt(len(TEXT))
    exact[1][3:] += step
    assert marks(simulated(exact, paired=True)) == [("Q1", 3, "worse")]
