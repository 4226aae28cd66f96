"""What measurements took, kept for later forecasts."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.metrics.number_format import format_clock, format_duration
from gguf_harness.store.learned_durations import FOLDER, Durations


def test_a_file_has_its_own_factor_and_others_that_of_the_kind(tmp_path: Path) -> None:
    durations = Durations(tmp_path, "here")
    assert durations.factor("heads/sweep", "a") is None
    for _ in range(2):
        durations.add("heads/sweep", "a", expected=10.0, seconds=20.0)
        durations.add("heads/sweep", "b", expected=10.0, seconds=40.0)
    for known in (durations, Durations(tmp_path, "here")):
        assert known.factor("heads/sweep", "a") == pytest.approx(2.0)
        assert known.factor("heads/sweep", "b") == pytest.approx(4.0)
        assert known.factor("heads/sweep", "c") == pytest.approx(3.0)
        assert known.factor("heads/screen", "a") is None
    assert Durations(tmp_path, "elsewhere").factor("heads/sweep", "a") is None


def test_the_median_of_the_newest_counts(tmp_path: Path) -> None:
    durations = Durations(tmp_path, "here")
    for factor in (100.0, 1.0, 1.1, 50.0, 0.9, 1.0):
        durations.add("passes/reference", "a", expected=1.0, seconds=factor)
    assert durations.factor("passes/reference", "a") == 1.0


def test_a_single_one_counts_half(tmp_path: Path) -> None:
    """It may have been disturbed: the middle, by ratio, between it and what was expected."""
    durations = Durations(tmp_path, "here")
    durations.add("passes/reference", "a", expected=1.0, seconds=9.0)
    assert durations.factor("passes/reference", "a") == pytest.approx(3.0)


def test_short_ones_say_nothing_of_other_files(tmp_path: Path) -> None:
    durations = Durations(tmp_path, "here")
    durations.add("passes/reference", "tiny", expected=0.01, seconds=0.3)
    assert durations.factor("passes/reference", "tiny") == pytest.approx(30**0.5)
    assert durations.factor("passes/reference", "large") is None


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        '{"kind": "heads/sweep"}',
        '{"kind": "heads/sweep", "file": "a", "expected": 0, "seconds": 1}',
        '{"kind": "heads/sweep", "file": "a", "expected": "x", "seconds": 1}',
        '{"kind": "heads/sweep", "file": "a", "expected": 1, "seconds": NaN}',
        '{"kind": "heads/sweep", "file": "a", "expected": 1, "seconds": 1e9}',
    ],
)
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, line: str) -> None:
    durations = Durations(tmp_path, "here")
    for _ in range(2):
        durations.add("heads/sweep", "a", expected=1.0, seconds=2.0)
    with (tmp_path / FOLDER / "here.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert Durations(tmp_path, "here").factor("heads/sweep", "a") == pytest.approx(2.0)


def test_a_long_table_is_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_harness.store.learned_durations._MOST_LINES", 10)
    durations = Durations(tmp_path, "here")
    for number in range(1, 26):
        durations.add("heads/sweep", "a", expected=1.0, seconds=float(number))
    assert len((tmp_path / FOLDER / "here.jsonl").read_text().splitlines()) <= 10
    assert Durations(tmp_path, "here").factor("heads/sweep", "a") == pytest.approx((22 * 23) ** 0.5)


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    durations = Durations(tmp_path, "here")
    durations.add("heads/sweep", "a", expected=1.0, seconds=4.0)
    assert durations.factor("heads/sweep", "a") == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "clock", "words"),
    [
        (0.4, "0:00", "0 s"),
        (59.6, "1:00", "1 min"),
        (250.0, "4:10", "4 min 10 s"),
        (3600.0, "1:00:00", "1 h"),
        (7390.0, "2:03:10", "2 h 3 min"),
    ],
)
def test_times_as_people_read_them(seconds: float, clock: str, words: str) -> None:
    assert (format_clock(seconds), format_duration(seconds)) == (clock, words)
