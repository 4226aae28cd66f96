"""Threads of numpy's linear algebra: they wait for each other by spinning, which on a busy machine costs everyone."""

from __future__ import annotations

import contextlib
from typing import Final

__all__ = ["blas_threads"]

_WORTH_IT: Final = 1024


def blas_threads(threads: int, dimensions: int) -> contextlib.AbstractContextManager[object]:
    """As many threads as given while the block runs, but one where matrices are too small to gain from several.

    Args:
        threads: at most.
        dimensions: columns of the matrices.
    """
    from threadpoolctl import threadpool_limits

    limits: contextlib.AbstractContextManager[object] = threadpool_limits(
        threads if dimensions >= _WORTH_IT else 1, user_api="blas"
    )
    return limits
