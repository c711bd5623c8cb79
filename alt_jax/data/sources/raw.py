"""What every data source gives: one Arrow table of raw columns and a declaration of what they mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from alt_jax.config import FieldConfig
from alt_jax.data import spelling
from alt_jax.data.table_files import Part
from alt_jax.errors import InputError


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
    parts: tuple[Part, ...] = ()

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
      split: Column that says `train`, `valid` or `test`, or None.
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
    split: str | None = None


def as_text(column: pa.Array | pa.ChunkedArray, name: str, origin: str) -> pa.DictionaryArray:
    """A column as text (`alt_jax.data.spelling.texts`): distinct strings and an index per row.

    Raises:
      InputError: The column holds what has no plain spelling (lists, structs, durations), or is damaged.
    """
    try:
        return spelling.texts(column)
    except (TypeError, ValueError) as error:
        raise InputError(f"Column {name!r} of {origin} {error}.") from None
