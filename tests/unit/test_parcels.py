"""What paths lead to travels between a session and a node: here two folders of one machine, without Ray."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.cluster.node_files import NODE_CACHE, Changes, NodeFiles, node_cache
from gguf_harness.cluster.parcels import Damaged, Parcel, Piece, SentFile, SessionFiles
from gguf_harness.errors import StoreError

BLOCK = 7


@dataclass(frozen=True)
class Request:
    """Arguments as tasks have them."""

    files: tuple[Path, ...]
    folder: Path
    text: bytes = b""


class Pair:
    """A session and a node that sees none of its files."""

    def __init__(self, tmp_path: Path, limit: int = 10**9) -> None:
        self.cache = tmp_path / "session" / "cache"
        self.cache.mkdir(parents=True)
        self.session = SessionFiles(self.cache)
        self.node = NodeFiles(tmp_path / "node", "a-run", self.cache, None, limit)

    def write(self, place: str, content: bytes = b"content") -> Path:
        path = self.cache / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def blocks(self, what: SentFile | Piece) -> Iterator[bytes]:
        content = (Path(what.path) if isinstance(what, SentFile) else self.cache / what.place).read_bytes()
        return (content[start : start + BLOCK] for start in range(0, len(content), BLOCK))

    def send(self, parcel: Parcel) -> list[SentFile | Piece]:
        """As a call does; returns what had to be sent."""
        missing = self.node.missing(parcel)
        for what in missing:
            incoming = self.node.receive(what)
            assert incoming is not None
            for block in self.blocks(what):
                incoming.write(block)
            incoming.finish()
        assert self.node.missing(parcel) == []
        return missing

    def bring(self, changes: Changes) -> None:
        pieces = [(piece, iter([self.node.read(piece.place, 0, piece.size)])) for piece in changes.written]
        self.session.take(pieces, list(changes.gone))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_a_file_in_use_is_found_by_content_under_its_own_name(pair: Pair, tmp_path: Path) -> None:
    """The session moves it away after it was sent: a node that has it by content does not ask where it was."""
    model = pair.write("models/0123/tiny-Q4_0.gguf", os.urandom(1000))
    content = model.read_bytes()
    parcel = pair.session.pack(Request((model,), pair.cache / "passes" / "0123"))
    assert [what.size for what in pair.send(parcel)] == [1000]
    (found,) = pair.node.load(parcel).files
    assert (found.name, found.read_bytes()) == (model.name, content)
    assert found.is_relative_to(tmp_path / "node")
    assert pair.send(parcel) == []
    elsewhere = pair.write("models/9999/again.gguf", content)
    assert pair.send(pair.session.pack(elsewhere)) != [], "another name is another file in the store"


def test_the_same_path_with_the_same_content_is_used_where_it_is(pair: Pair, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"as it was")
    parcel = pair.session.pack(model)
    assert pair.send(parcel) == []
    assert pair.node.load(parcel) == model
    # On the node another file has this path, of the same size.
    (sent,) = parcel.files
    copy = shutil.copy(model, tmp_path / "kept")
    model.write_bytes(b"as it is!")
    (missing,) = pair.node.missing(parcel)
    assert missing == sent
    shutil.copy(copy, model)
    assert pair.send(parcel) == []


def test_what_lies_at_a_place_is_sent_and_what_is_written_there_comes_back(pair: Pair) -> None:
    pair.write("passes/base/codes.bin", b"c" * 100)
    pair.write("passes/base/.used", b"")
    pair.write("passes/base/meta.json", b"{}")
    base, own = pair.cache / "passes" / "base", pair.cache / "layers" / "own" / "states"
    parcel = pair.session.pack((Request((), own), base, base / "codes.bin"))
    assert parcel.places == ("layers/own/states", "passes/base")
    assert {piece.place for piece in parcel.pieces} == {"passes/base/codes.bin", "passes/base/meta.json"}
    assert len(pair.send(parcel)) == 2
    request, there, codes = pair.node.load(parcel)
    assert codes == there / "codes.bin"
    assert codes.read_bytes() == b"c" * 100
    assert not request.folder.exists()
    assert pair.node.changes(parcel) == Changes()
    request.folder.mkdir()
    (request.folder / "deep").mkdir()
    (request.folder / "deep" / "stream.npy").write_bytes(b"s" * 20)
    (request.folder / ".half-written").write_bytes(b"s")
    (there / "meta.json").unlink()
    changes = pair.node.changes(parcel)
    assert [piece.place for piece in changes.written] == ["layers/own/states/deep/stream.npy"]
    assert changes.gone == ("passes/base/meta.json",)
    pair.bring(changes)
    assert (own / "deep" / "stream.npy").read_bytes() == b"s" * 20
    assert not (base / "meta.json").exists()
    again = pair.session.pack((Request((), own), base, base / "codes.bin"))
    assert pair.node.missing(again) == []
    assert pair.node.load(again)[0].folder == request.folder


def test_leftovers_of_a_lost_call_do_not_count(pair: Pair) -> None:
    own = pair.cache / "passes" / "own"
    parcel = pair.session.pack(own)
    pair.send(parcel)
    left = pair.node.load(parcel)
    left.mkdir()
    (left / "partial.npz").write_bytes(b"of a call that nobody heard the end of")
    assert pair.node.missing(parcel) == []
    assert list(left.iterdir()) == []
    assert pair.node.changes(parcel) == Changes()


def test_results_name_places_files_and_paths_as_the_session_does(pair: Pair, tmp_path: Path) -> None:
    model = pair.write("models/0123/m.gguf")
    scratch = pair.cache / "scratch" / "tmp1"
    parcel = pair.session.pack((model, scratch))
    pair.send(parcel)
    there = pair.node.load(parcel)
    made = there[1] / "merged.gguf"
    result = {"files": [made, there[0], Path("/elsewhere/x")], "value": np.arange(3.0)}
    back = pair.session.unpack(pair.node.pack(result))
    assert back["files"] == [scratch / "merged.gguf", model, Path("/elsewhere/x")]
    assert back["value"].tolist() == [0, 1, 2]


def test_the_cache_itself_and_its_notes_are_each_machines_own(pair: Pair, tmp_path: Path) -> None:
    pair.write("passes/other/codes.bin")
    parcel = pair.session.pack((pair.cache, pair.cache / "logs" / "m.log"))
    assert (parcel.places, parcel.pieces) == ((), ())
    assert pair.node.load(parcel) == (tmp_path / "node", tmp_path / "node" / "logs" / "m.log")


def test_a_folder_that_both_see_is_used_by_both(pair: Pair, tmp_path: Path) -> None:
    pair.write(".token", b"secret")
    shared = NodeFiles(tmp_path / "node2", "a-run", pair.cache, (".token", b"secret"), 10**9)
    model, base = pair.write("models/0123/m.gguf"), pair.write("passes/base/codes.bin")
    parcel = pair.session.pack((model, base.parent, pair.cache / "passes" / "own"))
    assert shared.is_shared
    assert shared.missing(parcel) == []
    assert shared.load(parcel) == (model, base.parent, pair.cache / "passes" / "own")
    assert shared.changes(parcel) == Changes()
    assert pair.session.unpack(shared.pack(base)) == base
    assert not NodeFiles(tmp_path / "node3", "a-run", pair.cache, (".token", b"other"), 10**9).is_shared


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"!", lambda data: b"?" + data[1:]])
def test_what_is_not_what_was_announced_is_not_kept(pair: Pair, damage: object) -> None:
    model = pair.write("models/0123/m.gguf", b"0123456789")
    parcel = pair.session.pack((model, pair.cache / "models" / "0123" / "notes.bin"))
    (what,) = pair.node.missing(parcel)
    incoming = pair.node.receive(what)
    assert incoming is not None
    incoming.write(damage(b"0123456789"))  # type: ignore[operator]
    with pytest.raises(Damaged, match="bytes arrived"):
        incoming.finish()
    assert pair.node.missing(parcel) == [what]
    assert [path for path in pair.node.root.rglob("*") if path.is_file() and path.stat().st_size] == [
        pair.node.root / "CACHEDIR.TAG"
    ]


def test_results_are_taken_whole_or_not_at_all(pair: Pair) -> None:
    own = pair.cache / "passes" / "own"
    old = pair.write("passes/own/a.bin", b"old")
    parcel = pair.session.pack(own)
    pair.send(parcel)
    there = pair.node.load(parcel)
    (there / "a.bin").write_bytes(b"new")
    (there / "b.bin").write_bytes(b"also")
    a, b = pair.node.changes(parcel).written
    with pytest.raises(Damaged):
        pair.session.take([(a, iter([b"new"])), (b, iter([b"lost"]))], [])
    assert old.read_bytes() == b"old"
    assert [path.name for path in own.iterdir()] == ["a.bin"]


def test_a_full_disk_is_an_error_of_the_node(pair: Pair) -> None:
    """The system refuses to write on: files of this process may not grow beyond a limit."""
    model = pair.write("models/0123/m.gguf", b"m" * 5000)
    (what,) = pair.node.missing(pair.session.pack(model))
    incoming = pair.node.receive(what)
    assert incoming is not None
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"m\.gguf could not be written"):
            incoming.write(b"m" * 2**20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list((pair.node.root / "models").rglob("*.gguf")) == []


def test_what_was_not_used_for_longest_goes_first_and_never_what_is_in_use(tmp_path: Path) -> None:
    pair = Pair(tmp_path, limit=2500)
    parcels = [pair.session.pack(pair.write(f"models/{n}/m{n}.gguf", bytes([n]) * 1000)) for n in range(4)]
    for parcel in parcels:
        pair.send(parcel)
    left = {path.name for path in (pair.node.root / "models").rglob("*.gguf")}
    assert "m3.gguf" in left
    assert "m0.gguf" not in left
    assert len(left) <= 2
    assert len(pair.send(parcels[0])) == 1


@given(st.lists(st.binary(max_size=40), max_size=4), st.text(max_size=10), st.floats(allow_nan=False))
def test_anything_that_is_no_path_arrives_as_it_was(blocks: list[bytes], text: str, number: float) -> None:
    session = SessionFiles(Path("/nowhere"))
    value = {"blocks": blocks, text: (number, None, [text])}
    assert session.unpack(session.pack(value).data) == value


def test_names_of_any_bytes_arrive(pair: Pair) -> None:
    model = pair.write(os.fsdecode(b"models/0123/t\xff \n.gguf"))
    parcel = pair.session.pack((model, pair.cache / "passes" / os.fsdecode(b"k\xfe")))
    pair.send(parcel)
    there, place = pair.node.load(parcel)
    assert os.fsencode(there.name) == b"t\xff \n.gguf"
    assert pair.session.unpack(pair.node.pack((there, place))) == (model, pair.cache / "passes" / os.fsdecode(b"k\xfe"))


def test_a_node_keeps_files_where_its_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NODE_CACHE, str(tmp_path / "mine"))
    assert node_cache() == tmp_path / "mine"
    monkeypatch.delenv(NODE_CACHE)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert node_cache().name.startswith("gguf-harness-")
