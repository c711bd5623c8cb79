"""GoodReads, from the files of the UCSD Book Graph in one folder.

```
goodreads_interactions.csv                 user_id, book_id (numbers of the two maps), is_read, rating, is_reviewed
book_id_map.csv, user_id_map.csv           those numbers and the ids that the other files use
goodreads_books.json.gz                    one JSON object a line, as are the next three
goodreads_book_authors.json.gz             author_id → name
goodreads_book_genres_initial.json.gz      book_id → genres
goodreads_book_works.json.gz               work_id → media type
```

The JSON files are read line by line, and of a line only what a field needs is kept. A book has its first author, and
its genres in alphabetical order with `; ` between them, so that the whole list is one category; as
`FieldConfig("genres", kind="multi", separator=";", slots=10)` it is a list. An empty cell is missing, as is all that a
book, author or work is not there for; how many ratings that concerns is said.

Ratings run from 1 to 5; 0 means that the book is on a shelf without a rating. Ratings above 3 are positive. Protocol
`random` takes the zeros as negatives, `random_drop0` leaves them out. There are no times.

The average rating and the number of reviews are the publisher's, over all users. Protocols take them again over half of
the training part (see `alt_jax.data.aggregates`), except `…_no_aggregates`, which leaves them out, and `…_all_time`.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Int

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data.declared import choose_fields
from alt_jax.data.published import GOODREADS, GOODREADS_INTERACTIONS, raw_path, require_folder
from alt_jax.data.sources.original import Lines, first_duplicate, spread
from alt_jax.data.sources.raw import Aggregate, RawData
from alt_jax.data.table_files import require_columns
from alt_jax.errors import InputError

FIELDS, LINKED, _ = GOODREADS
AGGREGATES = (
    Aggregate("average_rating", of="given_rating", by="book_id", how="mean"),
    Aggregate("reviews", of="is_reviewed", by="book_id", how="sum"),
)
INTERACTIONS, BOOK_MAP, USER_MAP = GOODREADS_INTERACTIONS, "book_id_map.csv", "user_id_map.csv"
BOOKS, AUTHORS = "goodreads_books.json.gz", "goodreads_book_authors.json.gz"
GENRES, WORKS = "goodreads_book_genres_initial.json.gz", "goodreads_book_works.json.gz"
_FILES = (INTERACTIONS, BOOK_MAP, USER_MAP, BOOKS, AUTHORS, GENRES, WORKS)
_ORIGINAL_ROWS = {INTERACTIONS: 228_648_342, BOOKS: 2_360_655}
# Keys of a book that become columns as they are.
_BOOK_KEYS = {
    **{"book_id": "book_id", "title": "title", "average_rating": "average_rating", "text_reviews_count": "reviews"},
    **{"num_pages": "pages", "is_ebook": "is_ebook", "format": "format", "publisher": "publisher"},
    **{"publication_year": "year", "work_id": "work_id"},
}
_CHUNK = 1 << 16
_LONGEST = 1 << 24  # bytes of a line; the longest books of the original have a few hundred thousand

Record = dict[str, Any]


def load(config: DataConfig) -> RawData:
    """Reads GoodReads.

    Raises:
      InputError: A file is missing or unreadable, or a line is malformed; names file and line.
    """
    fields = choose_fields(config, FIELDS)
    path = raw_path(config)
    assert path is not None
    return read(path, fields)


def read(path: Path, fields: tuple[FieldConfig, ...] = FIELDS) -> RawData:
    """Reads the folder.

    Raises:
      InputError: A file is missing or unreadable, or a line is malformed; names file and line.
    """
    require_folder(path)
    for name in _FILES:
        if not (path / name).is_file():
            raise InputError(f"{path} holds no {name}; download it from the UCSD Book Graph into that folder.")
    notices: list[str] = []
    log = _interactions(path, notices)
    users, user_row = _mapped(path / USER_MAP, ("user_id_csv", "user_id"), log, "user_id", path / INTERACTIONS)
    books, map_row = _mapped(path / BOOK_MAP, ("book_id_csv", "book_id"), log, "book_id", path / INTERACTIONS)
    table = _books(path)
    for name, rows in ((INTERACTIONS, log.num_rows), (BOOKS, table.num_rows)):
        if rows != _ORIGINAL_ROWS[name]:
            notices.append(
                f"{path / name} has {rows:,} rows where the original has {_ORIGINAL_ROWS[name]:,}: it is not the "
                "original, accepted if well-formed."
            )
    book_row = _rows(books, table["book_id"])[map_row]
    if lost := int((book_row < 0).sum()):
        notices.append(f"{lost:,} ratings have a book that {BOOKS} lacks: kept, its other columns are missing.")
    rating = np.asarray(log["rating"])
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "user_id": spread(users, user_row),
        "book_id": spread(books, map_row),
        **{f.column: spread(table[f.column], book_row) for f in FIELDS[2:]},
        "rating": pa.array(rating.astype(np.float64)),
        "given_rating": pa.array(rating, mask=rating == 0),
        "is_reviewed": log["is_reviewed"],
    }
    used = {f.column for f in fields}
    return RawData(
        source="goodreads",
        origin=str(path),
        table=pa.table(columns),
        fields=fields,
        label="rating",
        timestamp=None,
        timestamp_quality=None,
        user="user_id" if "user_id" in used else None,
        item="book_id" if "book_id" in used else None,
        linked=tuple(group for group in LINKED if used.issuperset(group)),
        notices=tuple(notices),
        aggregates=AGGREGATES,
    )


# --- CSV ---


def _csv(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """Columns of a CSV file without quoting; only when something is wrong, a loop finds the line to blame."""
    read_options = pa.csv.ReadOptions(block_size=1 << 24)
    parse = pa.csv.ParseOptions(quote_char=False)
    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig", "replace").strip().split(",")
    require_columns(header, list(columns), str(path))
    convert = pa.csv.ConvertOptions(
        include_columns=list(columns), column_types=columns, null_values=[], strings_can_be_null=False
    )
    try:
        return pa.csv.read_csv(path, read_options=read_options, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        problem = _first_bad_line(path, header, columns)
        raise problem or InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); get it again.") from None


def _first_bad_line(path: Path, header: list[str], columns: dict[str, pa.DataType]) -> InputError | None:
    numbers = [header.index(name) for name, kind in columns.items() if pa.types.is_integer(kind)]
    with path.open(encoding="utf-8", errors="replace") as file:
        for line, text in enumerate(file, start=1):
            cells = text.rstrip("\r\n").split(",")
            if len(cells) != len(header):
                return Lines(str(path)).wrong(line, f"{len(cells)} columns where {len(header)} are expected")
            for number in numbers:
                if line > 1 and not (cells[number].isascii() and cells[number].isdigit() and len(cells[number]) < 10):
                    return Lines(str(path)).wrong(line, f"{header[number]} {cells[number]!r} is not a whole number")
    return None


def _interactions(path: Path, notices: list[str]) -> pa.Table:
    """Users, books and ratings, each pair once."""
    where = Lines(str(path / INTERACTIONS))
    kinds = {"user_id": pa.int32(), "book_id": pa.int32(), "rating": pa.int32(), "is_reviewed": pa.int32()}
    log = _csv(path / INTERACTIONS, kinds)
    if not log.num_rows:
        raise InputError(f"{path / INTERACTIONS} has no rows; get the original file again.")
    for column, largest in (("rating", 5), ("is_reviewed", 1)):
        values = np.asarray(log[column])
        wrong = (values < 0) | (values > largest)
        if wrong.any():
            row = int(wrong.argmax())
            raise where.wrong(row + 2, f"{column} {values[row]} is not one of 0 to {largest}")
    user, book = np.asarray(log["user_id"]), np.asarray(log["book_id"])
    if first_duplicate(user, book) is not None:  # they could land in training and test
        pair = user.astype(np.int64) * (int(book.max()) + 1) + book
        first = np.sort(np.unique(pair, return_index=True)[1])
        notices.append(f"{len(pair) - len(first):,} lines repeat a user and book: the first line of each is kept.")
        log = log.take(pa.array(first))
    return log


def _mapped(
    path: Path, names: tuple[str, str], log: pa.Table, column: str, origin: Path
) -> tuple[pa.Array, Int[np.ndarray, " N"]]:
    """The ids of a map, and which of them every interaction has."""
    table = _csv(path, {names[0]: pa.int32(), names[1]: pa.string()})
    numbers, wanted = table[names[0]].combine_chunks(), log[column]
    if len(pc.unique(numbers)) < len(numbers) or len(pc.unique(table[names[1]])) < len(numbers):
        raise InputError(f"{path} has a number or an id twice; get the original file again.")
    rows = _rows(wanted, numbers)
    if (rows < 0).any():
        number = wanted[int((rows < 0).argmax())].as_py()
        in_file = np.asarray(_csv(origin, {column: pa.int32()})[column])  # where repeated lines are not left out
        line = int((in_file == number).argmax()) + 2
        raise InputError(f"{origin}, line {line}: {path.name} lacks {column} {number}; get both files again.")
    return table[names[1]].combine_chunks(), rows


def _rows(values: pa.Array | pa.ChunkedArray, keys: pa.Array | pa.ChunkedArray) -> Int[np.ndarray, " N"]:
    """Position of each value among the keys, -1 for none."""
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    return np.asarray(pc.fill_null(pc.index_in(values, keys), -1))


# --- JSON ---


def _books(path: Path) -> pa.Table:
    """Columns of every book, with its author's name, its genres and its work's media type."""
    books = _lines(path / BOOKS, "book_id", [*_BOOK_KEYS.values(), "author_id"], _book)
    others = (
        ("author", "author_id", _lines(path / AUTHORS, "author_id", ["author_id", "author"], _author)),
        ("genres", "book_id", _lines(path / GENRES, "book_id", ["book_id", "genres"], _genres)),
        ("media_type", "work_id", _lines(path / WORKS, "work_id", ["work_id", "media_type"], _work)),
    )
    for column, key, table in others:
        rows = _rows(books[key], table[key])
        books = books.append_column(column, table[column].take(pa.array(rows, mask=rows < 0)))
    return books


def _book(record: Record) -> list[object]:
    authors = record.get("authors") or [{}]
    return [*(record.get(key) for key in _BOOK_KEYS), authors[0].get("author_id")]


def _author(record: Record) -> list[object]:
    return [record["author_id"], record.get("name")]


def _genres(record: Record) -> list[object]:
    return [record["book_id"], "; ".join(sorted((record.get("genres") or {}).keys()))]


def _work(record: Record) -> list[object]:
    return [record["work_id"], record.get("media_type")]


def _lines(path: Path, key: str, columns: Sequence[str], pick: Callable[[Record], list[object]]) -> pa.Table:
    """One row of text a line; empty cells are missing. Lines are turned into Arrow chunk by chunk.

    Raises:
      InputError: The file is cut short or damaged, or a line is malformed; names file and line.
    """
    where = Lines(str(path))
    schema = pa.schema([(column, pa.string()) for column in columns])

    def rows() -> Iterator[list[str | None]]:
        for number, line in enumerate(_unzipped(path), start=1):
            try:
                record = json.loads(line)
                empty, cells = not record[key], pick(record)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise where.wrong(number, f"not a JSON object of the expected form ({reason})") from None
            if empty:
                raise where.wrong(number, f"{key} is empty")
            wrong = [column for column, cell in zip(columns, cells, strict=True) if not isinstance(cell, str | None)]
            if wrong:
                raise where.wrong(number, f"{wrong[0]} is not text")
            yield [str(cell) if cell else None for cell in cells]

    chunks: list[pa.RecordBatch] = []
    pending: list[list[str | None]] = []
    at = columns.index(key)
    for row in rows():
        pending.append(row)
        if len(pending) == _CHUNK:
            chunks.append(_chunk(pending, schema, where, len(chunks) * _CHUNK))
            if len({row[at] for row in pending}) < _CHUNK:  # said below; a file that repeats itself may be endless
                break
            pending = []
    else:
        chunks.append(_chunk(pending, schema, where, len(chunks) * _CHUNK))
    table = pa.Table.from_batches(chunks, schema)
    if not table.num_rows:
        raise InputError(f"{path} has no lines; get the original file again.")
    keys = table[key]
    if len(pc.unique(keys)) < len(keys):
        codes = np.asarray(keys.combine_chunks().dictionary_encode().indices)
        again = int(np.setdiff1d(np.arange(len(codes)), np.unique(codes, return_index=True)[1])[0])
        raise where.wrong(again + 1, f"{key} {keys[again].as_py()!r} is there for the second time")
    return table


def _chunk(rows: list[list[str | None]], schema: pa.Schema, where: Lines, before: int) -> pa.RecordBatch:
    cells = zip(*rows, strict=True) if rows else [()] * len(schema)
    try:
        return pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in cells], schema=schema)
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can say
        bad = next(n for n, row in enumerate(rows) if any(cell and not _is_text(cell) for cell in row))
        raise where.wrong(before + bad + 1, "half of a character") from None


def _is_text(cell: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in cell)


def _unzipped(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            for number in itertools.count(1):
                line = file.readline(_LONGEST)
                if len(line) == _LONGEST:
                    raise Lines(str(path)).wrong(number, f"longer than {_LONGEST:,} bytes")
                if not line:
                    return
                yield line
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}); get it again.") from None
