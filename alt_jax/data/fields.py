"""Kinds of fields: raw columns to strings per slot, and strings to numbers, bins and histories.

| kind | values of a row | feature id |
|---|---|---|
| `category` | one | its own |
| `numeric` | one number | that of its quantile bin; a missing number has the field's first |
| `multi` | a list, e.g. genres | its own |
| `sequence` | the last items of the row's user, newest first | that of the item's field |
| `text` | one | none: the CTR tower does not see it |

A field whose values have no bound may be hashed: right where its column is spelled, a value is replaced by the number
of its bucket, and from there on the buckets are its values. How a value is spelled says `alt_jax.data.spelling`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from alt_jax.config import FieldConfig
from alt_jax.data import spelling
from alt_jax.data.spelling import Spelled
from alt_jax.errors import InputError, shortened
from alt_jax.schema import Field, Numeric

_LARGEST = float(np.finfo(np.float32).max)


def spell(column: pa.Array | pa.ChunkedArray, field: FieldConfig | Field, origin: str) -> Spelled:
    """Reads a column as its field's kind declares it.

    A list is cut to the field's slots; an empty or missing one holds the empty string, as a missing category does.

    Raises:
      InputError: The column has no plain spelling, or is damaged.
    """
    try:
        return spelling.spell(column, separator=field.separator, **_reading(field))
    except (TypeError, ValueError) as error:
        raise InputError(f"Column {field.column!r} of {origin} {error}.") from None


def spell_rows(rows: Sequence[Sequence[str]], field: FieldConfig | Field) -> Spelled:
    """What `spell` gives for rows whose values are strings already: one a row, or for a list any number of them."""
    return spelling.spell_rows(rows, **_reading(field))


def _reading(field: FieldConfig | Field) -> dict[str, Any]:
    slots = field.slots if field.kind in ("multi", "sequence") else None
    kind = "number" if field.kind == "numeric" else field.type
    return {"slots": slots, "type": kind, "hash_buckets": field.hash_buckets}


def parse_numbers(strings: list[str], column: str, origin: str | Callable[[int], str]) -> Float[np.ndarray, " V"]:
    """The strings as numbers; NaN for an empty one.

    Args:
      strings: To be read.
      column: Of the field, for messages.
      origin: Where they come from, for messages: all of them, or the string of a number.

    Raises:
      InputError: One is not a finite number, or beyond float32's, in which models compute.
    """
    numbers = np.full(len(strings), np.nan)
    for i, string in enumerate(strings):
        if string.strip():
            try:
                numbers[i] = float(string)
            except ValueError:
                numbers[i] = np.inf
            if not abs(numbers[i]) <= _LARGEST:
                raise _refused(string, column, origin if isinstance(origin, str) else origin(i))
    return numbers


def _refused(string: str, column: str, origin: str) -> InputError:
    return InputError(
        f"Numeric field {column!r} of {origin} holds {shortened(repr(string))}, which is not a finite number within "
        "±3.4e38; correct it, leave it empty, or declare the field a category."
    )


def scaled(
    numeric: Numeric,
    numbers: Float[np.ndarray, " V"],
    strings: list[str],
    column: str,
    origin: str | Callable[[int], str],
) -> Float[np.ndarray, " V"]:
    """`standardised` numbers, of the strings and from the place that a message names; see `parse_numbers`.

    Raises:
      InputError: One is too far from those of the training part to be told in float32.
    """
    with np.errstate(over="ignore"):
        found = standardised(numeric, numbers)
    if not np.isfinite(found).all():
        i = int((~np.isfinite(found)).argmax())
        raise InputError(
            f"Numeric field {column!r} of {origin if isinstance(origin, str) else origin(i)} holds "
            f"{shortened(repr(strings[i]))}, too far from the training part's mean {numeric.mean:g} and standard "
            f"deviation {numeric.std:g} to be told in float32; correct it or leave it empty."
        )
    return found


def fit_numeric(numbers: Float[np.ndarray, " V"], counts: Int[np.ndarray, " V"], bins: int) -> Numeric:
    """Quantile bins, mean and standard deviation of a training column; missing numbers (NaN) do not count.

    The sums are rounded once, so that nothing depends on the order of the rows.

    Args:
      numbers: In any order.
      counts: Training rows that have each.
      bins: At most.
    """
    used = np.isfinite(numbers) & (counts > 0)
    order = np.argsort(numbers[used])
    numbers, counts = numbers[used][order], counts[used][order]
    if not len(numbers):
        return Numeric((), 0.0, 1.0)
    rows = int(counts.sum())
    mean = math.fsum(numbers * counts) / rows
    std = math.sqrt(math.fsum(counts * (numbers - mean) ** 2) / rows) or 1.0
    edges = np.unique(_quantiles(numbers, counts, np.linspace(0, 1, bins + 1)[1:-1]))
    return Numeric(tuple(edges.tolist()), mean, std)


def _quantiles(
    numbers: Float[np.ndarray, " V"], counts: Int[np.ndarray, " V"], shares: Float[np.ndarray, " Q"]
) -> Float[np.ndarray, " Q"]:
    """`np.quantile` of ascending numbers of which there are as many as counted."""
    end = np.cumsum(counts)
    at = (end[-1] - 1) * shares
    low = np.floor(at)
    below, above = (numbers[np.searchsorted(end, np.minimum(i, end[-1] - 1), side="right")] for i in (low, low + 1))
    part = at - low
    return np.where(part < 0.5, below + (above - below) * part, above - (above - below) * (1 - part))


def bin_of(numeric: Numeric, numbers: Float[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """Bins from 1, edges belonging to the upper one; 0 for a missing number."""
    bins = 1 + np.searchsorted(np.asarray(numeric.edges), numbers, side="right")
    return np.where(np.isnan(numbers), 0, bins).astype(np.int32)


def standardised(numeric: Numeric, numbers: Float[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
    """(x − mean) / std of the training part; 0 for a missing number."""
    return np.where(np.isnan(numbers), 0.0, (numbers - numeric.mean) / numeric.std).astype(np.float32)


def history(
    user: Int[np.ndarray, " N"],
    time: np.ndarray,
    item: Int[np.ndarray, " N"],
    eligible: Bool[np.ndarray, " N"],
    slots: int,
) -> Int[np.ndarray, "N S"]:
    """The last items of every row's user, newest first.

    Only eligible rows count, such as clicks in training, and only those strictly before the row in time: a row never
    sees itself, its label, a simultaneous row or the future.

    Args:
      user: User of every row; -1 where it is missing, of whom no row is eligible.
      time: What rows are ordered by.
      item: Item of every row.
      eligible: Rows that may enter a history.
      slots: Most items.

    Returns:
      Items, -1 behind the last.
    """
    rank = np.unique(time, return_inverse=True)[1].astype(np.int64)
    span = np.int64(rank.max(initial=0) + 1)
    key = user.astype(np.int64) * span + rank
    past = np.flatnonzero(eligible)
    past = past[np.argsort(key[past], kind="stable")]
    keys = key[past]
    first = np.searchsorted(keys, user.astype(np.int64) * span)
    end = np.searchsorted(keys, key)
    items = np.full((len(user), slots), -1, np.int32)
    for slot in range(slots):
        at = end - 1 - slot
        there = at >= first
        items[there, slot] = item[past[at[there]]]
    return items
