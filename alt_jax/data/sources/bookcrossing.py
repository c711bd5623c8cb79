r"""BookCrossing, from Ziegler's CSV dump (a zip, read in place, or its unpacked folder).

The files are Latin-1 and separated by `;`; quotes are escaped by a backslash (`"a \"b\""`), and a field may hold a line
break. HTML entities (`&#304;`, `&amp;`) are decoded; everything else stays as written.

Ratings run from 1 to 10; 0 is an implicit one: the user has the book and did not rate it. Ratings of 5 and more are
positive. Protocol `random` takes the implicit ones as negatives, `random_drop0` leaves them out. There are no times.

Missing are: an age of NULL, under 5 or over 100; a publication year of 0 or after 2005 (the dump was made in 2004); and
the columns of a user or book that a rating names but its table lacks, as for about a tenth of the ratings of the
original. Those ratings are kept; how many there are is said.
"""

import html
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Int

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data.declared import choose_fields
from alt_jax.data.published import ARCHIVES, BOOKCROSSING, raw_path
from alt_jax.data.sources.original import Lines, decode, first_duplicate, read_files, spread
from alt_jax.data.sources.raw import RawData
from alt_jax.data.table_files import require_columns
from alt_jax.errors import InputError

FIELDS, LINKED, SIDES = BOOKCROSSING
RATINGS, USERS, BOOKS = "BX-Book-Ratings.csv", "BX-Users.csv", "BX-Books.csv"
_COLUMNS = {
    RATINGS: {"User-ID": "user_id", "ISBN": "isbn", "Book-Rating": "rating"},
    USERS: {"User-ID": "user_id", "Location": "location", "Age": "age"},
    BOOKS: {
        **{"ISBN": "isbn", "Book-Title": "title", "Book-Author": "author", "Year-Of-Publication": "year"},
        "Publisher": "publisher",
    },
}
_ORIGINAL_ROWS = {RATINGS: 1_149_780, USERS: 278_858, BOOKS: 271_379}
_AGES, _YEARS = (5, 100), (1, 2005)
_CELL = r'(?:"(?:[^"\\]|\\.)*"|[^";\n]*)'
_GLUED = 100  # rows that are mended, one by one; the original has three
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|\w+);")  # without the `;` it is text, as in "R&D"


def load(config: DataConfig) -> RawData:
    """Reads BookCrossing.

    Raises:
      InputError: A file is missing or unreadable, or a line is malformed; names file and line.
    """
    fields = choose_fields(config, FIELDS)
    path = raw_path(config)
    assert path is not None
    return read(path, fields)


def read(path: Path, fields: tuple[FieldConfig, ...] = FIELDS) -> RawData:
    """Reads BookCrossing from its zip or folder.

    Raises:
      InputError: A file is missing or unreadable, or a line is malformed; names file and line.
    """
    notices: list[str] = []
    files = {
        name: _File(data, Lines(f"{path}/{name}"), notices)
        for name, data in read_files(path, ARCHIVES["bookcrossing"], (RATINGS, USERS, BOOKS)).items()
    }
    tables = {name: file.table() for name, file in files.items()}
    for name, table in tables.items():
        if table.num_rows != _ORIGINAL_ROWS[name]:
            notices.append(
                f"{path}/{name} has {table.num_rows:,} rows where the original has {_ORIGINAL_ROWS[name]:,}: it is not "
                "the original, accepted if well-formed."
            )
    ratings, users, books = (tables[name] for name in (RATINGS, USERS, BOOKS))
    rating = files[RATINGS].numbers(ratings["rating"], "rating")
    files[RATINGS].check(ratings["rating"], (rating >= 0) & (rating <= 10), "rating", "one of 0 to 10")
    age = files[USERS].numbers(users["age"], "age", missing="NULL")
    year = files[BOOKS].numbers(books["year"], "publication year")
    user_row = _rows(ratings["user_id"], files[USERS].keys(users["user_id"]))
    book_row = _rows(ratings["isbn"], files[BOOKS].keys(books["isbn"]))
    user, isbn = (pc.dictionary_encode(ratings[name]).combine_chunks() for name in ("user_id", "isbn"))
    if twice := first_duplicate(np.asarray(user.indices), np.asarray(isbn.indices)):
        raise files[RATINGS].wrong(twice[1], f"the same user and ISBN as on line {files[RATINGS].line(twice[0])}")

    for what, rows, table in (("user", user_row, USERS), ("ISBN", book_row, BOOKS)):
        if lost := int((rows < 0).sum()):
            notices.append(f"{lost:,} ratings have a {what} that {table} lacks: kept, its other columns are missing.")
    columns = {
        "user_id": user,
        "location": spread(_text(users["location"]), user_row),
        "age": spread(_within(age, _AGES, "ages", notices), user_row),
        "isbn": isbn,
        "title": spread(_text(books["title"]), book_row),
        "author": spread(_text(books["author"]), book_row),
        "year": spread(_within(year, _YEARS, "publication years", notices), book_row),
        "publisher": spread(_text(books["publisher"]), book_row),
        "rating": pa.array(rating.astype(np.float64)),
    }
    used = {f.column for f in fields}
    return RawData(
        source="bookcrossing",
        origin=str(path),
        table=pa.table(columns),
        fields=fields,
        label="rating",
        timestamp=None,
        timestamp_quality=None,
        user="user_id" if "user_id" in used else None,
        item="isbn" if "isbn" in used else None,
        linked=tuple(group for group in LINKED if used.issuperset(group)),
        notices=tuple(notices),
        positive_above=4.0,
    )


class _File:
    """One of the three files: its rows, and the line on which a row stands."""

    def __init__(self, data: bytes, where: Lines, notices: list[str]):
        self._name = where.file.rsplit("/", 1)[-1]
        self._where = where
        self._text = decode(data, where, notices).replace("\r\n", "\n")
        self._glued: list[str] = []
        header = self._text.split("\n", 1)[0]
        self._present = [name.strip().strip('"') for name in header.split(";")]
        require_columns(self._present, list(_COLUMNS[self._name]), where.file)

    def table(self) -> pa.Table:
        """The needed columns as strings."""
        table = self._parse()
        if self._mend():
            table = self._parse()
        if not table.num_rows:
            raise InputError(f"{self._where.file} has no rows; get the original file again.")
        names = _COLUMNS[self._name]
        require_columns(table.column_names, list(names), self._where.file)  # as Arrow reads the header's quotes
        return table.select(list(names)).rename_columns(list(names.values()))

    def _parse(self) -> pa.Table:
        try:
            return pa.csv.read_csv(
                pa.BufferReader(self._text.encode()),
                read_options=pa.csv.ReadOptions(use_threads=False),
                parse_options=pa.csv.ParseOptions(
                    delimiter=";",
                    quote_char='"',
                    double_quote=False,
                    escape_char="\\",
                    newlines_in_values=True,
                    ignore_empty_lines=False,
                    invalid_row_handler=self._collect,
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(self._present, pa.string()), strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._first_bad_row() or InputError(
                f"{self._where.file} cannot be read ({str(error).splitlines()[0]}); get the original file again."
            ) from None

    def _collect(self, row: pa.csv.InvalidRow) -> str:
        r"""Three books of the original have title and author in one cell, `"Title\";Author"`; `_mend` parts them."""
        glued = row.actual_columns == row.expected_columns - 1 and '\\";' in row.text
        if not glued or len(self._glued) == _GLUED:
            return "error"
        self._glued.append(row.text)
        return "skip"

    def _mend(self) -> bool:
        """Whether there was a row to mend."""
        for row in self._glued:
            self._text = self._text.replace(row, row.replace('\\";', '";"', 1), 1)
        glued, self._glued = self._glued, []
        return bool(glued)

    def _first_bad_row(self) -> InputError | None:
        """Finds the line to blame; a loop, which runs only when something is wrong."""
        self._mend()
        width = len(self._present)
        good = re.compile(rf"{_CELL}(?:;{_CELL}){{{width - 1}}}(?:\n|\Z)", re.DOTALL)
        position = 0
        while position < len(self._text):
            match = good.match(self._text, position)
            if match is None:
                line = self._text.count("\n", 0, position) + 1
                return self._where.wrong(line, f"not {width} columns between ';', or a quote that is not closed")
            position = match.end()
        return None

    def line(self, row: int) -> int:
        """Line of the file, from 1, on which a row, counted from 0 without the header, begins."""
        record = re.compile(rf"{_CELL}(?:;{_CELL})*(?:\n|\Z)", re.DOTALL)
        position = 0
        for _ in range(row + 1):
            match = record.match(self._text, position)
            position = position if match is None else match.end()
        return self._text.count("\n", 0, position) + 1

    def wrong(self, row: int, problem: str) -> InputError:
        """An error that names file and line."""
        return self._where.wrong(self.line(row), problem)

    def check(self, column: pa.ChunkedArray, good: np.ndarray, what: str, expected: str) -> None:
        """Refuses the first value that is not good."""
        if not good.all():
            row = int(np.argmin(good))
            raise self.wrong(row, f"{what} {column[row].as_py()!r} is not {expected}")

    def numbers(self, column: pa.ChunkedArray, what: str, missing: str | None = None) -> Int[np.ndarray, " N"]:
        """Whole numbers; 0 where the cell is `missing`."""
        given = column if missing is None else pc.if_else(pc.equal(column, missing), "0", column)
        good = np.asarray(pc.match_substring_regex(given, r"^\d{1,9}$"))
        self.check(column, good, what, "a whole number")
        return np.asarray(pc.cast(given, pa.int64()))

    def keys(self, column: pa.ChunkedArray) -> pa.Array:
        """Ids of a table, each of which stands there once and is not empty."""
        self.check(column, np.asarray(pc.not_equal(column, "")), "id", "an id")
        keys = column.combine_chunks()
        codes = np.asarray(pc.dictionary_encode(keys).indices)
        first = np.unique(codes, return_index=True)[1]
        if len(first) < len(codes):
            row = int(np.setdiff1d(np.arange(len(codes)), first)[0])
            raise self.wrong(row, f"id {keys[row].as_py()!r} is there for the second time")
        return keys


def _rows(column: pa.ChunkedArray, keys: pa.Array) -> Int[np.ndarray, " N"]:
    """Row of each id in its table, -1 where the table lacks it."""
    return np.asarray(pc.fill_null(pc.index_in(column, keys), -1))


def _text(column: pa.ChunkedArray) -> pa.Array:
    """Text with HTML entities decoded."""
    return pa.array([_ENTITY.sub(lambda found: html.unescape(found[0]), text) for text in column.to_pylist()])


def _within(numbers: Int[np.ndarray, " V"], bounds: tuple[int, int], what: str, notices: list[str]) -> pa.Array:
    """Numbers as text, missing outside the bounds; how many were given but are not believed is noted."""
    believed = (numbers >= bounds[0]) & (numbers <= bounds[1])
    if doubtful := int((~believed & (numbers != 0)).sum()):
        notices.append(f"{doubtful:,} {what} outside {bounds[0]} to {bounds[1]} are taken as missing.")
    return pc.cast(pa.array(numbers, mask=~believed), pa.string())
