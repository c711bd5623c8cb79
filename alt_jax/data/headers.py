"""Which columns a table has, from Parquet's schema or a CSV's header; no row is read.

What a CSV's config leaves open is found out here: what stands between its columns.
"""

import csv
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from alt_jax.config import CSVConfig
from alt_jax.data.table_files import (
    arrow_reason,
    check_text,
    compression,
    find,
    plain_suffix,
    require_columns,
    unreadable_parquet,
)
from alt_jax.errors import InputError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


class Form(NamedTuple):
    """How a CSV file is read: what stands between columns and around values (empty: no quotes), and its encoding."""

    separator: str
    quote: str
    encoding: str


def check_columns(path: Path, wanted: Collection[str], config: CSVConfig) -> None:
    """Looks for columns in a table; in one of several parts, in the first: to open thousands takes its time.

    Raises:
      InputError: There is no table, its schema or header cannot be read, or it lacks a column.
    """
    files = find(path)
    part = files.parts[0]
    if files.kind == "json":  # whose rows have a key each for what they hold
        check_text(part.path, "utf-8")
        return
    if files.kind == "csv":
        form = form_of(part.path, config, set(wanted) - {name for name, _ in part.columns})
        present = csv_columns(part.path, form)
    else:
        import pyarrow as pa
        import pyarrow.parquet

        try:
            present = pa.parquet.read_schema(part.path).names
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise unreadable_parquet(part.path, error) from None
    given = [name for name, _ in part.columns if name not in present]
    require_columns([*present, *given], wanted, str(part.path))


def form_of(path: Path, config: CSVConfig, wanted: Collection[str]) -> Form:
    """How a CSV file is read: as the config says, and else so that its header has the wanted columns, if it can.

    Raises:
      InputError: By its first bytes it is no such file, or it has no header.
    """
    check_text(path, config.encoding)
    quote = "" if config.quote == "none" else config.quote or '"'
    if config.separator:
        return Form(config.separator, quote, config.encoding)
    likely = SEPARATORS[plain_suffix(path)]
    # In one order: of two that would do, every run takes the same.
    forms = [Form(separator, quote, config.encoding) for separator in dict.fromkeys((likely, *NAMES))]
    return next((form for form in forms if set(wanted) <= set(csv_columns(path, form))), forms[0])


def csv_columns(path: Path, form: Form) -> list[str]:
    """Names of the columns in a file's header.

    Raises:
      InputError: It has none, or is not of that encoding.
    """
    import pyarrow as pa

    quoting: dict[str, Any] = {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE}
    try:
        with csv_text(path, form.encoding) as lines:
            return next(row for row in csv.reader(lines, delimiter=form.separator, **quoting) if row)
    except StopIteration:
        raise InputError(f"{path} is malformed: it is empty; write a header and rows.") from None
    except (csv.Error, pa.ArrowException, OSError, UnicodeError) as error:
        raise malformed_csv(path, error, form.encoding) from None


@contextmanager
def csv_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """The file, without a byte order mark and with its line ends as they are."""
    import pyarrow as pa

    encoding = "utf-8-sig" if _is_utf8(encoding) else encoding
    with pa.input_stream(str(path), compression=compression(path)) as stream:
        yield io.TextIOWrapper(stream, encoding=encoding, newline="")


def malformed_csv(path: Path, error: Exception, encoding: str) -> InputError:
    """What to say of a CSV file that is not read."""
    reason = arrow_reason(error)
    if isinstance(error, UnicodeError) or "UTF8" in str(error) or "UTF-8" in str(error):
        return InputError(
            f"{path} is not {encoding.upper()} text ({reason}); set data.csv.encoding, e.g. latin-1, or convert it, "
            "e.g. with iconv -f latin1 -t utf-8."
        )
    return InputError(f"{path} is malformed: {reason}; correct that row, counted with the header as row 1.")


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "") == "utf8"
