"""Cached measurements: only what belongs to the key, whole, and of this version."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import StoreError
from gguf_harness.store.arrays import save_arrays
from gguf_harness.store.cache import Cache, Entry
from gguf_harness.store.locks import hold

CANDIDATE = "passes/candidate"
NLL = np.arange(6.0).reshape(2, 3)


def _saved(root: Path, **arrays: Any) -> Entry:
    entry = Cache(root).entry(CANDIDATE, 2, {"model": "a"})
    entry.save({"note": "x", "list": [1, 2.5]}, arrays or {"nll": NLL})
    return entry


def test_an_entry_comes_back_for_its_key_only(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.entry(CANDIDATE, 2, {"model": "a", "n": 1})
    assert entry.load() is None
    entry.save({"note": "x"}, {"nll": NLL})
    again = cache.entry(CANDIDATE, 2, {"n": 1, "model": "a"}).load()
    assert again is not None
    assert again[0] == {"note": "x"}
    assert (again[1]["nll"] == NLL).all()
    assert cache.entry(CANDIDATE, 2, {"model": "b", "n": 1}).load() is None
    assert cache.entry("passes/floor", 2, {"model": "a", "n": 1}).load() is None


def test_another_version_is_measured_again(tmp_path: Path) -> None:
    key = {"model": "a"}
    Cache(tmp_path).entry(CANDIDATE, 2, key).save({"note": "x"})
    assert Cache(tmp_path).entry(CANDIDATE, 2, key).load() == ({"note": "x"}, {})
    assert Cache(tmp_path).entry(CANDIDATE, 3, key).load() is None


def test_what_has_no_name_is_not_stored(tmp_path: Path) -> None:
    for unknown in ("passes", "passes/", "/reference", "", "a/b/c", "../x", "Passes/x", "logs/x", "scratch/x"):
        with pytest.raises(ValueError, match="is not a valid name of a measurement"):
            Cache(tmp_path).entry(unknown, 1, {})


def test_no_entry_is_believed_that_was_stored_before_there_were_versions(tmp_path: Path) -> None:
    for measurement in ("passes/reference", "speed/speed", "models/quantized"):
        kind, name = measurement.split("/")
        for key in ({"model": "a"}, {"model": "a", "kind": name}):
            full = {"schema": 1, **key}
            digest = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()[:24]
            folder = tmp_path / kind / digest
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "meta.json").write_text(json.dumps({"key": full, "value": {"note": "old"}}))
            assert Cache(tmp_path).entry(measurement, 2, key).load() is None


def test_names_of_entries_stay(tmp_path: Path) -> None:
    """Another way to write keys would lose all caches: not without a reason, and then this changes as well."""
    entry = Cache(tmp_path).entry("speed/speed", 7, {"b": [1, 2.5, None, True], "a": {"é": "x"}})
    written = b'{"key": {"a": {"\\u00e9": "x"}, "b": [1, 2.5, null, true]}, "measurement": "speed", "version": 7}'
    assert entry.digest == hashlib.sha256(written).hexdigest()
    assert entry.folder == tmp_path / "speed" / entry.digest[:24]


def test_keys_are_what_they_mean(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    same = [{"x": 1, "y": [2, 3], "z": 0}, {"y": (2.0, 3), "z": -0.0, "x": 1.0}]
    assert len({cache.entry(CANDIDATE, 2, key).folder for key in same}) == 1
    different: list[dict[str, Any]] = [{"x": value} for value in (1, True, "1", [1], None, 1.5, {"1": 1}, {})]
    assert len({cache.entry(CANDIDATE, 2, key).folder for key in different}) == len(different)
    for wrong in (float("nan"), float("inf"), Path("x"), {1: 2}, {3}, b"x", np.int64(3)):
        with pytest.raises(ValueError, match="cannot be part of a cache key"):
            cache.entry(CANDIDATE, 2, {"x": wrong})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_any_json_can_be_a_key_and_a_value(value: Any) -> None:
    entry = Cache(Path("x")).entry(CANDIDATE, 2, {"value": value})
    again = Cache(Path("x")).entry(CANDIDATE, 2, {"value": json.loads(json.dumps(value))})
    assert entry.digest == again.digest


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"key": 1}', b"[" * 100_000, b'{"value": {}}', bytes(100),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_description_is_measured_again(content: bytes, tmp_path: Path) -> None:
    entry = _saved(tmp_path)
    (entry.folder / "meta.json").write_bytes(content)
    assert entry.load() is None
    assert not entry.is_of_this_session


@pytest.mark.parametrize(
    "value", [None, [], "x", 3, {"note": "y"}, {"note": "x", "list": [1, 2.6]}, {"n": float("nan")}]
)
def test_a_value_that_was_not_stored_is_not_believed(value: Any, tmp_path: Path) -> None:
    entry = _saved(tmp_path)
    file = entry.folder / "meta.json"
    stored = entry.load()
    assert stored is not None
    assert stored[0] == {"note": "x", "list": [1, 2.5]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"value": value}))
    assert entry.load() is None


@given(st.data())
def test_damaged_arrays_are_measured_again(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    entry = _saved(tmp_path_factory.mktemp("cache"), nll=NLL, top=np.arange(5, dtype=np.int32))
    content = bytearray(entry.arrays_file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    entry.arrays_file.write_bytes(content)
    stored = entry.load()
    if stored is not None:  # bytes that mean nothing: a time, a flag
        _, arrays = stored
        assert arrays.keys() == {"nll", "top"}
        assert (arrays["nll"] == NLL).all()
        assert (arrays["top"] == np.arange(5)).all()


def test_an_entry_without_its_description_does_not_count(tmp_path: Path) -> None:
    entry = Cache(tmp_path).entry(CANDIDATE, 2, {"model": "a"})
    save_arrays(entry.arrays_file, {"nll": np.zeros(3)})
    assert entry.load() is None


def test_arrays_of_another_time_than_their_description_do_not_count(tmp_path: Path) -> None:
    """A process that ends between the two files leaves them so."""
    entry = _saved(tmp_path)
    save_arrays(entry.arrays_file, {"nll": NLL + 1})
    assert entry.load() is None
    entry.save({"note": "without arrays"})
    assert entry.load() == ({"note": "without arrays"}, {})


def test_numbers_as_names_come_back_as_json_has_them(tmp_path: Path) -> None:
    entry = Cache(tmp_path).entry("analytics/cluster", 2, {})
    entry.save({"scores": {2: 0.5, 10: 0.25}})
    assert entry.load() == ({"scores": {"2": 0.5, "10": 0.25}}, {})


def test_a_session_knows_its_own(tmp_path: Path) -> None:
    """Whatever the clocks say, and whenever a process of it started."""
    mine, late, another = (Cache(tmp_path, session=name) for name in ("a", "a", "b"))
    mine.entry(CANDIDATE, 2, {}).save({})
    assert late.entry(CANDIDATE, 2, {}).is_of_this_session
    assert not another.entry(CANDIDATE, 2, {}).is_of_this_session
    assert not Cache(tmp_path).entry(CANDIDATE, 2, {}).is_of_this_session


def test_a_lock_passes_on_what_its_block_raises(tmp_path: Path) -> None:
    entry = Cache(tmp_path).entry(CANDIDATE, 2, {})
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(error)) as caught, entry.lock():
            raise error
        assert caught.value is error
        with pytest.raises(type(error)) as caught, Cache(tmp_path).scratch():
            raise error
        assert caught.value is error
    assert list((tmp_path / "passes").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "reason", "hint"),
    [("file/cache", "Not a directory", "a file where a folder"), ("x" * 300, "File name too long", "shorter names")],
)
def test_a_lock_that_cannot_be_taken_says_why(tmp_path: Path, place: str, reason: str, hint: str) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / place)
    for block in (cache.entry(CANDIDATE, 2, {}).lock, cache.scratch):
        with pytest.raises(StoreError, match=reason) as error, block():
            pass
        assert hint in error.value.hint
        assert "space" not in str(error.value)


HOLDER = """
import sys
from pathlib import Path
from gguf_harness.store.cache import Cache
cache = Cache(Path(sys.argv[1]))
entry = cache.entry("passes/candidate", 2, {"model": "a"})
if sys.argv[2] == "measures":
    with entry.lock():
        print("ready", flush=True)
        sys.stdin.read()
else:
    cache.keep(entry)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["measures", "keeps"])
def test_what_another_process_needs_is_not_removed(how: str, tmp_path: Path) -> None:
    entry = _saved(tmp_path)
    (entry.folder / "logprobs.u16").write_bytes(bytes(1000))
    command = [sys.executable, "-c", HOLDER, str(tmp_path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        small = Cache(tmp_path, limit=1)
        small.make_room(0, small.entry(CANDIDATE, 2, {"model": "b"}))
        assert (entry.folder / "logprobs.u16").exists()
        assert entry.load() is not None
        assert small.excess > 1000
    small.make_room(0, small.entry(CANDIDATE, 2, {"model": "b"}))
    assert not entry.folder.exists()
    assert list((tmp_path / "passes").iterdir()) == []


def test_what_a_session_has_used_stays(tmp_path: Path) -> None:
    _saved(tmp_path)
    cache = Cache(tmp_path, limit=1)
    assert cache.entry(CANDIDATE, 2, {"model": "a"}).load() is not None
    cache.entry(CANDIDATE, 2, {"model": "b"}).save({})
    assert cache.entry(CANDIDATE, 2, {"model": "a"}).load() is not None


def test_a_cache_stays_within_its_limit(tmp_path: Path) -> None:
    for number in range(8):
        # A session each, so that none protects what it has used.
        cache = Cache(tmp_path, limit=30_000)
        cache.entry(CANDIDATE, 2, {"n": number}).save({}, {"nll": np.zeros(1000)})
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 31_000
        assert cache.excess == 0
    kept = [number for number in range(8) if Cache(tmp_path).entry(CANDIDATE, 2, {"n": number}).load() is not None]
    assert kept == [5, 6, 7]


def test_a_lock_that_was_removed_while_one_waited_is_taken_anew(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    script = (
        "import sys; from pathlib import Path; from gguf_harness.store.locks import hold\n"
        "print('ready', flush=True); lock = hold(Path(sys.argv[1])); print(lock.is_current, flush=True)\n"
        "sys.stdin.read()"
    )
    first = hold(file)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        first.release(remove=True)
        assert other.stdout.readline() == b"True\n"
        assert hold(file, wait=False) is None
        assert hold(file, shared=True, wait=False) is None
    shared = hold(file, shared=True), hold(file, shared=True)
    assert hold(file, wait=False) is None
    for lock in shared:
        lock.release()
    last = hold(file, wait=False)
    assert last is not None
    last.release()


def test_a_cache_that_can_only_be_read_serves_what_it_has(tmp_path: Path) -> None:
    entry = _saved(tmp_path)
    entry.folder.chmod(0o555)
    try:
        assert Cache(tmp_path).entry(CANDIDATE, 2, {"model": "a"}).load() is not None
    finally:
        entry.folder.chmod(0o755)
