"""Results as pandas DataFrames, in long format: one row for each number, with its place in columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Kind", "make_frame"]

Kind = Literal["whole", "number", "text", "yes"]

_DTYPES: Final = {"whole": "Int64", "number": "float64", "yes": "boolean"}


def make_frame(columns: Mapping[str, tuple[Kind, Any]]) -> pd.DataFrame:
    """A DataFrame whose dtypes do not depend on what is in it: Int64, float64, string and boolean.

    Args:
        columns: by name, the kind and the values: of the same length.
    """
    import pandas as pd

    # Python strings, as in the tables of a run: Arrow's cannot hold names with bytes that are not UTF-8.
    dtypes = {**_DTYPES, "text": pd.StringDtype("python")}
    return pd.DataFrame({name: pd.array(values, dtype=dtypes[kind]) for name, (kind, values) in columns.items()})
