"""What every data source gives: one Arrow table of raw columns and a declaration of what they mean."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alt_jax.config import FieldConfig
from alt_jax.errors import InputError

# What has one obvious spelling.
_PLAIN = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_boolean, pa.types.is_temporal, pa.types.is_decimal, pa.types.is_null),
)


@dataclass(frozen=True)
class Aggregate:
    """A column that holds a statistic of an entity's rows, e.g. an item's average rating.

    Its publisher took it over all rows, so it looks into the test part; see `alt_jax.data.aggregates`.

    Attributes:
      column: Holds the published statistic.
      of: Numeric column of the table that it is about.
      by: Column of the entity.
      how: `mean` (of rows where `of` is not null), written with one decimal, or `sum`.
    """

    column: str
    of: str
    by: str
    how: Literal["mean", "sum"]


@dataclass(frozen=True)
class Columns:
    """A table whose columns are each read when asked for and then forgotten, so that one at a time is in memory.

    Attributes:
      readers: Reads a column, by its name.
      num_rows: Rows of every column.
      parts: Parquet files that hold the rows, one after the other, with the fields' columns; empty where none do.
    """

    readers: Mapping[str, Callable[[], pa.Array | pa.ChunkedArray]]
    num_rows: int
    parts: tuple[Path, ...] = ()

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, as a `pa.Table` has them."""
        return list(self.readers)

    def __getitem__(self, name: str) -> pa.Array | pa.ChunkedArray:
        pa.default_memory_pool().release_unused()  # Arrow keeps what it has freed of the column before
        return self.readers[name]()


@dataclass(frozen=True)
class RawData:
    """Raw rows of a source, in the order of the file.

    Attributes:
      source: Name of the source.
      origin: The file or folder they came from, for messages.
      table: One column per field (any type that `as_text` can spell) and those named below; looking one up may read it.
      fields: Columns to use and their names in the prompt, in prompt order.
      label: Column of the rating or label; float64 without nulls, and without NaNs but of the unlabelled.
      timestamp: Column to sort by, or None.
      timestamp_quality: Column that grades timestamps: 0 exact, 1 estimated, 2 guessed; or None.
      user, item: Columns of the user and the item, or None.
      linked: Groups of columns that give one another away.
      notices: Sentences for the user about what was accepted although it is unusual.
      positive_above: Labels above this are positive, on the data's scale, unless the config says otherwise; None where
        nobody knows the scale, so that labels have to be 0 and 1 or the config has to say it.
      aggregates: Statistics over all rows that the publisher put into columns of the table.
      unlabelled: So many of the last rows have no label; theirs is NaN.
    """

    source: str
    origin: str
    table: pa.Table | Columns
    fields: tuple[FieldConfig, ...]
    label: str
    timestamp: str | None
    timestamp_quality: str | None
    user: str | None
    item: str | None
    linked: tuple[tuple[str, ...], ...]
    notices: tuple[str, ...] = ()
    positive_above: float | None = 3.0
    aggregates: tuple[Aggregate, ...] = ()
    unlabelled: int = 0


def as_text(column: pa.Array | pa.ChunkedArray, name: str, origin: str) -> pa.DictionaryArray:
    """Spells a column as text: distinct strings and an index per row.

    Strings stay as they are, integers lose nothing, floats that hold whole numbers are written without `.0` (an integer
    column with gaps becomes a float column in many tools), booleans become `true` and `false`, nulls the empty string.

    Raises:
      InputError: The column holds something that has no plain spelling (lists, structs, bytes); names column and file.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(test(kind) for test in _PLAIN):
        raise InputError(f"Column {name!r} of {origin} holds {kind}, which has no plain spelling; store it as text.")
    if pa.types.is_null(kind) or pa.types.is_string_view(kind):  # which Arrow cannot encode
        column = column.cast(pa.string())
    if pa.types.is_float16(kind):  # nor these
        column = column.cast(pa.float32())
    # Encoding before combining keeps long columns within 32-bit string offsets.
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    array = column.unify_dictionaries().combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        array.validate(full=True)  # Parquet's strings are bytes that nobody has looked at
    except pa.ArrowInvalid as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"Column {name!r} of {origin} is damaged ({reason}); write it again, as UTF-8.") from None
    spelled = _spell(array.dictionary)
    # Two values may be spelled alike (null and ""; 0.0 and -0.0): encode the spellings once more. One further entry
    # stands for rows that are null.
    again = pc.dictionary_encode(pa.concat_arrays([pc.fill_null(spelled, ""), pa.array([""], pa.string())]))
    recode = np.asarray(again.indices, np.int32)
    codes = np.asarray(pc.fill_null(array.indices.cast(pa.int32()), len(array.dictionary)), np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(recode[codes]), again.dictionary)


def spell_value(value: str | bool | int | float | None) -> str:
    """Spells one value as `as_text` spells it in a column of its kind.

    Raises:
      OverflowError: It is an integer of more than 64 bits, which no column holds.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise OverflowError("an integer of more than 64 bits")
        return str(value)
    return _spell_float(value) or ""


def spell_number(text: str) -> str:
    """One spelling for equal numbers, that of `spell_value`: `1.260` is `1.26`. What is no finite number stays."""
    try:
        number = float(text)
    except ValueError:
        return text.strip()
    return spell_value(number) if math.isfinite(number) else text


def _spell(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        numbers = values.to_pylist()
        if values.type != pa.float64():  # as few digits as tell numbers of this type apart
            narrow = values.to_numpy(zero_copy_only=False).dtype.type
            numbers = [None if number is None else float(str(narrow(number))) for number in numbers]
        return pa.array([_spell_float(number) for number in numbers], pa.string())
    return values.cast(pa.string())


def _spell_float(value: float | None) -> str | None:
    if value is None or math.isnan(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
