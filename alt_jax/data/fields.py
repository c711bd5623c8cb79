"""Kinds of fields: raw columns to strings per slot, and strings to numbers, bins and histories.

| kind | values of a row | feature id |
|---|---|---|
| `category` | one | its own |
| `numeric` | one number | that of its quantile bin; a missing number has the field's first |
| `multi` | a list, e.g. genres | its own |
| `sequence` | the last items of the row's user, newest first | that of the item's field |
| `text` | one | none: the CTR tower does not see it |

A field whose values have no bound may be hashed: right where its column is spelled, a value is replaced by the number
of its bucket, and from there on the buckets are its values. Likewise a number gets one spelling, whatever holds it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from alt_jax.config import FieldConfig
from alt_jax.data.hashing import hashes
from alt_jax.data.sources.raw import as_text, spell_number
from alt_jax.errors import InputError, shortened
from alt_jax.schema import Field, Numeric


class Spelled(NamedTuple):
    """A column as distinct strings and, for every row and slot, which of them stands there (-1: none)."""

    strings: list[str]
    codes: Int[np.ndarray, "N S"]


def spell(column: pa.ChunkedArray, field: FieldConfig | Field, origin: str) -> Spelled:
    """Reads a column as its field's kind declares it.

    A list is cut to the field's slots; an empty or missing one holds the empty string, as a missing category does.

    Raises:
      InputError: The column has no plain spelling.
    """
    return _values(_spell(column, field, origin), field)


def _values(found: Spelled, field: FieldConfig | Field) -> Spelled:
    """What stands for the strings from here on: of numbers one spelling, of hashed ones their bucket."""
    if field.kind == "numeric":
        return _merged([spell_number(string) for string in found.strings], found.codes)
    return _merged(bucket_of(found.strings, field.hash_buckets), found.codes) if field.hash_buckets else found


def bucket_of(strings: list[str], buckets: int) -> list[str]:
    """The number of each string's bucket, spelled out: its hash modulo `buckets`. A missing value stays missing."""
    numbers = hashes(strings) % np.uint64(buckets)
    return [str(number) if string else "" for string, number in zip(strings, numbers.tolist(), strict=True)]


def _spell(column: pa.ChunkedArray, field: FieldConfig | Field, origin: str) -> Spelled:
    if field.kind not in ("multi", "sequence"):
        text = as_text(column, field.column, origin)
        return Spelled(text.dictionary.to_pylist(), np.asarray(text.indices, np.int32)[:, None])
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        inside = as_text(lists.flatten(), field.column, origin)
        length = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
        row = np.repeat(np.arange(len(length)), length)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
        strings, index = [*inside.dictionary.to_pylist(), ""], np.asarray(inside.indices, np.int32)
        codes = np.full((len(length), field.slots), -1, np.int32)
        kept = slot < field.slots
        codes[row[kept], slot[kept]] = index[kept]
        codes[length == 0, 0] = len(strings) - 1
        return _merged(strings, codes)
    text = as_text(column, field.column, origin)
    distinct, codes = _numbered([split(string, field) for string in text.dictionary.to_pylist()], field)
    return Spelled(distinct, codes[np.asarray(text.indices)])


def split(string: str, field: FieldConfig | Field) -> list[str]:
    """The values of a list that is stored as one string."""
    return [part.strip() for part in string.split(field.separator)]


def spell_rows(rows: Sequence[Sequence[str]], field: FieldConfig | Field) -> Spelled:
    """What `spell` gives for rows whose values are strings already: one a row, or for a list any number of them."""
    return _values(_numbered([values or [""] for values in rows], field), field)


def _numbered(rows: Sequence[Sequence[str]], field: FieldConfig | Field) -> Spelled:
    slots = field.slots if field.kind in ("multi", "sequence") else 1
    number: dict[str, int] = {}
    codes = np.full((len(rows), slots), -1, np.int32)
    for row, values in enumerate(rows):
        codes[row, : len(values)] = [number.setdefault(value, len(number)) for value in values[:slots]]
    return Spelled(list(number), codes)


def _merged(strings: list[str], codes: Int[np.ndarray, "N S"]) -> Spelled:
    """Gives a string that occurs twice one code."""
    distinct = list(dict.fromkeys(strings))
    number = {string: i for i, string in enumerate(distinct)}
    remap = np.array([*(number[string] for string in strings), -1], np.int32)
    return Spelled(distinct, remap[codes])


def parse_numbers(strings: list[str], column: str, origin: str) -> Float[np.ndarray, " V"]:
    """The strings as numbers; NaN for an empty one.

    Raises:
      InputError: One is not a finite number.
    """
    numbers = np.full(len(strings), np.nan)
    for i, string in enumerate(strings):
        if string.strip():
            try:
                numbers[i] = float(string)
            except ValueError:
                numbers[i] = np.inf
            if not np.isfinite(numbers[i]):
                raise InputError(
                    f"Numeric field {column!r} of {origin} holds {shortened(repr(string))}, which is not a finite "
                    "number; correct it, "
                    "leave it empty, or declare the field a category."
                )
    return numbers


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
      user: User of every row.
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
