"""`gguf-harness cache`, and what it leaves alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.cli import main
from gguf_harness.store.cache import Cache
from gguf_harness.store.cache_space import cap_log, list_items, mark_cache, shrink, sweep_locks
from gguf_harness.store.locks import hold

DAY = 86_400.0


def _filled(root: Path) -> Path:
    """Three passes with log-probabilities, used 1, 20 and 40 days ago; a model, a log, a hash."""
    for number, age in enumerate((1, 20, 40)):
        entry = Cache(root).entry("passes/reference", 2, {"n": number})
        entry.save({}, {"nll": np.zeros(10)})
        (entry.folder / "logprobs.u16").write_bytes(bytes(10_000))
        _age(entry.folder / ".used", age)
    model = Cache(root).entry("models/quantized", 2, {})
    model.save({"sha256": "x"})
    (model.folder / "Q4_K_M.gguf").write_bytes(bytes(20_000))
    for name in ("logs/tiny.log", "hashes/x.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(bytes(500))
        _age(root / name, 50)
    return root


def _age(file: Path, days: float) -> None:
    moment = time.time() - days * DAY
    os.utime(file, (moment, moment))


def _codes(root: Path) -> list[int]:
    return [
        number
        for number in range(3)
        if (Cache(root).entry("passes/reference", 2, {"n": number}).folder / "logprobs.u16").exists()
    ]


def test_it_shows_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _filled(tmp_path / "cache")
    assert main(["cache", "--results", str(tmp_path)]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert lines["cache:"][1] == str(root)
    assert lines["passes"][1] == "3"
    assert lines["passes"][2:4][0].startswith("3")
    assert lines["models"][1] == "1"
    assert lines["logs"][1:4] == ["1", "500", "B"]
    assert lines["speed"][1:] == ["0", "0", "B", "-", "-"]
    assert lines["total"][1] == "6"
    assert lines["limit:"][1:3] == ["50.0", "GB"]


def test_it_clears_kinds_and_what_is_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _filled(tmp_path)
    assert main(["cache", "clear", "passes", "--older-than", "30d", "--cache", str(root)]) == 0
    out = capsys.readouterr().out
    assert "passes: 1 removed, 10" in out
    assert _codes(root) == [0, 1]
    assert main(["cache", "clear", "logs", "models", "--cache", str(root)]) == 0
    out = capsys.readouterr().out
    assert "logs: 1 removed, 500 B" in out
    assert "models: 1 removed, 20." in out
    assert "2 removed from" in out
    assert _codes(root) == [0, 1]
    assert main(["cache", "clear", "--cache", str(root)]) == 0
    assert list_items(root) == []
    capsys.readouterr()
    assert main(["cache", "clear", "--cache", str(root)]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert [path for path in root.rglob("*") if path.is_file()] == [root / "CACHEDIR.TAG"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "passes"], "Give `clear`"),
        (["--older-than", "3d"], "Give `clear`"),
        (["clear", "passses"], "no kind 'passses'"),
        (["clear", "--cache", "{folder}/none"], "there is no such folder"),
        (["clear", "--cache", "{folder}"], "it holds 'mine.txt'"),
        (["clear", "--cache", "{folder}/z-empty"], "it is empty"),
        (["clear", "--results", "{folder}"], "there is no such folder"),
        (["clear", "--cache", "{folder}/mine.txt"], "there is no such folder"),
    ],
)
def test_mistakes_remove_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "passes").mkdir()
    (tmp_path / "z-empty").mkdir()
    given = [argument.format(folder=tmp_path) for argument in arguments]
    if "--cache" not in given and "--results" not in given:
        given += ["--cache", str(tmp_path)]
    assert main(["cache", *given]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("age", ["30", "d", "-3d", "3 days", "1e3d", ""])
def test_ages_that_are_none(age: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["cache", "clear", f"--older-than={age}", "--cache", str(tmp_path)])
    assert ended.value.code == 2
    assert "is not an age such as" in capsys.readouterr().err


def test_nothing_of_a_person_is_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, outside = _filled(tmp_path / "cache"), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    link = root / "passes" / ("0" * 24)
    link.symlink_to(outside)
    (root / "speed").symlink_to(outside)
    (root / "passes" / "notes").mkdir()
    (root / "passes" / "notes" / "mine.txt").write_text("x")
    (root / "passes" / ("f" * 24)).write_text("a file, no entry")
    (root / "mine").mkdir()
    assert main(["cache", "clear", "--cache", str(root)]) == 0
    assert (outside / "precious").exists()
    assert link.is_symlink()
    assert (root / "passes" / "notes" / "mine.txt").exists()
    assert (root / "passes" / ("f" * 24)).exists()
    assert (root / "mine").exists()
    assert _codes(root) == []


def test_what_is_in_use_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _filled(tmp_path)
    using, measuring = (Cache(root).entry("passes/reference", 2, {"n": number}) for number in (0, 1))
    user = Cache(root)
    user.keep(using)
    with measuring.lock():
        assert main(["cache", "clear", "--cache", str(root)]) == 0
    assert "2 kept: in use" in capsys.readouterr().out
    assert _codes(root) == [0, 1]


def test_a_cache_from_before_there_was_a_tag_is_known(tmp_path: Path) -> None:
    root = _filled(tmp_path)
    (root / "CACHEDIR.TAG").unlink()
    (root / "scratch.lock").touch()
    assert main(["cache", "clear", "--cache", str(root)]) == 0
    assert list_items(root) == []


def test_room_is_made_by_last_use_and_results_stay_as_long_as_they_can(tmp_path: Path) -> None:
    root = _filled(tmp_path)
    total = sum(item.size for item in list_items(root))
    assert shrink(root, total) == total
    assert shrink(root, total - 1) == total - 10_000
    assert _codes(root) == [0, 1]
    entries = [Cache(root).entry("passes/reference", 2, {"n": number}) for number in range(3)]
    assert (entries[2].folder / "arrays.npz").exists()
    # It was looked at, and not used: it still goes first.
    assert list_items(root)[2].path == entries[2].folder
    assert shrink(root, total - 20_000, spare=[entries[1].folder]) == total - 20_000
    assert _codes(root) == [1]
    assert all((entry.folder / "arrays.npz").exists() for entry in entries)
    shrink(root, 10_500, spare=[entries[1].folder])
    assert [entry.folder.exists() for entry in entries] == [False, True, False]
    assert not (root / "logs" / "tiny.log").exists()
    assert list((root / "scratch").iterdir()) == []


def test_a_log_of_this_hour_stays(tmp_path: Path) -> None:
    mark_cache(tmp_path)
    log = tmp_path / "logs" / "x.log"
    log.parent.mkdir()
    log.write_bytes(bytes(100))
    assert shrink(tmp_path, 0) == 100
    _age(log, 1)
    assert shrink(tmp_path, 0) == 0


def test_locks_of_entries_that_are_gone_go(tmp_path: Path) -> None:
    entry = Cache(tmp_path).entry("passes/reference", 2, {})
    entry.save({})
    kept, gone, busy = (tmp_path / "passes" / f"{name}.lock" for name in (entry.folder.name, "a" * 24, "b" * 24))
    for lock in (kept, gone, busy):
        lock.touch()
    held = hold(busy)
    sweep_locks(tmp_path)
    assert [lock.exists() for lock in (kept, gone, busy)] == [True, False, True]
    held.release()


def test_logs_do_not_grow_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    cap_log(log)
    assert not log.exists()
    log.write_bytes(b"a line\n" * 1000)
    cap_log(log)
    assert log.stat().st_size == 7000
    log.write_bytes(b"a line\n" * 3_000_000 + b"the last\n")
    cap_log(log)
    lines = log.read_bytes().splitlines()
    assert lines[0] == b"(what came before was removed)"
    assert set(lines[1:-1]) == {b"a line"}
    assert lines[-1] == b"the last"
    assert 900_000 < log.stat().st_size < 1_100_000
    assert list(tmp_path.iterdir()) == [log]


def test_a_name_that_is_too_long_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["cache", "--cache", str(tmp_path / ("x" * 300))])
    assert "File name too long" in capsys.readouterr().err


def test_words_behind_an_option_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, argparse would take them for unknown ones."""
    root = _filled(tmp_path / "cache")
    assert main(["cache", "--cache", str(root), "clear", "logs"]) == 0
    assert "logs: 1 removed" in capsys.readouterr().out
    assert main(["cache", "clear", "--cache", str(root), "hashes"]) == 0
    assert "hashes: 1 removed" in capsys.readouterr().out
    assert main(["cache", "clear", "--cache", str(root), "clean"]) == 2
    assert "no kind 'clean'" in capsys.readouterr().err
    assert len(_codes(root)) == 3
