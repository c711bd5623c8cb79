"""Tables as files: which parts they have and which columns, from Parquet's schema or a CSV's header; no row is read.

Apart from `alt_jax.data.sources.table`, which reads the rows: a wrong path or column is told before what that needs is
imported. Arrow itself is imported where a file is opened, since NumPy comes with it.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alt_jax.errors import InputError, nearest, shortened

if TYPE_CHECKING:
    import pyarrow.csv

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")


def parquet_parts(path: Path) -> list[Path]:
    """The Parquet files that a table consists of; none if it is CSV or TSV.

    Raises:
      InputError: There is no table at `path`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; correct the path of the table.")
    if path.is_dir():
        parts = sorted(p for p in path.iterdir() if p.suffix.lower() in _PARQUET and p.name[0] not in "._")
        if not parts:
            raise InputError(f"{path} is a folder without .parquet files; name a table file.")
        return parts
    suffix = path.suffix.lower()
    if suffix not in _PARQUET and suffix not in _DELIMITERS:
        raise InputError(f"{path} is not named like a table; use {', '.join([*_DELIMITERS, *_PARQUET])}.")
    return [path] if suffix in _PARQUET else []


def check_columns(path: Path, wanted: Collection[str]) -> None:
    """Looks for columns in a table; in one of several parts, in the first: to open thousands takes its time.

    Raises:
      InputError: There is no table, its schema or header cannot be read, or it lacks a column.
    """
    parts = parquet_parts(path)
    if not parts:
        require_columns(csv_columns(path, *csv_options(path)), wanted, str(path))
        return
    import pyarrow as pa
    import pyarrow.parquet

    try:
        present = pa.parquet.read_schema(parts[0]).names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable_parquet(parts[0], error) from None
    require_columns(present, wanted, str(parts[0]))


def require_columns(present: Sequence[str], wanted: Collection[str], origin: str) -> None:
    """Checks that every wanted column is there exactly once.

    Args:
      present: Columns that there are.
      wanted: Columns; a mapping also gives a clause each, which says what a missing one should hold, or is empty.
      origin: Name of the file, for messages.

    Raises:
      InputError: One is missing (the nearest is named) or is there twice.
    """
    for column in wanted:
        if column not in present:
            clause = wanted[column] if isinstance(wanted, Mapping) else ""
            raise InputError(f"{origin} has no column {column!r}{clause}; {nearest(column, present)}")
        if list(present).count(column) > 1:
            raise InputError(f"{origin} has more than one column {column!r}; rename all but one.")


def csv_options(path: Path) -> tuple["pyarrow.csv.ReadOptions", "pyarrow.csv.ParseOptions"]:
    """How CSV and TSV files are read; the suffix says which of them it is."""
    import pyarrow.csv

    read = pyarrow.csv.ReadOptions(use_threads=False)  # with threads, errors do not say the row
    return read, pyarrow.csv.ParseOptions(delimiter=_DELIMITERS[path.suffix.lower()], newlines_in_values=True)


def csv_columns(path: Path, read: "pyarrow.csv.ReadOptions", parse: "pyarrow.csv.ParseOptions") -> list[str]:
    """Names of the columns in the header.

    Raises:
      InputError: The beginning of the file is malformed.
    """
    import pyarrow as pa
    import pyarrow.csv

    try:
        with pa.csv.open_csv(path, read_options=read, parse_options=parse) as reader:
            names: list[str] = reader.schema.names
            return names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise malformed_csv(path, error) from None


def malformed_csv(path: Path, error: Exception) -> InputError:
    """What to say of a CSV file that Arrow does not read."""
    reason = arrow_reason(error)
    if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error) or "UTF-8" in str(error):
        return InputError(f"{path} is not UTF-8 text ({reason}); convert it, e.g. with iconv -f latin1 -t utf-8.")
    return InputError(f"{path} is malformed: {reason}; correct that row, counted with the header as row 1.")


def unreadable_parquet(path: Path, error: Exception) -> InputError:
    """What to say of a Parquet file that Arrow does not read."""
    return InputError(f"{path} cannot be read as Parquet ({arrow_reason(error)}); write it again.")


def arrow_reason(error: Exception) -> str:
    """The first line of an error's message, without its closing full stop."""
    return shortened(str(error).strip().split("\n")[0].rstrip("."))


def check_output(rows: Path, output: Path) -> None:
    """Refuses a file for the scores of rows that is of another kind, or is the file of the rows.

    Raises:
      InputError: It is.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise InputError(f"{output} should end in .parquet or .csv.")
    if os.path.exists(output) and os.path.exists(rows) and os.path.samefile(output, rows):
        raise InputError(f"{output} is the file of the rows; give another place for the scores.")
