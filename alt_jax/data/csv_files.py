"""How a file of text is read as a table: between which characters columns stand, what quotes are, how it is encoded.

What the config leaves open is found out from the file, and said where it is not what one would expect of its name.
"""

import csv
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from alt_jax.config import CSVConfig
from alt_jax.data.table_files import arrow_reason, check_text, compression, plain_suffix, require_columns
from alt_jax.errors import InputError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_CHUNK = 1 << 24  # bytes
_DECIMAL_COMMA = r"^([+-]?[0-9]+),([0-9]+)$"
_LINE_FEED, _RETURN = 10, 13
_LONGEST = (1 << 31) - 1  # characters of a value


@dataclass(frozen=True)
class _Format:
    """How one file is read: what stands between columns and around values (nothing: no quotes), and its encoding."""

    separator: str
    quote: str
    encoding: str

    def parsing(self) -> pa.csv.ParseOptions:
        return pa.csv.ParseOptions(
            delimiter=self.separator, quote_char=self.quote or False, newlines_in_values=bool(self.quote)
        )

    def reading(self) -> pa.csv.ReadOptions:
        return pa.csv.ReadOptions(use_threads=False, encoding=self.encoding)  # with threads, errors do not say the row


def columns(path: Path, config: CSVConfig, wanted: Collection[str] = ()) -> list[str]:
    """Names of the columns in a file's header, which is divided so that the wanted ones are there, if it can be.

    Raises:
      InputError: The beginning of the file is malformed.
    """
    check_text(path, config.encoding)
    return _header(path, _format(path, config, wanted))


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
    check_text(path, config.encoding)
    form = _format(path, config, wanted)
    require_columns(_header(path, form), wanted, str(path))
    if form.separator != _SEPARATORS[plain_suffix(path)] and not config.separator:
        notices.append(f"{path} has {_NAMES[form.separator]} between its columns.")
    if form.quote and not _has(path, form.quote, form.encoding):
        form = replace(form, quote="")
    table = _read_quoted(path, wanted, form, config, notices) if form.quote else _parse(path, wanted, form)
    return table if config.decimal == "." else _with_points(table)


def _read_quoted(path: Path, wanted: Collection[str], form: _Format, config: CSVConfig, notices: list[str]) -> pa.Table:
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
            plain = _parse(path, wanted, replace(form, quote=""))
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


def _check_quotes(path: Path, form: _Format) -> None:
    """Refuses a file in which a quote is closed inside of a value: it was none, and rows are lost in what it opened."""
    begins = 1
    csv.field_size_limit(_LONGEST)
    with _text(path, form.encoding) as lines:
        reader = csv.reader(lines, delimiter=form.separator, quotechar=form.quote, strict=True)
        try:
            for _ in reader:
                begins = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path} is malformed: the quotes of the row that begins in line {begins} do not fit ({error}); "
                "correct that row, or set data.csv.quote none if they are no quotes."
            ) from None


def _format(path: Path, config: CSVConfig, wanted: Collection[str]) -> _Format:
    quote = "" if config.quote == "none" else config.quote or '"'
    if config.separator:
        return _Format(config.separator, quote, config.encoding)
    likely = _SEPARATORS[plain_suffix(path)]
    forms = [_Format(separator, quote, config.encoding) for separator in (likely, *(_NAMES.keys() - {likely}))]
    return next((form for form in forms if set(wanted) <= set(_header(path, form))), forms[0])


def _header(path: Path, form: _Format) -> list[str]:
    quoting = {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE}
    try:
        with _text(path, form.encoding) as lines:
            return next(row for row in csv.reader(lines, delimiter=form.separator, **quoting) if row)
    except StopIteration:
        raise InputError(f"{path} is malformed: it is empty; write a header and rows.") from None
    except (csv.Error, pa.ArrowException, OSError, UnicodeError) as error:
        raise _malformed(path, error) from None


def _parse(path: Path, wanted: Collection[str], form: _Format) -> pa.Table:
    convert = pa.csv.ConvertOptions(
        include_columns=list(wanted),
        column_types=dict.fromkeys(wanted, pa.dictionary(pa.int32(), pa.string())),
        strings_can_be_null=False,
    )
    options = {"read_options": form.reading(), "parse_options": form.parsing(), "convert_options": convert}
    try:
        with pa.input_stream(str(path), compression=compression(path)) as stream:
            return pa.csv.read_csv(stream, **options)
    except (pa.ArrowInvalid, OSError, UnicodeError) as error:
        raise _malformed(path, error) from None


def _malformed(path: Path, error: Exception) -> InputError:
    reason = arrow_reason(error)
    if isinstance(error, UnicodeError) or "UTF8" in str(error) or "UTF-8" in str(error):
        return InputError(
            f"{path} is not text of the encoding that was expected ({reason}); set data.csv.encoding, e.g. latin-1, or "
            "convert it, e.g. with iconv -f latin1 -t utf-8."
        )
    return InputError(f"{path} is malformed: {reason}; correct that row, counted with the header as row 1.")


def _with_points(table: pa.Table) -> pa.Table:
    """Numbers with decimal commas as numbers with points."""

    def change(chunk: pa.DictionaryArray) -> pa.DictionaryArray:
        changed = pc.replace_substring_regex(chunk.dictionary, _DECIMAL_COMMA, r"\1.\2")
        return pa.DictionaryArray.from_arrays(chunk.indices, changed)

    columns = [pa.chunked_array([change(chunk) for chunk in column.chunks], column.type) for column in table.columns]
    return pa.table(columns, names=table.column_names)


@contextmanager
def _text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """The file, without a byte order mark and with its line ends as they are."""
    encoding = "utf-8-sig" if _is_utf8(encoding) else encoding
    with pa.input_stream(str(path), compression=compression(path)) as stream:
        yield io.TextIOWrapper(stream, encoding=encoding, newline="")


def _chunks(path: Path, encoding: str) -> Iterator[bytes]:
    """The file as bytes in which line ends and quotes are those of ASCII."""
    if "16" in encoding or "32" in encoding:
        with _text(path, encoding) as text:
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


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "") == "utf8"
