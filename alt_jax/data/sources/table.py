"""Own tables: CSV, TSV or Parquet (a file, or a folder of Parquet parts as Spark and Beam write them)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from alt_jax.config import DataConfig
from alt_jax.data.declared import own_columns, own_fields
from alt_jax.data.sources.raw import Columns, RawData
from alt_jax.data.table_files import (
    arrow_reason,
    csv_columns,
    csv_options,
    malformed_csv,
    parquet_parts,
    require_columns,
    unreadable_parquet,
)
from alt_jax.errors import InputError, shortened


def load(config: DataConfig) -> RawData:
    """Opens the declared columns of a table and checks labels and times; CSV values are strings exactly as written.

    Raises:
      InputError: The declaration is incomplete or contradicts itself, or the file does not fit it.
    """
    fields = own_fields(config)
    path = Path(config.raw)
    columns = [f.column for f in fields if f.kind != "sequence"]
    special = {"__label__": (config.label, _label)}
    if config.timestamp:
        special["__timestamp__"] = (config.timestamp, times)
    rows = _open(path, own_columns(config))
    more = Path(config.unlabelled) if config.unlabelled else None
    unlabelled = _open(more, own_columns(config, labelled=False)) if more else None
    readers: dict[str, Callable[[], Any]] = {column: partial(rows.__getitem__, column) for column in columns}
    for column, (name, convert) in special.items():
        readers[column] = partial(_converted, rows, name, convert, path)
    table = Columns(readers, rows.num_rows, rows.parts if isinstance(rows, Columns) else ())
    if more and unlabelled:
        own = {column: partial(unlabelled.__getitem__, column) for column in columns}
        for column, (name, convert) in special.items():
            own[column] = partial(_converted, unlabelled, name, convert, more)
        if config.timestamp:
            first, second = (_are_numbers(part[config.timestamp]) for part in (rows, unlabelled))
            if first != second:
                numbers, stamps = (path, more) if first else (more, path)
                raise InputError(
                    f"Timestamp column {config.timestamp!r} holds numbers in {numbers} and times in {stamps}; write "
                    "both alike."
                )
        own["__label__"] = partial(pa.array, np.full(unlabelled.num_rows, np.nan))
        parts = unlabelled.parts if isinstance(unlabelled, Columns) else ()
        table = _below(table, Columns(own, unlabelled.num_rows, parts), path, more)
    for column in special:
        table[column]  # what is wrong with it is said before anything else is done
    return RawData(
        source="table",
        origin=str(path),
        table=table,
        fields=fields,
        label="__label__",
        timestamp="__timestamp__" if config.timestamp else None,
        timestamp_quality=None,
        user=config.user,
        item=config.item,
        linked=config.linked,
        positive_above=None,
        unlabelled=unlabelled.num_rows if unlabelled else 0,
    )


def _below(first: Columns, second: Columns, path: Path, more: Path) -> Columns:
    """The rows of two tables with the same columns, one after the other."""

    def read(column: str) -> pa.ChunkedArray:
        tables = [pa.table({column: rows[column]}) for rows in (first, second)]
        try:
            return pa.concat_tables(tables, promote_options="permissive")[column]
        except pa.ArrowTypeError as error:
            raise InputError(
                f"Column {column!r} is of one type in {path} and of another in {more} ({arrow_reason(error)}); write "
                "both alike."
            ) from None

    parts = (*first.parts, *second.parts) if first.parts and second.parts else ()
    return Columns({name: partial(read, name) for name in first.readers}, first.num_rows + second.num_rows, parts)


def _open(path: Path, columns: Sequence[str]) -> pa.Table | Columns:
    """Parquet columns are read when asked for; a CSV file, whose columns lie interleaved, is read at once."""
    parts = parquet_parts(path)
    if not parts:
        return read(path, columns, encoded=True)
    rows = 0
    for part in parts:
        with _parquet(part, columns, encoded=False) as file:
            rows += file.metadata.num_rows
    return Columns({column: partial(_read_one, path, column) for column in columns}, rows, tuple(parts))


def _read_one(path: Path, column: str) -> pa.ChunkedArray:
    return read(path, [column], encoded=True)[column]


def _converted(rows: pa.Table | Columns, column: str, convert: Callable[..., pa.Array], path: Path) -> pa.Array:
    return convert(rows[column], column, path)


def read(path: Path, columns: Collection[str], *, encoded: bool = False) -> pa.Table:
    """Reads columns of a CSV, TSV or Parquet file, or of a folder of Parquet parts (in the order of their names).

    Args:
      path: The file or folder.
      columns: Which; see `alt_jax.data.table_files.require_columns`.
      encoded: Reads strings as dictionaries and indices, as Parquet stores them: quicker, and 4 bytes a row.

    Raises:
      InputError: The file is missing, of another kind, malformed, not UTF-8, or lacks a column; names the nearest.
    """
    parts = parquet_parts(path)
    if not parts:
        return _read_csv(path, columns, encoded)
    tables = []
    for part in parts:
        with _parquet(part, columns, encoded) as file:
            tables.append(file.read(columns=list(columns)))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise InputError(
            f"The parts in {path} have columns of different types ({arrow_reason(error)}); write them with the same."
        ) from None


class RowGroup(NamedTuple):
    """Some consecutive rows of a table, as they lie in a Parquet file.

    Attributes:
      path: Of the file.
      group: Number of the row group.
      first: Number of its first row in the table.
      rows: How many.
    """

    path: Path
    group: int
    first: int
    rows: int


def row_groups(parts: Sequence[Path], columns: Collection[str], origin: str) -> tuple[list[RowGroup], pa.Schema]:
    """The row groups of Parquet files, and the types that the columns have in all of them together.

    Raises:
      InputError: A file cannot be read, lacks a column, or has one of a type that does not go with the others'.
    """
    groups, schemas, first = [], [], 0
    for part in parts:
        with _parquet(part, columns, encoded=True) as file:
            schemas.append(pa.schema([file.schema_arrow.field(column) for column in columns]))
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                groups.append(RowGroup(part, group, first, rows))
                first += rows
    try:
        return [group for group in groups if group.rows], pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise InputError(
            f"The parts in {origin} have columns of different types ({arrow_reason(error)}); write them with the same."
        ) from None


def read_group(group: RowGroup, schema: pa.Schema) -> pa.Table:
    """The rows of a group: the columns of `schema`, of the types that it has.

    Raises:
      InputError: The file cannot be read, or lacks a column.
    """
    with _parquet(group.path, schema.names, encoded=True) as file:
        table = file.read_row_group(group.group, columns=schema.names).select(schema.names)
    return table.cast(schema)


@contextmanager
def _parquet(path: Path, columns: Collection[str], encoded: bool) -> Iterator[pa.parquet.ParquetFile]:
    """An open Parquet file that has the columns."""
    try:
        # Only columns that are there, and strings, may be named: not lists of them, and no others.
        strings = [f.name for f in pa.parquet.read_schema(path) if _is_string(f.type)] if encoded else []
        with pa.parquet.ParquetFile(path, read_dictionary=strings) as file:
            require_columns(file.schema_arrow.names, columns, str(path))
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable_parquet(path, error) from None


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _read_csv(path: Path, columns: Collection[str], encoded: bool) -> pa.Table:
    read_options, parse_options = csv_options(path)
    require_columns(csv_columns(path, read_options, parse_options), columns, str(path))
    convert = pa.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.dictionary(pa.int32(), pa.string()) if encoded else pa.string()),
        strings_can_be_null=False,
    )
    try:
        return pa.csv.read_csv(path, read_options=read_options, parse_options=parse_options, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise malformed_csv(path, error) from None


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, and not as a dictionary, which Arrow does not parse."""
    kind = column.type
    return (column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column).combine_chunks()


def _label(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """Labels as float64."""
    array = _plain(column)
    if array.null_count:
        row = int(np.flatnonzero(np.asarray(pc.is_null(array)))[0])
        raise InputError(
            f"Label column {name!r} of {path} is null in data row {row + 1}; fill it or leave the row out."
        )
    kinds = (pa.float64(), pa.bool_())
    numbers = _cast(array, kinds)
    if numbers is None:
        raise InputError(
            f"Label column {name!r} of {path} is not numeric{_first_bad(array, kinds)}; write 1 for a click and 0 for "
            "none, or set data.label."
        )
    numbers = numbers.cast(pa.float64())
    bad = ~np.isfinite(np.asarray(numbers))
    if bad.any():
        raise InputError(
            f"Label column {name!r} of {path} is not finite in data row {int(bad.argmax()) + 1}; correct that."
        )
    return numbers


def _cast(array: pa.Array, kinds: Iterable[pa.DataType]) -> pa.Array | None:
    """The column as the first of the types that can hold it, if any can."""
    for kind in kinds:
        try:
            return pc.cast(array, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return None


def _first_bad(array: pa.Array, kinds: Sequence[pa.DataType]) -> str:
    """Names the first string that none of the types holds together with those before it."""
    if not pa.types.is_string(array.type):
        return f" but {array.type}"
    good, bad = 0, len(array)  # rows that can be cast together, and that cannot
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if _cast(array[:middle], kinds) is None else (middle, bad)
    return f": {shortened(repr(array[bad - 1].as_py()))} in data row {bad}"


def _are_numbers(column: pa.ChunkedArray) -> bool:
    """Whether `times` takes them for numbers."""
    array = _plain(column)
    return not pa.types.is_temporal(array.type) and _cast(array, [pa.int64(), pa.float64()]) is not None


def times(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """A sortable number per row: the number itself, or microseconds for dates and times (text in ISO 8601).

    Of times with a zone or an offset, microseconds are those of UTC.

    Args:
      column: The timestamps as the file has them.
      name: Of the column, for messages.
      path: Of the file, for messages.

    Returns:
      int64, or float64 if a number is not whole.

    Raises:
      InputError: A timestamp is missing, or they are neither numbers nor times.
    """
    array = _plain(column)
    kinds = [pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")]
    if pa.types.is_temporal(array.type):
        kinds = [pa.timestamp("us")]
    numbers = _cast(array, kinds)
    if numbers is None:
        raise InputError(
            f"Timestamp column {name!r} of {path} is neither all numbers nor all ISO 8601 times of one form"
            f"{_first_bad(array, kinds)}; write it like 1788221000, 2026-09-01 00:02:53 or 2026-09-01T00:02:53Z."
        )
    missing = np.asarray(pc.is_null(numbers, nan_is_null=True))
    if missing.any():
        raise InputError(
            f"Timestamp column {name!r} of {path} is missing in data row {int(missing.argmax()) + 1}; fill it, or "
            "use a random protocol without data.timestamp."
        )
    return numbers.cast(pa.int64()) if pa.types.is_timestamp(numbers.type) else numbers
