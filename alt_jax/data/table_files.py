"""Tables as files: which parts they have, and what by its first bytes is none.

Apart from `alt_jax.data.sources.table`, which reads the rows: a wrong path is told before what that needs is imported.
Arrow itself is imported where a file is opened, since NumPy comes with it.

A table is a file, a folder of parts (in folders like `dt=2026-09-01` too, whose names are then columns), or what a
pattern like `clicks-*.csv.gz` matches; the parts' rows come in the order of their paths. Names that begin with a dot or
an underscore, as Spark leaves them beside its parts, are none of it.
"""

import glob
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from alt_jax.errors import InputError, nearest, shortened

Kind = Literal["csv", "json", "parquet"]

_KINDS: dict[str, Kind] = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
_COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_NAMED = f"{', '.join(_KINDS)}, all but the last two also with {', '.join(_COMPRESSION)} behind"
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# What the first bytes of a file tell of it, where it is not what its name says.
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch that with git lfs pull",
    b"PAR1": "Parquet, whatever its name; rename it to .parquet",
    b"PK\x03\x04": "a zip archive (or a spreadsheet); unpack it (or save it as CSV)",
    b"\x1f\x8b": "compressed by gzip, whatever its name; rename it to end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd, whatever its name; rename it to end in .zst",
}


@dataclass(frozen=True)
class Part:
    """One file of a table, and the columns that the names of its folders give: `dt=2026-09-01`."""

    path: Path
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Files:
    """The files of a table, all of one kind, in order."""

    kind: Kind
    parts: tuple[Part, ...]


def find(path: Path) -> Files:
    """The files that a table consists of.

    Raises:
      InputError: There is no table at `path`, or files of several kinds.
    """
    if path.is_dir():
        parts = tuple(
            Part(file, _hive_columns(file.relative_to(path)))
            for file in sorted(path.rglob("*"))
            if plain_suffix(file) in _KINDS and not any(name[0] in "._" for name in file.relative_to(path).parts)
        )
        if not parts:
            raise InputError(f"{path} is a folder without table files; name one that ends in {_NAMED}.")
    elif path.exists():
        if plain_suffix(path) not in _KINDS:
            raise InputError(f"{path} is not named like a table; its name should end in {_NAMED}.")
        return Files(_KINDS[plain_suffix(path)], (Part(path),))
    else:
        found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
        if not found:
            what = "matches no file" if glob.has_magic(str(path)) else "does not exist"
            raise InputError(f"{path} {what}; correct the path of the table.")
        parts = tuple(part for name in found for part in find(Path(name)).parts)
    kinds = {_KINDS[plain_suffix(part.path)]: part.path for part in parts}
    if len(kinds) > 1:
        several = " and ".join(str(file) for file in list(kinds.values())[:2])
        raise InputError(f"{path} has files of several kinds, like {several}; name those of one kind by a pattern.")
    return Files(next(iter(kinds)), parts)


def _hive_columns(path: Path) -> tuple[tuple[str, str], ...]:
    pairs = (name.split("=", 1) for name in path.parts[:-1] if "=" in name)
    return tuple((unquote(key), "" if value == _HIVE_NULL else unquote(value)) for key, value in pairs)


def plain_suffix(path: Path) -> str:
    """The suffix that says what a file holds, in small letters: `.csv` of `a.csv.gz`."""
    return Path(path.stem if path.suffix.lower() in _COMPRESSION else path.name).suffix.lower()


def compression(path: Path) -> str | None:
    """How a file is compressed, by its name, as Arrow calls it."""
    return _COMPRESSION.get(path.suffix.lower())


def check_text(path: Path, encoding: str) -> None:
    """Refuses a file that by its first bytes is not what its name says.

    Args:
      path: The file, which may be compressed.
      encoding: Of its text; empty: it holds none.

    Raises:
      InputError: It is something else, or its text is of another encoding.
    """
    import pyarrow as pa

    try:
        with pa.input_stream(str(path), compression=compression(path)) as stream:
            begins: bytes = stream.read(64)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read ({arrow_reason(error)}); write it again.") from None
    for beginning, what in _BEGINNINGS.items():
        if begins.startswith(beginning) and (encoding or beginning != b"PAR1"):
            raise InputError(f"{path} is {what}.")
    wide = begins.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(begins) > 3 and 0 in begins[:4])
    if encoding and wide and not ("16" in encoding or "32" in encoding):
        raise InputError(f"{path} is UTF-16 text, or no text; set data.csv.encoding utf-16, or convert it to UTF-8.")


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


def unreadable_parquet(path: Path, error: Exception) -> InputError:
    """What to say of a Parquet file that Arrow does not read.

    Raises:
      InputError: By its first bytes it is something else, which says more.
    """
    check_text(path, "")
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
