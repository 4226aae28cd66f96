"""What GitHub shows of a run: the markdown, its limit of size, and annotations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import StoreError
from gguf_harness.report.github import SUMMARY_BYTES, annotation_lines, append_summary, shortened
from gguf_harness.report.markdown import render_markdown
from tests.unit.test_report import STORED, _broken_runs, _rename

HOSTILE = "a|b`c`<img src=x>$x$\n::error::injected\r\n# head [l](u) 100%, 1:2\x1b[2J\udc80"


@pytest.fixture
def run() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return content


def test_the_summary_says_what_failed_and_what_was_run(run: dict[str, Any]) -> None:
    run["baseline"] = {
        "name": "main",
        "comparisons": [
            {
                "model": "smollm2-135m-Q4_K_M", "metric": "same_top", "old": 0.9, "new": 0.8645, "windows": 16,
                "outcome": "worse", "detail": "same top is worse.", "changes": [],
            }
        ],
    }  # fmt: skip
    text = render_markdown(run)
    sections = dict(zip(re.findall(r"(?m)^### (.*)$", text), re.split(r"(?m)^### .*$", text)[1:], strict=True))
    assert list(sections) == ["Failed gates", "Undecided gates", "Baseline main", "Warnings", "What was run"]
    assert sections["Failed gates"].count("\n- ") == 4
    assert "Q3\\_K\\_M: KL mean is 0.1219 ± 0.0024 nats; the limit is at most 0.1 nats." in sections["Failed gates"]
    assert "| smollm2-135m-Q4\\_K\\_M | same top | 90 % | 86.45 % | 16 | ❌ worse |" in sections["Baseline main"]
    assert "is inconclusive" not in sections["Warnings"]
    for words in ("pytest suites/quant --models=smollm2-135m", "llama.cpp 0c1e570-dirty", "AMD EPYC, 2 cores"):
        assert words in sections["What was run"]


def test_hostile_names_stay_in_their_cells_and_lines(run: dict[str, Any]) -> None:
    hostile = _rename(run, "smollm2-135m-Q4_K_M", HOSTILE)
    hostile["warnings"].append(HOSTILE)
    hostile["tests"][0] |= {"outcome": "failed", "message": HOSTILE}
    hostile["command"].append(HOSTILE)
    text = render_markdown(hostile)
    text.encode()
    plain = render_markdown(run)
    assert text.count("\n## ") == plain.count("\n## ") == 0
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {11}
    assert len(cells) == 8
    assert not re.search(r"<|(?<!\\)[`$\[]|\x1b|\r", text)
    assert not re.search(r"(?m)^(::|# )", text)


def test_a_summary_is_appended(run: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    append_summary(run, file)
    assert file.read_text(encoding="utf-8") == render_markdown(run)
    file.write_text("no end of line", encoding="utf-8")
    append_summary(run, file)
    assert file.read_text(encoding="utf-8") == f"no end of line\n\n{render_markdown(run)}"


def test_a_summary_keeps_to_what_github_shows(run: dict[str, Any], tmp_path: Path) -> None:
    run["warnings"] = [f"warning {number}: {'ä' * 1900}" for number in range(400)]
    file = tmp_path / "summary.md"
    file.write_text("before\n" * 1000, encoding="utf-8")
    append_summary(run, file)
    text = file.read_text(encoding="utf-8")
    assert SUMMARY_BYTES - 5000 < len(text.encode()) <= SUMMARY_BYTES
    assert text.endswith("_Shortened: GitHub shows 1 MiB per step. The report has the rest._\n")
    # Whole lines only.
    assert {len(line) for line in text.splitlines() if line.startswith("- warning")} <= {1913, 1914, 1915}
    file.write_bytes(b"x" * SUMMARY_BYTES)
    with pytest.raises(StoreError, match="it is full"):
        append_summary(run, file)
    assert file.stat().st_size == SUMMARY_BYTES


def test_a_summary_that_cannot_be_written_is_named(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="could not be written: Is a directory"):
        append_summary(run, tmp_path)


@given(st.text(), st.integers(-10, 300))
def test_shortened_text_fits_and_begins_the_same(text: str, room: int) -> None:
    short = shortened(text, room)
    assert len(short.encode()) <= max(room, 0) or short == text
    if short != text and short:
        kept = short.split("\n_Shortened")[0]
        assert text.startswith(kept)


def test_annotations_are_errors_and_warnings(run: dict[str, Any]) -> None:
    lines = annotation_lines(run)
    assert [line.split("::")[1].split(" ")[0] for line in lines] == ["error"] * 4 + ["warning"] * 5
    assert lines[0] == (
        "::error title=smollm2-135m-Q3_K_M fails the gate of KL mean::KL mean is 0.1219 ± 0.0024 nats; the limit is at"
        " most 0.1 nats. Even its 95%25 bound, 0.1176 nats, is beyond it."
    )
    assert lines[4].startswith("::warning title=smollm2-135m-Q3_K_M is undecided by the gate of PPL ratio::")
    # Said once, though the run has a warning of it too.
    assert sum("PPL ratio is 1.148" in line for line in lines) == 1
    run["settings"]["inconclusive"] = "fail"
    assert "::error title=smollm2-135m-Q3_K_M is undecided by" in " ".join(annotation_lines(run))


def test_annotations_are_lines_whatever_names_and_messages_say(run: dict[str, Any]) -> None:
    hostile = _rename(run, "smollm2-135m-Q3_K_M", HOSTILE)
    hostile["tests"][0] |= {"model": None, "outcome": "error", "message": f"{HOSTILE}\nsecond % line"}
    lines = annotation_lines(hostile)
    assert all(re.fullmatch(r"::(error|warning) title=[^:,\n\r]*::[^\n\r\x1b]*", line) for line in lines), lines
    (message,) = [line for line in lines if "second" in line]
    assert message.endswith("%0Asecond %25 line")
    assert "100%25, 1:2\\x1b[2J" in message
    assert "100%25%2C 1%3A2\\x1b[2J" in " ".join(lines)


def test_github_shows_ten_of_each(run: dict[str, Any]) -> None:
    run["warnings"] = [f"warning {number}" for number in range(50)]
    run["gates"] = [
        gate | {"verdict": "fail", "detail": f"{gate['detail']} {n}"} for n in range(3) for gate in run["gates"]
    ]
    lines = annotation_lines(run)
    errors, warnings = ([line for line in lines if line.startswith(f"::{kind} ")] for kind in ("error", "warning"))
    assert (len(errors), len(warnings)) == (10, 10)
    assert warnings[-1] == "::warning title=gguf-harness::41 more of this kind are in the report."


def test_what_could_not_be_measured_is_one_error() -> None:
    (error,) = [
        line
        for line in annotation_lines(_broken_runs()["unloadable"])
        if line.startswith("::error title=smollm2-135m-Q8_0")
    ]
    assert error == (
        "::error title=smollm2-135m-Q8_0 could not be measured::Q8_0 is not a valid GGUF file: it is truncated."
    )
    assert annotation_lines(_broken_runs()["empty"]) == []
