"""BookCrossing from the original format: content, and one clear sentence for whatever is wrong with it."""

import html
import os
import re
from pathlib import Path

import pytest
from bookcrossing_files import BOOKS, BOOKS_MADE, RATINGS, USERS, make_raw, quoted
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import protocols, sources
from alt_jax.data.prepare import prepare
from alt_jax.data.protocols import PROTOCOLS
from alt_jax.data.sources import bookcrossing
from alt_jax.data.sources.original import Lines
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError


def load(path: Path, **options: object) -> RawData:
    return sources.load(DataConfig(source="bookcrossing", raw=str(path), **options))


def slow_rows(text: str) -> list[list[str]]:
    """The format, character by character: rows of cells, the header first."""
    rows: list[list[str]] = [[""]]
    inside = escaped = False
    for character in text:
        if escaped:
            rows[-1][-1] += character
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
        elif character == ";" and not inside:
            rows[-1].append("")
        elif character == "\n" and not inside:
            rows.append([""])
        else:
            rows[-1][-1] += character
    return rows[:-1] if rows[-1] == [""] else rows


def expected_columns(rows: dict[str, list[list[str]]]) -> dict[str, list[str | None]]:
    """What the reader must make of the rows, by hand."""
    users, books = ({row[0]: row for row in rows[name]} for name in (USERS, BOOKS))
    columns: dict[str, list[str | None]] = {f.column: [] for f in bookcrossing.FIELDS}
    for user_id, isbn, _ in rows[RATINGS]:
        _, location, age = users.get(user_id, [None] * 3)
        _, title, author, year, publisher = books.get(isbn, [None] * 5)[:5]
        values = [user_id, location, None, isbn, title, author, None, publisher]
        if age not in (None, "NULL") and 5 <= int(age) <= 100:
            values[2] = age
        if year is not None and 1 <= int(year) <= 2005:
            values[6] = year
        for column, value in zip(columns, values, strict=True):
            columns[column].append(value)
    for column in ("location", "title", "author", "publisher"):
        columns[column] = [
            v if v is None else re.sub("&#?[0-9A-Za-z]+;", lambda m: html.unescape(m[0]), v) for v in columns[column]
        ]
    return columns


def test_zip_and_folder_give_what_the_slow_reader_gives(tmp_path: Path):
    made = make_raw()
    a, b = load(made.zip(tmp_path / "a.zip")), load(made.folder(tmp_path / "b"))
    assert a.table.equals(b.table)
    read = {name: slow_rows(made.files[name].decode("latin-1").replace("\r\n", "\n"))[1:] for name in made.files}
    assert read == made.rows
    for column, values in expected_columns(made.rows).items():
        assert a.table[column].to_pylist() == values, column
    assert a.table["rating"].to_pylist() == [float(row[2]) for row in made.rows[RATINGS]]
    assert {"R&D &notes", 'Both "x"; y', "Two\nlines", "Größe"} <= set(a.table["title"].to_pylist())
    assert "İzmir, turkey" in a.table["location"].to_pylist()
    assert (a.user, a.item, a.timestamp, a.linked) == ("user_id", "isbn", None, (("isbn", "title"),))
    notices = " ".join(a.notices)
    assert "BX-Book-Ratings.csv has 400 rows where the original has 1,149,780: it is not the original" in notices
    assert "ages outside 5 to 100 are taken as missing" in notices
    assert "publication years outside 1 to 2005 are taken as missing" in notices


CELL = st.text(st.sampled_from('ab";\\\n&é'), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_any_cell_survives(cells):
    rows = [[str(n), a, "30"] for n, (a, b) in enumerate(cells)] + [["x", cells[0][1], "NULL"]]
    text = "\n".join(['"User-ID";"Location";"Age"', *(";".join(map(quoted, row)) for row in rows)]) + "\n"
    file = bookcrossing._File(text.encode("latin-1"), Lines("f/BX-Users.csv"), [])
    found = file.table()
    assert [list(row.values()) for row in found.to_pylist()] == rows == slow_rows(text)[1:]
    for number in range(len(rows)):
        before = text.split("\n")[: file.line(number) - 1]
        assert len(slow_rows("\n".join(before) + "\n")) == number + 1


def test_ratings_of_unknown_books_and_users_are_kept_and_counted(tmp_path: Path):
    made = make_raw()
    made.replace_line(RATINGS, 2, '"7777";"0000000000";"3"')
    made.replace_line(RATINGS, 3, '"1";"nowhere";"9"')
    made.rows[RATINGS][:2] = [["7777", "0000000000", "3"], ["1", "nowhere", "9"]]
    raw = load(made.zip(tmp_path / "a.zip"))
    for column, values in expected_columns(made.rows).items():
        assert raw.table[column].to_pylist() == values, column
    assert f"1 ratings have a user that {USERS} lacks: kept, its other columns are missing." in raw.notices
    assert f"1 ratings have a ISBN that {BOOKS} lacks: kept, its other columns are missing." in raw.notices


def test_title_and_author_in_one_cell_are_taken_apart(tmp_path: Path):
    made = make_raw()
    line = made.files[BOOKS].decode("latin-1").split("\n")[1]
    made.replace_line(BOOKS, 2, line.replace('"Plain";"Author 0"', '"Plain (Level 4)\\";Author 0"'))
    assert made.files[BOOKS].count(b"Level 4") == 1
    made.rows[BOOKS][0][1] = "Plain (Level 4)"
    raw = load(made.zip(tmp_path / "a.zip"))
    for column, values in expected_columns(made.rows).items():
        assert raw.table[column].to_pylist() == values, column


def test_utf8_copies_are_read_as_utf8(tmp_path: Path):
    made = make_raw()
    plain = load(made.zip(tmp_path / "a.zip")).table
    made.files[BOOKS] = made.files[BOOKS].decode("latin-1").encode()
    raw = load(made.zip(tmp_path / "b.zip"))
    assert raw.table.equals(plain)
    assert any("UTF-8" in notice for notice in raw.notices)


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        (RATINGS, '"1";"x"', "line 7: not 3 columns between"),
        (RATINGS, '"1";"x";"3";"4"', "line 7: not 3 columns between"),
        (RATINGS, "", "line 7: rating '' is not a whole number"),
        (RATINGS, '"1";"x";"3', "line 7: not 3 columns between ';', or a quote that is not closed"),
        (RATINGS, '"1";"x";"11"', "line 7: rating '11' is not one of 0 to 10"),
        (RATINGS, '"1";"x";"-1"', "line 7: rating '-1' is not a whole number"),
        (RATINGS, '"1";"x";"7.5"', "line 7: rating '7.5' is not a whole number"),
        (RATINGS, '"1";"x";""', "line 7: rating '' is not a whole number"),
        (USERS, '"8";"x";"old"', "line 7: age 'old' is not a whole number"),
        (USERS, '"1";"x";"30"', "line 7: id '1' is there for the second time"),
        (USERS, '"";"x";"30"', "line 7: id '' is not an id"),
        (BOOKS, '"12";"T";"A";"DK";"P";"";"";""', "line 7: publication year 'DK' is not a whole number"),
        (BOOKS, '"12";"T";"A";"1999";"P"', "line 7: not 8 columns"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, name: str, line: str, problem: str):
    made = make_raw()
    if name == USERS:
        made.files[name] = made.files[name].replace(b"\r\n", b"\n").replace(b"milano\n", b"milano ")
    made.replace_line(name, 7, line)
    with pytest.raises(InputError, match=f"{name}, {problem}"):
        load(made.zip(tmp_path / "a.zip"))


def test_lines_are_those_of_the_file_where_fields_hold_line_breaks(tmp_path: Path):
    made = make_raw()
    number = made.files[USERS].split(b"\r\n").index(b'"40";"tyne&wear";"244"') + 1
    made.files[USERS] = made.files[USERS].replace(b'"40";"tyne&wear";"244"', b'"40";"tyne&wear";"x"')
    broken = made.files[USERS].count(b"milano\n")
    assert broken > 3
    with pytest.raises(InputError, match=f"{USERS}, line {number + broken}: age 'x'"):
        load(made.zip(tmp_path / "a.zip"))


def test_a_pair_rated_twice_is_refused(tmp_path: Path):
    made = make_raw()
    made.replace_line(RATINGS, 9, made.files[RATINGS].decode("latin-1").split("\n")[3])
    with pytest.raises(InputError, match="line 9: the same user and ISBN as on line 4"):
        load(made.zip(tmp_path / "a.zip"))


def test_missing_and_damaged_files(tmp_path: Path):
    made = make_raw()
    with pytest.raises(InputError, match=r"needs data\.raw"):
        sources.load(DataConfig(source="bookcrossing"))
    with pytest.raises(InputError, match=r"does not exist; set --data\.raw to BX-CSV-Dump\.zip"):
        load(tmp_path / "nowhere.zip")
    whole = made.zip(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a whole zip file"):
        load(tmp_path / "cut.zip")
    made.files[USERS] = b'"User-ID";"Location";"Age"\n'
    with pytest.raises(InputError, match=f"{USERS} has no rows"):
        load(made.zip(tmp_path / "rows.zip"))
    made.files[USERS] = b'"User-ID";"Location";"Years"\n"1";"x";"2"\n'
    with pytest.raises(InputError, match=f"{USERS} has no column 'Age'"):
        load(made.zip(tmp_path / "header.zip"))
    del made.files[BOOKS]
    with pytest.raises(InputError, match=f"holds no {BOOKS}"):
        load(made.zip(tmp_path / "member.zip"))


@pytest.mark.parametrize("protocol", ["random", "random_drop0", "cold_items", "cold_users"])
def test_protocols_that_fit(tmp_path: Path, protocol: str):
    made = make_raw()
    data = DataConfig(
        source="bookcrossing", raw=str(made.zip(tmp_path / "a.zip")), dir=str(tmp_path / "out"), protocol=protocol
    )
    dataset = prepare(Config(data=data, text=TextConfig(vocab_size=300)))
    ratings = [int(row[2]) for row in made.rows[RATINGS]]
    rows = [row for name in protocols.SPLITS for row in dataset.split(name).rows.tolist()]
    assert sorted(rows) == [n for n, r in enumerate(ratings) if r > 0 or protocol != "random_drop0"]
    labels = [label for name in protocols.SPLITS for label in dataset.split(name).labels.tolist()]
    assert labels == [int(ratings[row] >= 5) for row in rows]


@pytest.mark.parametrize("protocol", ["time", "time_skip5", "time_drop3"])
def test_protocols_in_order_of_time_are_refused(tmp_path: Path, protocol: str):
    with pytest.raises(InputError, match=f"'{protocol}' sorts by time, but .* has no timestamps; use 'random'"):
        protocols.apply(PROTOCOLS[protocol], load(make_raw().zip(tmp_path / "a.zip")))


def test_fields_may_be_chosen(tmp_path: Path):
    path = make_raw().zip(tmp_path / "a.zip")
    raw = load(path, fields=(FieldConfig("title"), FieldConfig("age", kind="numeric")))
    assert [f.name for f in raw.fields] == ["Book title", "Age"]
    assert (raw.user, raw.item, raw.linked) == (None, None, ())
    with pytest.raises(InputError, match="no field 'titel'; did you mean 'title'"):
        load(path, fields=(FieldConfig("titel"),))


@pytest.mark.slow
def test_real_data():
    beside = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("ALT_JAX_BOOKCROSSING", beside)) / "bookcrossing.zip"
    if not path.is_file():
        pytest.skip("no bookcrossing.zip: set ALT_JAX_BOOKCROSSING to the folder that holds it")
    files = bookcrossing.read_files(path, "", (RATINGS, USERS, BOOKS))
    rows = {name: slow_rows(data.decode("latin-1").replace("\r\n", "\n"))[1:] for name, data in files.items()}
    table = load(path).table
    for column, values in expected_columns(rows).items():
        assert table[column].to_pylist() == values, column
    assert table["rating"].to_pylist() == [float(row[2]) for row in rows[RATINGS]]


def test_the_fixture_has_every_book():
    assert len({row[1] for row in make_raw().rows[RATINGS]}) == BOOKS_MADE
