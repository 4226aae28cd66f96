"""Threads of NumPy's linear algebra.

They spin while waiting for each other, which wastes CPU time on a busy machine.
"""

from __future__ import annotations

import contextlib
from typing import Final

__all__ = ["blas_threads"]

_WORTH_IT: Final = 1024


def blas_threads(threads: int, dimensions: int) -> contextlib.AbstractContextManager[object]:
    """Use the given number of threads while the block runs, or one if matrices are too small to gain from several.

    Args:
        threads: at most.
        dimensions: columns of the matrices.
    """
    from threadpoolctl import threadpool_limits

    limits: contextlib.AbstractContextManager[object] = threadpool_limits(
        threads if dimensions >= _WORTH_IT else 1, user_api="blas"
    )
    return limits
