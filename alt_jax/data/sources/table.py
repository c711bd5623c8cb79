"""Own tables: files of CSV, JSON Lines or Parquet, in one part or many, or a table in memory."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet

from alt_jax.config import CSVConfig, DataConfig
from alt_jax.data import csv_files, spelling
from alt_jax.data.declared import own_columns, own_fields
from alt_jax.data.sources.raw import Columns, RawData, as_text
from alt_jax.data.table_files import (
    Files,
    Part,
    arrow_reason,
    check_text,
    compression,
    find,
    require_columns,
    unreadable_parquet,
)
from alt_jax.errors import InputError, shortened

_JSON_BLOCK = 1 << 26  # bytes, more than which no line may have
_ENCODED = pa.dictionary(pa.int32(), pa.string())


class _Rows(NamedTuple):
    """Some of the rows of an own table: one of its files, or a table in memory.

    Attributes:
      origin: Where they are, for messages.
      table: Their columns.
      labelled: Whether they have a label.
      split: The split that all of them are of; empty: a column says so, or the protocol does.
    """

    origin: str
    table: pa.Table | Columns
    labelled: bool = True
    split: str = ""


def load(config: DataConfig, frame: pa.Table | None = None) -> RawData:
    """Opens the declared columns of a table and checks labels and times; CSV values are strings exactly as written.

    Args:
      config: Declares the table.
      frame: Its rows, where they are in memory and not in `config.raw`.

    Raises:
      InputError: The declaration is incomplete or contradicts itself, or the file does not fit it.
    """
    fields = own_fields(config, in_memory=frame is not None)
    notices: list[str] = []
    tables = _tables(config, frame, notices)
    readers = {
        column: partial(_stacked, column, [(rows.origin, partial(rows.table.__getitem__, column)) for rows in tables])
        for column in own_columns(config, labelled=False, special=False)
    }
    # Our own columns have names that nobody's have, so that none of them is taken for another.
    label, timestamp, split = (_unused(name, [*readers, *own_columns(config)]) for name in ("label", "time", "split"))
    readers[label] = partial(_labels, config.label, tables)
    if config.timestamp:
        readers[timestamp] = partial(_times, config.timestamp, tables, notices)
    divided = config.split or config.valid
    if divided:
        readers[split] = partial(_splits, config.split, tables)
    parts = [rows.table.parts if isinstance(rows.table, Columns) else () for rows in tables]
    rows = sum(rows.table.num_rows for rows in tables)
    table = Columns(readers, rows, tuple(chain.from_iterable(parts)) if all(parts) else ())
    for column in (label, *([timestamp] if config.timestamp else [])):
        table[column]  # what is wrong with it is said before anything else is done
    return RawData(
        source="table",
        origin=tables[0].origin,
        table=table,
        fields=fields,
        label=label,
        timestamp=timestamp if config.timestamp else None,
        timestamp_quality=None,
        user=config.user,
        item=config.item,
        linked=config.linked,
        notices=tuple(dict.fromkeys(notices)),
        positive_above=None,
        unlabelled=sum(rows.table.num_rows for rows in tables if not rows.labelled),
        split=split if divided else None,
    )


def _tables(config: DataConfig, frame: pa.Table | None, notices: list[str]) -> list[_Rows]:
    """The rows that a config names, those without a label last."""
    columns = own_columns(config)
    if config.csv != CSVConfig() and (frame is not None or find(Path(config.raw)).kind != "csv"):
        what = "the rows are in memory" if frame is not None else f"{config.raw} is none"
        raise InputError(f"data.csv says how CSV files are read, but {what}; leave it out.")
    if frame is None:
        first = _Rows(config.raw, _open(Path(config.raw), columns, config.csv, notices))
    else:
        require_columns(frame.column_names, columns, "the table")
        first = _Rows("the table", frame)
    tables = [first._replace(split="train" if config.valid else "")]
    for split in ("valid", "test"):
        if path := getattr(config, split):
            tables.append(_Rows(path, _open(Path(path), columns, config.csv, notices), split=split))
    if config.unlabelled:
        columns = own_columns(config, labelled=False)
        path = config.unlabelled
        tables.append(_Rows(path, _open(Path(path), columns, config.csv, notices), labelled=False))
    return tables


def _unused(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name = f"_{name}"
    return name


def _stacked(column: str, tables: Sequence[tuple[str, Callable[[], pa.ChunkedArray]]]) -> pa.ChunkedArray:
    """The rows of a column, those of one table below those of another; where their types differ, as text.

    Arrow would promote them: int64 to double, which does not tell large ids apart.

    Raises:
      InputError: It holds lists in one table and single values in another.
    """
    parts = [read() for _, read in tables]
    kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
    if len(kinds) > 1:
        lists = [pa.types.is_nested(part.type) for part in parts]
        if len(set(lists)) > 1:
            one, other = tables[lists.index(True)][0], tables[lists.index(False)][0]
            raise InputError(f"Column {column!r} holds lists in {one} and single values in {other}; write both alike.")
        try:
            parts = [_chunked(spelling.strings(part)) for part in parts]
        except (TypeError, ValueError) as error:
            raise InputError(f"Column {column!r} of {tables[0][0]} {error}.") from None
        kinds = {parts[0].type}
    kind = next(iter(kinds), pa.null())
    return pa.chunked_array([chunk for part in parts for chunk in part.cast(kind).chunks], kind)


def _chunked(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])


def _labels(column: str, tables: Sequence[_Rows]) -> pa.ChunkedArray:
    """Labels as float64, NaN where there is none."""
    return pa.chunked_array(
        [
            _label(rows.table[column], column, rows.origin)
            if rows.labelled
            else pa.array(np.full(rows.table.num_rows, np.nan))
            for rows in tables
        ]
    )


def _times(column: str, tables: Sequence[_Rows], notices: list[str]) -> pa.ChunkedArray:
    """What rows are sorted by."""
    numbers = {_are_numbers(rows.table[column]): rows.origin for rows in tables}
    if len(numbers) > 1:
        raise InputError(
            f"Timestamp column {column!r} holds numbers in {numbers[True]} and times in {numbers[False]}; write both "
            "alike."
        )
    found = [times(rows.table[column], column, rows.origin, notices) for rows in tables]
    kind = found[0].type if len({part.type for part in found}) == 1 else pa.float64()
    return pa.chunked_array([part.cast(kind) for part in found])


_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def _splits(column: str | None, tables: Sequence[_Rows]) -> pa.ChunkedArray:
    """Of every row `train`, `valid` or `test`: the split that its file is of, or that a column says.

    Raises:
      InputError: The column says something else.
    """
    found = []
    for rows in tables:
        if column and rows.labelled:
            text = as_text(rows.table[column], column, rows.origin)
            names = [_SPLIT_NAMES.get(string.strip().lower()) for string in text.dictionary.to_pylist()]
            codes = np.asarray(text.indices)
            unknown = np.array([name is None for name in names], bool)[codes]
            if unknown.any():
                row = int(unknown.argmax())
                raise InputError(
                    f"Split column {column!r} of {rows.origin} holds {shortened(repr(text[row].as_py()))} in data row "
                    f"{row + 1}; write train, valid or test."
                )
            values = pa.array([name or "" for name in names], pa.string())
            found.append(pa.DictionaryArray.from_arrays(text.indices, values).cast(pa.string()))
        else:
            found.append(pa.array([rows.split or "train"] * rows.table.num_rows, pa.string()))
    return pa.chunked_array(found)


def _open(path: Path, columns: Sequence[str], csv: CSVConfig, notices: list[str]) -> pa.Table | Columns:
    """Parquet columns are read when asked for; other files, whose columns lie interleaved, are read at once."""
    files = find(path)
    if files.kind != "parquet":
        return _read_text(files, columns, csv, notices)
    rows = 0
    for part in files.parts:
        with _parquet(part, columns, encoded=False) as file:
            rows += file.metadata.num_rows
    return Columns({column: partial(_read_one, path, column) for column in columns}, rows, files.parts)


def _read_one(path: Path, column: str) -> pa.ChunkedArray:
    return read(path, [column], encoded=True)[column]


def read(
    path: Path,
    columns: Collection[str],
    *,
    encoded: bool = False,
    csv: CSVConfig = CSVConfig(),
    notices: list[str] | None = None,
) -> pa.Table:
    """Reads columns of a table.

    Args:
      path: A file, a folder of parts, or a pattern; see `alt_jax.data.table_files.find`.
      columns: Which; see `alt_jax.data.table_files.require_columns`.
      encoded: Reads strings as dictionaries and indices, as Parquet stores them: quicker, and 4 bytes a row.
      csv: How CSV files are read.
      notices: Takes sentences about what was found out of them.

    Raises:
      InputError: A file is missing, of another kind, malformed, not UTF-8, or lacks a column; names the nearest.
    """
    files = find(path)
    if files.kind != "parquet":
        return _read_text(files, columns, csv, notices if notices is not None else [])
    tables = []
    for part in files.parts:
        with _parquet(part, columns, encoded) as file:
            stored = [column for column in columns if column in file.schema_arrow.names]
            tables.append((part, _with_folders(file.read(columns=stored), part, columns, file.metadata.num_rows)))
    return _below(tables, columns)


def _read_text(files: Files, columns: Collection[str], csv: CSVConfig, notices: list[str]) -> pa.Table:
    tables = []
    for part in files.parts:
        clauses = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, "")
        stored = {column: clause for column, clause in clauses.items() if column not in dict(part.columns)}
        if files.kind == "csv":
            table = csv_files.read(part.path, stored, csv, notices)
        else:
            table = _read_json(part.path, stored)
        tables.append((part, _with_folders(table, part, columns, table.num_rows)))
    return _below(tables, columns)


def _read_json(path: Path, columns: Collection[str]) -> pa.Table:
    check_text(path, "utf-8")
    try:
        with pa.input_stream(str(path), compression=compression(path)) as stream:
            options = pa.json.ReadOptions(use_threads=False, block_size=_JSON_BLOCK)
            table = pa.json.read_json(stream, read_options=options)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON Lines ({arrow_reason(error)}); correct it.") from None
    require_columns(table.column_names, columns, str(path))
    return table.select(list(columns))


def _with_folders(table: pa.Table, part: Part, columns: Collection[str], rows: int) -> pa.Table:
    """The columns in order, with those that the names of a file's folders give."""
    given = dict(part.columns)
    arrays = [
        table[column]
        if column in table.column_names
        else pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([given[column]]))
        for column in columns
    ]
    return pa.table(arrays, names=list(columns))


def _below(tables: Sequence[tuple[Part, pa.Table]], columns: Collection[str]) -> pa.Table:
    stacked = {
        column: _stacked(column, [(str(part.path), partial(table.__getitem__, column)) for part, table in tables])
        for column in columns
    }
    return pa.table(stacked)


class RowGroup(NamedTuple):
    """Some consecutive rows of a table, as they lie in a Parquet file.

    Attributes:
      part: The file.
      group: Number of the row group.
      first: Number of its first row in the table.
      rows: How many.
    """

    part: Part
    group: int
    first: int
    rows: int


def row_groups(parts: Sequence[Part], columns: Collection[str]) -> tuple[list[RowGroup], pa.Schema]:
    """The row groups of Parquet files, and the types that the columns have in all of them: text, where they differ.

    Raises:
      InputError: A file cannot be read, lacks a column, or has lists in one where another has single values.
    """
    groups, first = [], 0
    kinds: dict[str, dict[pa.DataType, Path]] = {column: {} for column in columns}
    for part in parts:
        with _parquet(part, columns, encoded=True) as file:
            schema = file.schema_arrow
            for column, found in kinds.items():
                kind = schema.field(column).type if column in schema.names else _ENCODED
                if not pa.types.is_null(kind):
                    found.setdefault(kind, part.path)
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                groups.append(RowGroup(part, group, first, rows))
                first += rows
    types = []
    for column, found in kinds.items():
        lists: dict[bool, Path] = {}
        for kind, path in found.items():
            lists.setdefault(pa.types.is_nested(kind), path)
        if len(lists) > 1:
            raise InputError(
                f"Column {column!r} holds lists in {lists[True]} and single values in {lists[False]}; write both alike."
            )
        kind = next(iter(found), pa.null())
        if len(found) > 1:
            kind = pa.list_(pa.string()) if True in lists else _ENCODED
        types.append((column, kind))
    return [group for group in groups if group.rows], pa.schema(types)


def read_group(group: RowGroup, schema: pa.Schema) -> pa.Table:
    """The rows of a group: the columns of `schema`, of the types that it has.

    Raises:
      InputError: The file cannot be read, or lacks a column.
    """
    with _parquet(group.part, schema.names, encoded=True) as file:
        stored = [column for column in schema.names if column in file.schema_arrow.names]
        table = file.read_row_group(group.group, columns=stored)
    table = _with_folders(table, group.part, schema.names, group.rows)
    columns = [
        column if column.type == field.type else _chunked(spelling.strings(column)).cast(field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.table(columns, schema=schema)


@contextmanager
def _parquet(part: Part, columns: Collection[str], encoded: bool) -> Iterator[pa.parquet.ParquetFile]:
    """An open Parquet file that has the columns, but for those that its folders give."""
    path = part.path
    try:
        # Only columns that are there, and strings, may be named: not lists of them, and no others.
        strings = [f.name for f in pa.parquet.read_schema(path) if _is_string(f.type)] if encoded else []
        with pa.parquet.ParquetFile(path, read_dictionary=strings) as file:
            given = [name for name, _ in part.columns if name not in file.schema_arrow.names]
            require_columns([*file.schema_arrow.names, *given], columns, str(path))
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable_parquet(path, error) from None


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, and not as a dictionary, which Arrow does not parse."""
    kind = column.type
    column = column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _label(column: pa.ChunkedArray, name: str, path: str) -> pa.Array:
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


def times(column: pa.ChunkedArray, name: str, path: str, notices: list[str] | None = None) -> pa.Array:
    """A sortable number per row: the number itself, or microseconds for dates and times (text in ISO 8601).

    Of times with a zone or an offset, microseconds are those of UTC.

    Args:
      column: The timestamps as the file has them.
      name: Of the column, for messages.
      path: Of the file, for messages.
      notices: Takes a sentence if nanoseconds are cut.

    Returns:
      int64, or float64 if a number is not whole.

    Raises:
      InputError: A timestamp is missing, or they are neither numbers nor times.
    """
    array = _plain(column)
    kinds = [pa.int64(), pa.float64(), *(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC"))]
    if pa.types.is_temporal(array.type):
        kinds = [pa.timestamp("us"), pa.timestamp("ns")]
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
    if not pa.types.is_timestamp(numbers.type):
        return numbers
    whole = np.asarray(numbers.cast(pa.int64()))
    if numbers.type.unit == "ns":
        cut = int((whole % 1000 != 0).sum())
        if cut and notices is not None:
            notices.append(
                f"{cut:,} times in column {name!r} of {path} have nanoseconds; they are cut to microseconds."
            )
        whole = whole // 1000
    return pa.array(whole)
