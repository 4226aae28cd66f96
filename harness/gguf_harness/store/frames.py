"""A stored run as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import StoreError
from gguf_harness.store.arrays import Arrays, load_arrays
from gguf_harness.store.run_tables import TABLES, TEXT, Kind, rows_of
from gguf_harness.store.runs import load_run, run_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FRAMES", "RunArrays", "StoredRun", "frame_of", "open_run"]

FRAMES: Final = tuple(name for name in TABLES if name != "arrays")
"""Tables of a run that are DataFrames; arrays are arrays."""


class RunArrays(Mapping[tuple[str, str], Arrays]):
    """Arrays of a run by model and name. Each is read on first use, and only from the run's folder.

    Args:
        folder: the run's.
        files: by model and name, as its run.json gives them.
    """

    def __init__(self, folder: Path, files: Mapping[tuple[str, str], str]) -> None:
        self._folder = folder
        self._files = files

    def __getitem__(self, key: tuple[str, str]) -> Arrays:
        """NumPy arrays by name.

        Raises:
            KeyError: the run has none of that model and name.
            StoreError: the file is missing, damaged, or not in the run's folder.
        """
        return load_arrays(run_file(self._folder, self._files[key]))

    def __contains__(self, key: object) -> bool:
        """Whether the run lists them; no file is opened."""
        return key in self._files

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"<arrays: {list(self._files)}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredRun:
    """A stored run, with its tables as DataFrames.

    Their columns are the same in every run, those of `gguf_harness.store.run_tables.TABLES`: texts are `string`;
    counts, layers and heads `Int64`; measured numbers `float64`; truth values `boolean`; lists and tables Python's.
    Values that a run does not have are missing (`isna()`), never 0. Times are in seconds, shares are fractions, sizes
    are in bytes.

    Attributes:
        id: the run's.
        started: start time with time zone; NaT if the run does not say.
        folder: the run's folder.
        settings: of the session; empty where the run has none.
        machine: the machine that it ran on; empty if the run does not say.
        arrays: by (model, name), dictionaries of NumPy arrays.
        models: a row for each subject: a model file, and how it was run.
        estimates: a row for each value, with its errors, unit and place (prompt, layer, head, part).
        gates: limits that estimates were checked against, with their verdicts.
        comparisons: with a baseline.
        planned: gates that the suites were to decide.
        tests: outcomes.
        texts: how models continued prompts.
        heads: kinds of attention heads.
        raw: all that run.json holds, in its current version.
    """

    id: str
    started: pd.Timestamp | pd.api.typing.NaTType
    folder: Path
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    arrays: RunArrays
    models: pd.DataFrame
    estimates: pd.DataFrame
    gates: pd.DataFrame
    comparisons: pd.DataFrame
    planned: pd.DataFrame
    tests: pd.DataFrame
    texts: pd.DataFrame
    heads: pd.DataFrame
    raw: dict[str, Any]

    def __repr__(self) -> str:
        """Short: notebooks show it."""
        return f"<run {self.id}: {len(self.models)} models, {len(self.estimates)} estimates, {len(self.tests)} tests>"


def open_run(path: Path) -> StoredRun:
    """Read a run.json and make DataFrames of its tables.

    Raises:
        StoreError: unreadable, not a run, damaged, or written by a newer version; or pandas is not installed.
    """
    _require_pandas()
    import pandas as pd

    run = load_run(path)
    started = run.get("started")
    files = {(entry["model"], entry["name"]): entry["file"] for entry in run.get("arrays", [])}
    return StoredRun(
        id=run["id"],
        started=pd.NaT if started is None else pd.Timestamp(datetime.fromisoformat(started)),
        folder=path.parent,
        settings=run.get("settings") or {},
        machine=run.get("machine") or {},
        arrays=RunArrays(path.parent, files),
        **{name: frame_of(rows_of(run, name) or [], TABLES[name]) for name in FRAMES},
        raw=run,
    )


def frame_of(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> pd.DataFrame:
    """Rows as a DataFrame whose columns, and their types, do not depend on what is in them.

    Args:
        rows: what they do not have is missing, never 0.
        kinds: of the columns, in their order.

    Raises:
        StoreError: pandas is not installed.
    """
    _require_pandas()
    import pandas as pd

    # Python strings: Arrow strings cannot hold file names with bytes that are not UTF-8.
    text = pd.StringDtype("python")
    return pd.DataFrame(
        {
            name: pd.Series([row.get(name) for row in rows], dtype=text if kind.dtype == TEXT.dtype else kind.dtype)
            for name, kind in kinds.items()
        }
    )


def _require_pandas() -> None:
    try:
        import pandas  # noqa: F401, ICN001 - only whether it is there
    except ImportError as error:
        raise StoreError(
            f"The tables of a run need the package pandas, which cannot be imported: {error}.", "pip install pandas"
        ) from error
