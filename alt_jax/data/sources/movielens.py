"""MovieLens 100K and 1M, from GroupLens' original zip (read in place) or its unpacked folder.

The files have no quoting, so a title may begin with a quote: lines are split by hand, never by a CSV reader's default
rules, which would merge lines there. Whether the files are the originals is only reported; whether their content is
well-formed is what decides.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data.declared import choose_fields
from alt_jax.data.download import Archive, fetch
from alt_jax.data.published import ARCHIVES, MOVIELENS, raw_path
from alt_jax.data.sources.original import Lines, decode, first_duplicate, read_files, spread
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError

FIELDS, LINKED, SIDES = MOVIELENS
_QUALITY_FILE = "ts_quality.u8"
_GENDERS = {"F": "female", "M": "male"}
# README of ML-1M: what the codes of users.dat mean.
_AGES = {
    **{"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55"},
    "56": "56+",
}
_OCCUPATIONS = (
    *("other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service"),
    *("doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer"),
    *("retired", "sales/marketing", "scientist", "self-employed", "technician/engineer", "tradesman/craftsman"),
    *("unemployed", "writer"),
)
# README and u.genre of ML-100K: the meaning of the last 19 columns of u.item.
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)

Entries = dict[str, list[str]]
_Parser = Callable[[list[str], "Lines"], Entries]


@dataclass(frozen=True)
class Release:
    """One MovieLens release.

    Attributes:
      folder: Name of the folder in the zip.
      archive: The original zip.
      ratings, users, movies: Names of its three tables.
      sizes: Sizes of those files in the original, in bytes.
      rows: Ratings in the original.
      separator: Between the columns of the ratings.
    """

    folder: str
    archive: Archive
    ratings: str
    users: str
    movies: str
    sizes: tuple[int, int, int]
    rows: int
    separator: str


RELEASES = {
    "movielens_100k": Release(
        folder=ARCHIVES["movielens_100k"],
        archive=Archive(
            name="ml-100k.zip",
            url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            bytes=4924029,
            sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ),
        ratings="u.data",
        users="u.user",
        movies="u.item",
        sizes=(1979173, 22628, 236344),
        rows=100_000,
        separator="\t",
    ),
    "movielens_1m": Release(
        folder=ARCHIVES["movielens_1m"],
        archive=Archive(
            name="ml-1m.zip",
            url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            bytes=5917549,
            sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ),
        ratings="ratings.dat",
        users="users.dat",
        movies="movies.dat",
        sizes=(24594131, 134368, 171308),
        rows=1_000_209,
        separator="::",
    ),
}


def load(config: DataConfig) -> RawData:
    """Reads one MovieLens release, named by `config.source`.

    Raises:
      InputError: A file is missing or unreadable, or a line is malformed; names file and line.
    """
    release = RELEASES[config.source]
    fields = choose_fields(config, FIELDS)
    return read(config.source, release, raw_path(config) or fetch(release.archive), fields)


def read(source: str, release: Release, path: Path, fields: tuple[FieldConfig, ...] = FIELDS) -> RawData:
    """Reads a release from its zip or folder.

    Raises:
      InputError: A file is missing or unreadable, or a line is malformed; names file and line.
    """
    files, notices = _read_files(release, path)
    where = {name: Lines(f"{path}/{name}") for name in files}
    parse_users, parse_movies = (_users_100k, _movies_100k) if source == "movielens_100k" else (_users_1m, _movies_1m)
    users = _parse(files[release.users], where[release.users], parse_users, notices)
    movies = _parse(files[release.movies], where[release.movies], parse_movies, notices)
    ratings = _ratings(files[release.ratings], release.separator, where[release.ratings])
    user_row = _look_up(ratings[0], users["user_id"], "user", release.users, where[release.ratings])
    movie_row = _look_up(ratings[1], movies["movie_id"], "movie", release.movies, where[release.ratings])
    if twice := first_duplicate(user_row, movie_row):
        raise where[release.ratings].wrong(twice[1] + 1, f"the same user and movie as on line {twice[0] + 1}")
    rows = len(user_row)
    if rows != release.rows:
        notices.append(f"{path} has {rows:,} ratings where the original has {release.rows:,}.")
    if "u.info" in files:
        _check_info(files["u.info"], (len(users["user_id"]), len(movies["movie_id"]), rows), where["u.info"])

    columns: dict[str, pa.Array] = {name: spread(values, user_row) for name, values in users.items()}
    columns |= {name: spread(values, movie_row) for name, values in movies.items()}
    columns["rating"] = pa.array(ratings[2].astype(np.float64))
    columns["timestamp"] = pa.array(ratings[3])
    quality = files.get(_QUALITY_FILE)
    if quality is not None:
        columns["timestamp_quality"] = _quality(quality, rows, where[_QUALITY_FILE])
    used = {f.column for f in fields}
    return RawData(
        source=source,
        origin=str(path),
        table=pa.table(columns),
        fields=fields,
        label="rating",
        timestamp="timestamp",
        timestamp_quality=None if quality is None else "timestamp_quality",
        user="user_id" if "user_id" in used else None,
        item="movie_id" if "movie_id" in used else None,
        linked=tuple(group for group in LINKED if used.issuperset(group)),
        notices=tuple(notices),
    )


def _read_files(release: Release, path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Bytes of a release's files by name, and notices where they are not the originals."""
    needed = (release.ratings, release.users, release.movies)
    files = read_files(path, release.folder, needed, ("u.info", _QUALITY_FILE))
    if path.is_dir():
        notices = [
            f"{path}/{name} has {len(files[name]):,} bytes where the original has {size:,}: accepted if well-formed."
            for name, size in zip(needed, release.sizes, strict=True)
            if len(files[name]) != size
        ]
    elif release.archive.is_original(path):
        notices = []
    else:
        notices = [f"{path} is not the original by its SHA-256: accepted if well-formed."]
    return files, notices


def _parse(data: bytes, where: Lines, parser: _Parser, notices: list[str]) -> Entries:
    """Lines to columns; the first column is the key and must be unique."""
    lines = decode(data, where, notices).split("\n")
    if lines[-1] == "":
        lines.pop()
    entries = parser([line.removesuffix("\r") for line in lines], where)
    keys = next(iter(entries.values()))
    if not keys:
        raise InputError(f"{where.file} is empty; get the original file again.")
    first: dict[str, int] = {}
    for number, key in enumerate(keys, start=1):
        if not (key.isascii() and key.isdigit() and len(key) < 10 and key == str(int(key))):
            raise where.wrong(number, f"{key!r} is not an id")
        if key in first:
            raise where.wrong(number, f"id {key} is also on line {first[key]}")
        first[key] = number
    return entries


def _split(lines: list[str], separator: str, width: int, where: Lines) -> list[list[str]]:
    rows = [line.split(separator) for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise where.wrong(number, f"{len(row)} columns between {separator!r} where {width} are expected")
    return rows


def _decode(codes: list[str], meaning: Mapping[str, str], what: str, where: Lines) -> list[str]:
    for number, code in enumerate(codes, start=1):
        if code not in meaning:
            raise where.wrong(number, f"unknown {what} {code!r}, expected one of {', '.join(meaning)}")
    return [meaning[code] for code in codes]


def _users_100k(lines: list[str], where: Lines) -> Entries:
    rows = _split(lines, "|", 5, where)
    for number, row in enumerate(rows, start=1):
        if not row[1].isdecimal():
            raise where.wrong(number, f"age {row[1]!r} is not a number")
    return {
        "user_id": [row[0] for row in rows],
        "gender": _decode([row[2] for row in rows], _GENDERS, "gender", where),
        "age": [row[1] for row in rows],
        "occupation": [row[3] for row in rows],
        "zipcode": [row[4] for row in rows],
    }


def _users_1m(lines: list[str], where: Lines) -> Entries:
    rows = _split(lines, "::", 5, where)
    occupations = {str(code): meaning for code, meaning in enumerate(_OCCUPATIONS)}
    return {
        "user_id": [row[0] for row in rows],
        "gender": _decode([row[1] for row in rows], _GENDERS, "gender", where),
        "age": _decode([row[2] for row in rows], _AGES, "age", where),
        "occupation": _decode([row[3] for row in rows], occupations, "occupation", where),
        "zipcode": [row[4] for row in rows],
    }


def _movies_100k(lines: list[str], where: Lines) -> Entries:
    rows = _split(lines, "|", 5 + len(_GENRES), where)
    genres = []
    for number, row in enumerate(rows, start=1):
        flags = row[5:]
        if not set(flags) <= {"0", "1"}:
            raise where.wrong(number, "a genre flag is neither 0 nor 1")
        genres.append(", ".join(name for name, flag in zip(_GENRES, flags, strict=True) if flag == "1"))
    return {"movie_id": [row[0] for row in rows], "title": [row[1] for row in rows], "genre": genres}


def _movies_1m(lines: list[str], where: Lines) -> Entries:
    rows = _split(lines, "::", 3, where)
    return {
        "movie_id": [row[0] for row in rows],
        "title": [row[1] for row in rows],
        "genre": [row[2].replace("|", ", ") for row in rows],
    }


def _ratings(data: bytes, separator: str, where: Lines) -> np.ndarray:
    """Columns user, movie, rating and timestamp as int64[4, N], checked line by line only when the fast way fails."""
    if not data.strip():
        raise InputError(f"{where.file} is empty; get the original file again.")
    rows = data.count(b"\n") + (not data.endswith(b"\n"))
    plain = data if separator == "\t" else data.replace(separator.encode(), b"\t")
    if data.count(separator.encode()) != 3 * rows or plain.count(b"\t") != 3 * rows:
        raise _first_bad_rating(data, separator, where)
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(plain),
            read_options=pa.csv.ReadOptions(column_names=["user", "movie", "rating", "timestamp"]),
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(["user", "movie", "rating", "timestamp"], pa.int64()),
                null_values=[],
            ),
        )
    except pa.ArrowInvalid:
        raise _first_bad_rating(data, separator, where) from None
    columns = np.stack([column.to_numpy() for column in table.columns])
    wrong = (columns[2] < 1) | (columns[2] > 5) | (columns[3] < 0)
    if wrong.any() or columns.shape[1] != rows:
        raise _first_bad_rating(data, separator, where)
    return columns


def _first_bad_rating(data: bytes, separator: str, where: Lines) -> InputError:
    """Finds the line to blame; a loop, which runs only when something is wrong."""
    good = re.compile(separator.join([r"\d{1,9}", r"\d{1,9}", r"[1-5]", r"\d{1,18}"]))
    lines = data.decode("latin-1").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        row = line.removesuffix("\r").split(separator)
        if len(row) != 4:
            return where.wrong(number, f"{len(row)} columns between {separator!r} where 4 are expected")
        if re.fullmatch(r"[1-5]", row[2]) is None:
            return where.wrong(number, f"rating {row[2]!r} is not one of 1, 2, 3, 4, 5")
        if good.fullmatch(separator.join(row)) is None:
            return where.wrong(number, f"{separator.join(row)!r} is not user, movie, rating and time in whole numbers")
    return InputError(f"{where.file} cannot be read as ratings; get the original file again.")


def _look_up(ids: np.ndarray, known: list[str], what: str, file: str, where: Lines) -> np.ndarray:
    """Row of each id in its table."""
    numbers = np.array([int(key) for key in known], np.int64)
    order = np.argsort(numbers)
    position = np.minimum(np.searchsorted(numbers, ids, sorter=order), len(order) - 1)
    rows = order[position]
    missing = numbers[rows] != ids
    if missing.any():
        first = int(missing.argmax())
        raise where.wrong(first + 1, f"{what} {ids[first]} is not in {file}")
    return rows


def _quality(data: bytes, rows: int, where: Lines) -> pa.Array:
    grades = np.frombuffer(data, np.uint8)
    if len(grades) != rows or grades.max(initial=0) > 2:
        raise InputError(
            f"{where.file} must hold one byte 0, 1 or 2 per rating ({rows:,}), but does not; get it again."
        )
    return pa.array(grades)


def _check_info(data: bytes, counts: tuple[int, int, int], where: Lines) -> None:
    """u.info of ML-100K states how many users, items and ratings there are."""
    for name, count in zip(("users", "items", "ratings"), counts, strict=True):
        stated = re.search(rf"(\d{{1,18}}) {name}", data.decode("latin-1"))
        if stated and int(stated[1]) != count:
            raise InputError(
                f"{where.file} states {stated[1]} {name}, but there are {count}; a file was cut short: get it again."
            )
