"""GoodReads from the original formats, and the aggregates that look into the test part."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from goodreads_files import (
    AUTHORS,
    BOOK_MAP,
    BOOKS,
    GENRES,
    INTERACTIONS,
    USER_MAP,
    WORKS,
    Raw,
    made_genres,
    make_raw,
)

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import aggregates, protocols, sources
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.protocols import PROTOCOLS
from alt_jax.data.sources import goodreads
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError


def load(path: Path, **options: object) -> RawData:
    return sources.load(DataConfig(source="goodreads", raw=str(path), **options))


def expected_row(made: Raw, user: int, book: int) -> dict[str, str | None]:
    """A row's columns by hand."""
    record = made.books[book]
    author = record["authors"][0]["author_id"] if record["authors"] else ""
    work = record["work_id"]
    values = {
        "user_id": made.users[user],
        "book_id": record["book_id"],
        "title": record["title"],
        "genres": "; ".join(sorted(made_genres(book))),
        "average_rating": record["average_rating"],
        "reviews": record["text_reviews_count"],
        "author_id": author,
        "author": f"Änne {int(author) - 70}" if author else "",
        "pages": record["num_pages"],
        "is_ebook": record["is_ebook"],
        "format": record["format"],
        "publisher": record["publisher"],
        "year": record["publication_year"],
        "work_id": work,
        "media_type": "book" if work and int(work) % 2 else "",
    }
    return {column: value or None for column, value in values.items()}


def test_every_row_is_what_the_files_say(tmp_path: Path):
    made = make_raw()
    raw = load(made.folder(tmp_path / "gr"))
    columns = [f.column for f in goodreads.FIELDS]
    assert len(columns) == 15
    rows = raw.table.select(columns).to_pylist()
    assert rows == [expected_row(made, user, book) for user, book, *_ in made.log]
    assert raw.table["rating"].to_pylist() == [float(row[3]) for row in made.log]
    assert (raw.user, raw.item, raw.timestamp) == ("user_id", "book_id", None)
    assert raw.linked == (("book_id", "work_id", "title"), ("author_id", "author"))
    assert any("400 rows where the original has 228,648,342: it is not the original" in n for n in raw.notices)


def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_raw().folder(tmp_path / "gr")
    whole = load(folder).table
    monkeypatch.setattr(goodreads, "_CHUNK", 5)
    assert load(folder).table.equals(whole)


def test_books_that_are_missing_are_kept_and_counted(tmp_path: Path):
    made = make_raw()
    lines = made.text[BOOKS].split("\n")
    gone = json.loads(lines.pop(3))["book_id"]
    made.text[BOOKS] = "\n".join(lines)
    raw = load(made.folder(tmp_path / "gr"))
    lost = [n for n, row in enumerate(made.log) if str(5000 + row[1]) == gone]
    assert raw.table["title"].null_count == raw.table["pages"].take(lost).null_count == len(lost) > 0
    assert raw.table["book_id"].take(lost).unique().to_pylist() == [gone]
    assert any(f"{len(lost)} ratings have a book that {BOOKS} lacks" in notice for notice in raw.notices)


def test_repeated_pairs_are_counted_and_the_first_line_is_kept(tmp_path: Path):
    made = make_raw()
    made.text[INTERACTIONS] += "".join(f"{u},{b},1,{(r + 1) % 6},1\n" for u, b, _, r, _ in made.log[:2])
    raw = load(made.folder(tmp_path / "gr"))
    assert raw.table["rating"].to_pylist() == [float(row[3]) for row in made.log]
    assert any("2 lines repeat a user and book" in notice for notice in raw.notices)


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        (INTERACTIONS, "1,2,1,4", "line 7: 4 columns where 5 are expected"),
        (INTERACTIONS, "1,x,1,4,0", "line 7: book_id 'x' is not a whole number"),
        (INTERACTIONS, "1,2,1,4.5,0", "line 7: rating '4.5' is not a whole number"),
        (INTERACTIONS, "1,2,1,6,0", "line 7: rating 6 is not one of 0 to 5"),
        (INTERACTIONS, "1,2,1,5,2", "line 7: is_reviewed 2 is not one of 0 to 1"),
        (BOOK_MAP, "x,5000", "line 7: book_id_csv 'x' is not a whole number"),
        (BOOKS, "{", "line 7: not a JSON object of the expected form"),
        (BOOKS, "[]", "line 7: not a JSON object of the expected form"),
        (BOOKS, '{"title": "x"}', "line 7: not a JSON object of the expected form .no 'book_id'"),
        (BOOKS, '{"book_id": ""}', "line 7: book_id is empty"),
        (BOOKS, '{"book_id": "1", "num_pages": 7}', "line 7: pages is not text"),
        (BOOKS, '{"book_id": "1", "authors": {"a": 1}}', "line 7: not a JSON object"),
        (BOOKS, '{"book_id": "5023"}', "line 7: book_id '5023' is there for the second time"),
        (GENRES, '{"book_id": "5023", "genres": ["a"]}', "line 7: not a JSON object"),
        (AUTHORS, "", "line 4: not a JSON object"),
        (WORKS, '{"work_id": 3}', "line 7: work_id is not text"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, name: str, line: str, problem: str):
    made = make_raw()
    made.replace_line(name, 4 if name == AUTHORS else 7, line)
    with pytest.raises(InputError, match=f"{name}, {problem}") as refused:
        load(made.folder(tmp_path / "gr"))
    assert str(refused.value).count("get the original file again") == 1


def test_missing_and_damaged_files(tmp_path: Path):
    made = make_raw()
    with pytest.raises(InputError, match=r"needs data\.raw"):
        sources.load(DataConfig(source="goodreads"))
    with pytest.raises(InputError, match="is not a folder"):
        load(tmp_path / "nowhere.zip")
    folder = made.folder(tmp_path / "gr")
    whole = (folder / BOOKS).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"\0" * 40 + whole[140:], b"plain"):
        (folder / BOOKS).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{BOOKS}(, line \d+: not a JSON| is not a whole gzip file)"):
            load(folder)
    (folder / BOOKS).write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match=f"{BOOKS} has no lines"):
        load(folder)
    (folder / USER_MAP).write_text("user_id_csv,user_id\n0,abc\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"{INTERACTIONS}, line \d+: user_id_map.csv lacks user_id \d+; get both"):
        load(folder)
    (folder / USER_MAP).write_text("user_id,user\n0,abc\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"{USER_MAP} has no column 'user_id_csv'"):
        load(folder)
    (folder / WORKS).unlink()
    with pytest.raises(InputError, match=f"holds no {WORKS}"):
        load(folder)


def test_an_unknown_number_is_on_the_line_that_is_named(tmp_path: Path):
    """Also where lines before it repeat others, and are left out."""
    made = make_raw()
    lines = made.text[INTERACTIONS].rstrip("\n").split("\n")
    lines[5:5] = lines[1:4]
    lines.insert(9, "777,3,1,4,0")
    made.text[INTERACTIONS] = "\n".join(lines) + "\n"
    with pytest.raises(InputError, match=rf"{INTERACTIONS}, line 10: {USER_MAP} lacks user_id 777; get both files"):
        load(made.folder(tmp_path / "gr"))


# --- aggregates ---


def prepared(made: Raw, tmp_path: Path, protocol: str, **options: object) -> Dataset:
    folder = tmp_path / "gr" if (tmp_path / "gr").is_dir() else made.folder(tmp_path / "gr")
    data = DataConfig(source="goodreads", raw=str(folder), dir=str(tmp_path / protocol), protocol=protocol, **options)
    return prepare(Config(data=data, text=TextConfig(vocab_size=400, max_length=200)))


def spelled(dataset: Dataset, column: str) -> dict[int, str]:
    """What every raw row has in a column."""
    index = [f.column for f in dataset.schema.fields].index(column)
    values = dataset.vocabulary().value
    parts = [dataset.split(name) for name in protocols.SPLITS]
    return {int(row): values[v] for part in parts for row, v in zip(part.rows, part.values[:, index], strict=True)}


@pytest.mark.parametrize("protocol", ["random", "random_drop0", "cold_items", "cold_users"])
def test_aggregates_are_those_of_half_of_training(tmp_path: Path, protocol: str):
    made = make_raw()
    dataset = prepared(made, tmp_path, protocol)
    train = set(dataset.train.rows.tolist())
    averages, reviews = spelled(dataset, "average_rating"), spelled(dataset, "reviews")
    counted = set(dataset.train.rows[protocols.mix(dataset.train.rows, 1) < 2**63].tolist())
    assert 0.4 < len(counted) / len(train) < 0.6
    missing = 0
    for row, found in averages.items():
        others = [made.log[r] for r in counted if made.log[r][1] == made.log[row][1] and row not in counted]
        ratings = [rating for *_, rating, _ in others if rating > 0]
        published = f"{sum(ratings) / len(ratings):.1f}" if ratings else ""  # of which 3.0 is spelled 3
        assert found == published.removesuffix(".0")
        assert reviews[row] == (str(sum(r[4] for r in others)) if others else "")
        missing += row not in train and not ratings
    assert missing == (len(dataset.test.rows) + len(dataset.valid.rows) if protocol == "cold_items" else 0)
    assert len(dataset.schema.fields) == 15


def test_labels_of_the_test_part_move_no_aggregate(tmp_path: Path):
    made = make_raw()
    raw = load(made.folder(tmp_path / "a"))
    split = protocols.apply(PROTOCOLS["random"], raw)
    held_out = np.concatenate([split.rows["valid"], split.rows["test"]]).tolist()
    for row in held_out:
        user, book, _, rating, reviewed = made.log[row]
        made.replace_line(INTERACTIONS, row + 2, f"{user},{book},1,{5 - rating},{1 - reviewed}")
    other = load(made.folder(tmp_path / "b"))
    assert other.table["rating"] != raw.table["rating"]
    for column in ("average_rating", "reviews"):
        first, second = (aggregates.resolve(PROTOCOLS["random"], each, split).table[column] for each in (raw, other))
        assert first.to_pylist() == second.to_pylist()


def test_aggregates_left_out_or_as_published(tmp_path: Path):
    made = make_raw()
    out = prepared(made, tmp_path, "random_drop0_no_aggregates")
    assert len(out.schema.fields) == 13
    assert not {"average_rating", "reviews"} & {f.column for f in out.schema.fields}
    with pytest.raises(InputError, match=r"leaves out published .* names 'reviews'; .* or use 'random_drop0'"):
        prepared(made, tmp_path, "random_drop0_no_aggregates", fields=(FieldConfig("user_id"), FieldConfig("reviews")))
    given = prepared(made, tmp_path, "random_drop0_all_time")
    again = prepared(made, tmp_path, "random_drop0")
    for row, found in spelled(given, "average_rating").items():
        assert found == made.books[made.log[row][1]]["average_rating"].rstrip("0").rstrip(".")
    hashes = [[d.schema.splits[name].hash for name in protocols.SPLITS] for d in (out, given, again)]
    assert hashes[0] == hashes[1] == hashes[2]  # the same rows in all three


def test_genres_as_a_list_and_numbers_as_numbers(tmp_path: Path):
    fields = (
        FieldConfig("user_id"),
        FieldConfig("book_id"),
        FieldConfig("genres", kind="multi", separator=";", slots=10),
        FieldConfig("average_rating", kind="numeric", bins=4),
    )
    made = make_raw()
    dataset = prepared(made, tmp_path, "random_drop0", fields=fields)
    vocabulary = dataset.vocabulary()
    genres = {v for f, v in zip(vocabulary.field, vocabulary.value, strict=True) if f == 2}
    assert genres == {"poetry", "fantasy, paranormal", "children", ""}
    assert dataset.schema.fields[3].numeric is not None
