"""Stored results: whole or not at all, and only what belongs to the key."""

from __future__ import annotations

import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.errors import StoreError
from gguf_harness.measure.passes.logprobs import LogprobReader, LogprobWriter
from gguf_harness.store.arrays import load_arrays, map_array, save_arrays
from gguf_harness.store.run_draft import new_run_id
from gguf_harness.store.runs import find_run, load_run, prepare_folder, run_file, write_json


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="JSON cannot represent"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"value": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_json(file, {"value": 2})
    with pytest.raises(StoreError, match="No space left on device"):
        save_arrays(tmp_path / "x.npz", {"a": np.zeros(3)})
    assert json.loads(file.read_text()) == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="--gguf-results"):
        prepare_folder(tmp_path / "file" / "results", "--gguf-results")


def test_log_probabilities_come_back(tmp_path: Path) -> None:
    writer = LogprobWriter(tmp_path / "codes", (2, 3, 5))
    for window in range(2):
        for first, rows in ((0, 1), (1, 2)):
            codes = writer.buffer(rows)
            codes[...] = np.arange(5 * first, 5 * (first + rows)).reshape(rows, 5) + window
            writer.write(window, first, codes)
    writer.close()
    scales = np.arange(6, dtype=np.float32).reshape(2, 3)
    codes, found, totals = LogprobReader(tmp_path / "codes", scales, scales + 1, 5).rows(1, 1, 2)
    assert codes.tolist() == [[6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]
    assert found.tolist() == [4.0, 5.0]
    assert totals.tolist() == [5.0, 6.0]


def test_log_probabilities_of_another_size_are_refused(tmp_path: Path) -> None:
    LogprobWriter(tmp_path / "codes", (2, 3, 5)).close()
    with pytest.raises(StoreError, match="holds 60 bytes, expected 72"):
        LogprobReader(tmp_path / "codes", np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), 6)


def test_no_space_for_log_probabilities_is_said_before_the_pass(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"need 2000000\.00 GB"):
        LogprobWriter(tmp_path / "codes", (10**6, 10**6, 10**3))
    assert not (tmp_path / "codes").exists()


def test_unreadable_arrays_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(StoreError, match=r"x\.npz cannot be read"):
        load_arrays(tmp_path / "x.npz")


def test_runs_are_found_by_what_people_type(tmp_path: Path) -> None:
    for name in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
        write_json(tmp_path / "runs" / name / "run.json", {"schema_version": 1, "id": name})
    expected = tmp_path / "runs" / "20260102-000000-bbbb" / "run.json"
    for spec in ("last", "20260102", str(expected), str(expected.parent)):
        assert find_run(spec, tmp_path) == expected
    with pytest.raises(StoreError, match="2 runs start with '2026'"):
        find_run("2026", tmp_path)
    with pytest.raises(StoreError, match="There is no run 'x'"):
        find_run("x", tmp_path)


def test_the_last_run_of_a_second_is_the_last() -> None:
    ids = []
    for _ in range(20):
        ids.append(new_run_id())
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert len({new_run_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "not a run"), ('{"a": 1}', "not a run"), ('{"schema_version": 99}', "version 99")],
)
def test_files_that_are_no_run_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(content)
    with pytest.raises(StoreError, match=message):
        load_run(file)


@pytest.mark.parametrize(
    "name", ["../../x.npz", "/etc/passwd", "arrays/../../x", "", "a\0b", None, 3, "link", "linked/x.npz"]
)
def test_files_of_a_run_are_in_its_folder(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "runs" / "a"
    (folder / "arrays").mkdir(parents=True)
    (tmp_path / "x.npz").write_bytes(b"")
    (folder / "link").symlink_to(tmp_path / "x.npz")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="expected one in the folder of the run"):
        run_file(folder, name)
    assert run_file(folder, "arrays/x.npz") == folder / "arrays" / "x.npz"
    # A folder that is itself reached by a link is a person's choice.
    (tmp_path / "short").symlink_to(folder)
    assert run_file(tmp_path / "short", "arrays/x.npz").parent.name == "arrays"


def test_arrays_are_read_in_several_threads(tmp_path: Path) -> None:
    # Python 3.11 fails where threads change in the middle of a header, as they may when garbage is collected there.
    np.save(tmp_path / "x.npy", np.arange(3))
    save_arrays(tmp_path / "x.npz", {"x": np.arange(3)})
    threshold = gc.get_threshold()

    def change_threads(_phase: str, _info: dict[str, int]) -> None:
        time.sleep(1e-6)

    def read(_: int) -> list[int]:
        (array,) = load_arrays(tmp_path / "x.npz").values()
        return [*map_array(tmp_path / "x.npy").tolist(), *array.tolist()]

    gc.callbacks.append(change_threads)
    try:
        gc.set_threshold(5)
        with ThreadPoolExecutor(4) as pool:
            assert {tuple(result) for result in pool.map(read, range(1000))} == {(0, 1, 2, 0, 1, 2)}
    finally:
        gc.callbacks.remove(change_threads)
        gc.set_threshold(*threshold)
