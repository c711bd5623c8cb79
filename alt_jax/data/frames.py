"""Rows in memory, of whatever kind, as an Arrow table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from alt_jax.data.spelling import text_of
from alt_jax.data.table_files import require_columns
from alt_jax.errors import InputError

_SCALARS = str | bool | int | float | None


def as_table(rows: Any, columns: Mapping[str, str], origin: str) -> pa.Table:
    """Rows of whatever kind `Scorer.score` takes as a table that has those of the columns that are there.

    Raises:
      InputError: They are of another kind, or a column holds values of several kinds.
    """
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        for number, row in enumerate(rows):
            if missing := [column for column in columns if column not in row]:
                raise InputError(f"Row {number} of {origin} has no column {missing[0]!r}{columns[missing[0]]}; add it.")
        rows = {column: [row[column] for row in rows] for column in columns}
    if isinstance(rows, Mapping):
        for column in columns:
            if column in rows and (isinstance(rows[column], str | bytes) or not isinstance(rows[column], Iterable)):
                raise InputError(f"Column {column!r} of {origin} is one value; give a list of dicts for single rows.")
    try:
        if isinstance(rows, Mapping):
            return pa.table({name: _column(rows[name]) for name in columns if name in rows})
        if type(rows).__module__.split(".")[0] == "pandas":
            present = [name for name in rows.columns if name in columns]
            require_columns(present, present, origin)
            return pa.table({name: _column(rows[name]) for name in present})
        if hasattr(rows, "__arrow_c_stream__"):
            return pa.table(rows)
    except (pa.ArrowException, OverflowError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(
            f"{origin} cannot be read as columns of one kind each ({reason}); store them as text."
        ) from None
    raise InputError(
        f"{origin} is a {type(rows).__name__}; give a pyarrow.Table, a data frame, a dict of columns or a list of "
        "dicts."
    )


def _column(values: Any) -> pa.Array:
    """One column; where its values are of several kinds, each as text."""
    try:
        return pa.array(values, from_pandas=True)
    except pa.ArrowException:
        if not all(isinstance(value, _SCALARS) for value in values):
            raise
        return pa.array([None if value is None else text_of(value) for value in values], pa.string())
