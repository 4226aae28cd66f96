"""What is kept on disk: measurements by content, and runs.

    <results>/runs/<id>/run.json      one pytest invocation; arrays/*.npz beside it, and the report
    <cache>/passes/<key>/             arrays.npz and meta.json of one pass, and the reference's log-probabilities
    <cache>/speed/<key>/              the same for timings
    <cache>/models/                   quantized models
    <cache>/scratch/                  large files of a moment
    <cache>/logs/                     llama.cpp's own words, one file per model

Every file is written to a temporary name and renamed: it is there whole, or not at all. A key is the hash of
everything a measurement depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import StoreError
from harness.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from harness.measure.observers import Arrays

__all__ = [
    "Cache",
    "Entry",
    "find_run",
    "load_run",
    "prepare_folder",
    "run_file",
    "write_bytes",
    "write_json",
    "write_text",
]

_ARRAYS: Final = "arrays.npz"
_META: Final = "meta.json"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically.

    Raises:
        StoreError: NaN or infinity in the content, no space, or no permission.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise StoreError(f"{path.name} would hold a number that JSON does not know: {error}.") from error
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        StoreError: no space, or no permission.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        StoreError: no space, or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes private files; results are for everyone who may read the folder.
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def prepare_folder(path: Path, option: str) -> Path:
    """Create a folder and make sure that it can be written.

    Raises:
        StoreError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StoreError(
            f"{option}={path}: the folder cannot be written ({error.strerror}).", f"Choose another {option} folder."
        ) from error
    return path


class Entry:
    """One cached measurement: a folder whose name is the hash of what it depends on."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder
        self._key = key

    @property
    def arrays_file(self) -> Path:
        """Where the arrays are."""
        return self.folder / _ARRAYS

    def load_meta(self) -> dict[str, Any] | None:
        """The stored description, or None when there is none (yet)."""
        try:
            meta = json.loads((self.folder / _META).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return meta["value"] if isinstance(meta, dict) and meta.get("key") == self._key else None

    def saved_since(self, moment: float) -> bool:
        """Whether the entry was saved after a moment (seconds since the epoch)."""
        try:
            return (self.folder / _META).stat().st_mtime >= moment
        except OSError:
            return False

    def load(self) -> Arrays | None:
        """The stored arrays, or None when there are none or they are damaged: they are then measured again."""
        from harness.measure.arrays import load_arrays

        if self.load_meta() is None:
            return None
        try:
            return load_arrays(self.arrays_file)
        except StoreError:
            return None

    def save(self, value: dict[str, Any], arrays: Arrays | None = None) -> None:
        """Keep a result. The description is written last: an entry without one does not count."""
        from harness.measure.arrays import save_arrays

        if arrays is not None:
            save_arrays(self.arrays_file, arrays)
        write_json(self.folder / _META, {"key": self._key, "value": value})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the entry while it is being measured: with `pytest -n` others wait, and then find it done."""
        from filelock import FileLock

        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.folder}.lock"):
                yield
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def remove(self) -> None:
        """Forget the entry."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Cache:
    """Measurements by content."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, kind: str, key: dict[str, Any]) -> Entry:
        """The entry of a measurement.

        Args:
            kind: folder: "passes" or "speed".
            key: everything that it depends on, as JSON types.
        """
        full = {"schema": SCHEMA_VERSION, **key}
        canonical = json.dumps(full, sort_keys=True, allow_nan=False)
        name = hashlib.sha256(canonical.encode()).hexdigest()[:24]
        return Entry(self.root / kind / name, json.loads(canonical))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder for large files, gone when the block ends; what a killed process left goes now.

        Raises:
            StoreError: no permission.
        """
        from filelock import FileLock, Timeout

        root = self.root / "scratch"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{root}.lock"):
                for old in root.iterdir():
                    # A lock ends with the process that held it.
                    with contextlib.suppress(Timeout), FileLock(old / ".lock", timeout=0):
                        shutil.rmtree(old, ignore_errors=True)
                folder = Path(tempfile.mkdtemp(dir=root))
                lock = FileLock(folder / ".lock")
                lock.acquire()
        except OSError as error:
            raise _unwritable(root, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()

    def make_room(self, needed: int, limit: int, keep: Path) -> None:
        """Remove the least recently used log-probabilities until `needed` more bytes fit under `limit`.

        Only the codes go; a pass whose codes are gone is decoded again when it is needed as a reference.
        """
        from harness.measure.passes import CODES_FILE

        files = [file for file in (self.root / "passes").glob(f"*/{CODES_FILE}") if file.parent != keep]
        ages = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in files)
        total = sum(size for _, size, _ in ages)
        for _, size, file in ages:
            if total + needed <= limit:
                break
            file.unlink(missing_ok=True)
            total -= size


def find_run(spec: str, results: Path) -> Path:
    """The run.json that a person means: a file, a run's folder, its id or the start of it, or `last`.

    Raises:
        StoreError: none, or several, fit.
    """
    path = Path(spec)
    if path.is_file():
        return path
    if (path / "run.json").is_file():
        return path / "run.json"
    runs = sorted((results / "runs").glob("*/run.json"))
    found = runs[-1:] if spec == "last" else [run for run in runs if run.parent.name.startswith(spec)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(run.parent.name for run in runs[-5:]) or "none"
    problem = f"{len(found)} runs start with" if found else "There is no run"
    raise StoreError(
        f"{problem} {spec!r} in {results / 'runs'}.",
        f"Give a run.json, a run's folder, its id, or `last`. Latest runs: {known}.",
    )


def load_run(path: Path) -> dict[str, Any]:
    """Read a run.json.

    Raises:
        StoreError: unreadable, not a run, or written by a newer version.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}.", "Give a run.json that a finished run wrote.") from error
    version = run.get("schema_version") if isinstance(run, dict) else None
    if not isinstance(version, int):
        raise StoreError(f"{path} is not a run: it has no schema_version.", "Give a run.json.")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this harness reads up to {SCHEMA_VERSION}.",
            "Update gguf-harness.",
        )
    return dict(run)


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} could not be written: {error.strerror or error}.",
        "Check permissions and free space, or choose other folders with --gguf-results and --gguf-cache.",
    )


def run_file(folder: Path, name: object) -> Path:
    """A file of a run, by the name that its run.json gives: a run that comes from elsewhere may name anything.

    Args:
        folder: the run's.
        name: relative to it.

    Raises:
        StoreError: it is none, or leads out of the folder: an absolute path, `..`, a symbolic link.
    """
    if isinstance(name, str) and name and "\0" not in name:
        path = folder / name
        if not Path(name).is_absolute() and path.resolve().is_relative_to(folder.resolve()):
            return path
    raise StoreError(
        f"{folder / 'run.json'} names the file {name!r}, expected one in the folder of the run.",
        "Nothing outside of that folder is read. Measure again, or remove the entry from `arrays`.",
    )
