"""The rows of CSV files: every line is read, whatever quotes it has, or the file is refused with the line.

What the config leaves open is found out from the file, and said where it is not what one would expect of its name.
"""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from alt_jax.config import CSVConfig
from alt_jax.data.headers import NAMES, SEPARATORS, Form, csv_columns, csv_text, form_of, malformed_csv
from alt_jax.data.table_files import compression, plain_suffix, require_columns
from alt_jax.errors import InputError

_CHUNK = 1 << 24  # bytes
_DECIMAL_COMMA = r"^([+-]?[0-9]+),([0-9]+)$"
_LINE_FEED, _RETURN = 10, 13
_LONGEST = (1 << 31) - 1  # characters of a value


def read(path: Path, wanted: Collection[str], config: CSVConfig, notices: list[str]) -> pa.Table:
    """Columns of a file, as strings exactly as written (dictionaries of them, which take 4 bytes a row).

    Args:
      path: The file, which may be compressed.
      wanted: Columns; see `alt_jax.data.table_files.require_columns`.
      config: What is known of it.
      notices: Takes sentences about what was found out.

    Raises:
      InputError: It is malformed, not of that encoding, or lacks a column; names the nearest.
    """
    form = form_of(path, config, wanted)
    require_columns(csv_columns(path, form), wanted, str(path))
    if form.separator != SEPARATORS[plain_suffix(path)] and not config.separator:
        notices.append(f"{path} has {NAMES[form.separator]} between its columns.")
    if form.quote and not _has(path, form.quote, form.encoding):
        form = form._replace(quote="")
    table = _read_quoted(path, wanted, form, config, notices) if form.quote else _parse(path, wanted, form)
    return table if config.decimal == "." else _with_points(table)


def _read_quoted(path: Path, wanted: Collection[str], form: Form, config: CSVConfig, notices: list[str]) -> pa.Table:
    """The columns of a file that has quotes, each of which may begin a value of several lines, or be a stray one."""
    table: pa.Table | None = None
    try:
        table = _parse(path, wanted, form)
    except InputError as error:
        problem = error
    lines = _lines(path, form.encoding) - 1  # the header's
    if table is not None and table.num_rows == lines:
        return table
    if not config.quote:
        try:
            plain = _parse(path, wanted, form._replace(quote=""))
        except InputError:
            pass  # they do hold separators together, so quotes is what they are
        else:
            harm = "break its rows" if table is None else f"swallow {lines - table.num_rows:,} of its lines"
            notices.append(
                f"{path} has quotes that are none: taken for quotes they would {harm}, so they stay as they are; "
                "data.csv.quote says otherwise."
            )
            return plain
    if table is None:
        raise problem
    _check_quotes(path, form)
    notices.append(f"{path} has values of several lines, in quotes: {lines:,} lines are {table.num_rows:,} rows.")
    return table


def _check_quotes(path: Path, form: Form) -> None:
    """Refuses a file in which a quote is closed inside of a value: it was none, and rows are lost in what it opened."""
    begins = 1
    csv.field_size_limit(_LONGEST)
    with csv_text(path, form.encoding) as lines:
        reader = csv.reader(lines, delimiter=form.separator, quotechar=form.quote, strict=True)
        try:
            for _ in reader:
                begins = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path} is malformed: the quotes of the row that begins in line {begins} do not fit ({error}); "
                "correct that row, or set data.csv.quote none if they are no quotes."
            ) from None


def _parse(path: Path, wanted: Collection[str], form: Form) -> pa.Table:
    convert = pa.csv.ConvertOptions(
        include_columns=list(wanted),
        column_types=dict.fromkeys(wanted, pa.dictionary(pa.int32(), pa.string())),
        strings_can_be_null=False,
    )
    options = {"read_options": _reading(form), "parse_options": _parsing(form), "convert_options": convert}
    try:
        with pa.input_stream(str(path), compression=compression(path)) as stream:
            return pa.csv.read_csv(stream, **options)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise malformed_csv(path, error, form.encoding) from None


def _parsing(form: Form) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(
        delimiter=form.separator, quote_char=form.quote or False, newlines_in_values=bool(form.quote)
    )


def _reading(form: Form) -> pa.csv.ReadOptions:
    return pa.csv.ReadOptions(use_threads=False, encoding=form.encoding)  # with threads, errors do not say the row


def _with_points(table: pa.Table) -> pa.Table:
    """Numbers with decimal commas as numbers with points."""

    def change(chunk: pa.DictionaryArray) -> pa.DictionaryArray:
        changed = pc.replace_substring_regex(chunk.dictionary, _DECIMAL_COMMA, r"\1.\2")
        return pa.DictionaryArray.from_arrays(chunk.indices, changed)

    columns = [pa.chunked_array([change(chunk) for chunk in column.chunks], column.type) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _chunks(path: Path, encoding: str) -> Iterator[bytes]:
    """The file as bytes in which line ends and quotes are those of ASCII."""
    if "16" in encoding or "32" in encoding:
        with csv_text(path, encoding) as text:
            while part := text.read(_CHUNK):
                yield part.encode()
    else:
        with pa.input_stream(str(path), compression=compression(path)) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk


def _has(path: Path, quote: str, encoding: str) -> bool:
    return any(quote.encode() in chunk for chunk in _chunks(path, encoding))


def _lines(path: Path, encoding: str) -> int:
    """Lines that are not empty."""
    lines, before = 0, _LINE_FEED
    for chunk in _chunks(path, encoding):
        found = np.concatenate([np.array([before], np.uint8), np.frombuffer(chunk, np.uint8)])
        ends = (found == _LINE_FEED) | (found == _RETURN)
        lines += int((ends[1:] & ~ends[:-1]).sum())
        before = int(found[-1])
    return lines + (before not in (_LINE_FEED, _RETURN))
