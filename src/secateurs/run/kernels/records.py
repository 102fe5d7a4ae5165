"""The rows of the tables that kernels are told by: NumPy records that lie in memory as the structs of ``csrc/table.h``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.void]

ROW = np.dtype([("row", np.int32), ("count", np.int32), ("flags", np.int32)])
"""Of sparse weights within a block of inputs: the first of the outputs, its nonzeros, and whether it begins or ends here."""

BLOCK = np.dtype([("first", np.int32), ("last", np.int32), ("nonzero", np.int64)])
"""A block of inputs: the first of its rows, the one after its last, and where its nonzeros begin."""

PANEL = np.dtype([(name, np.int64) for name in ("x", "y", "residual", "out", "positions", "lanes")])
"""A panel of output positions: where it begins in what is read and written; ``positions``, how many of it exist, and ``lanes``, where that
begins which is said of its lanes, only where finished rows go to ``out``."""

MOVE = np.dtype([(name, np.int32) for name in ("to", "from", "kind", "table", "count")])
"""How one vector of a new layout comes about."""


def records(dtype: np.dtype[Any], **columns: Any) -> Records:
    """A table of records from its columns, which are broadcast to one shape; those that are not given are 0.

    >>> records(ROW, row=np.arange(2), count=3).tolist()
    [(0, 3, 0), (1, 3, 0)]
    """
    made = np.zeros(np.broadcast_shapes(*(np.shape(column) for column in columns.values())), dtype)
    for name, column in columns.items():
        made[name] = column
    return made


def words(table: Records, word: type[np.int32] | type[np.int64]) -> NDArray[Any]:
    """A table as the extension takes it: as whole numbers one after the other.

    >>> words(records(ROW, row=np.arange(2), count=3), np.int32).tolist()
    [0, 3, 0, 1, 3, 0]
    """
    return np.ascontiguousarray(table).view(word).ravel()
