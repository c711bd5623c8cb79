"""MovieLens from the original formats: content, and one clear sentence for whatever is wrong with it."""

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from movielens_files import MOVIES, TITLES, USERS, Raw, make_raw

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data import protocols, sources
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError


def load(raw: Raw, path: Path, **options: object) -> RawData:
    return sources.load(DataConfig(source=raw.source, raw=str(path), **options))


def test_zip_and_folder_give_the_same_rows_in_the_order_of_the_file(release: Raw, tmp_path: Path):
    a, b = load(release, release.zip(tmp_path / "a.zip")), load(release, release.folder(tmp_path / "b"))
    assert a.table.equals(b.table)
    assert a.table["user_id"].to_pylist() == [str(u) for u in release.ratings[:, 0]]
    assert a.table["movie_id"].to_pylist() == [str(m) for m in release.ratings[:, 1]]
    assert a.table["rating"].to_pylist() == release.ratings[:, 2].tolist()
    assert a.table["timestamp"].to_pylist() == release.ratings[:, 3].tolist()
    # Quotes, commas and accents arrive unharmed: no reader merged lines or guessed an encoding.
    assert a.table["title"].to_pylist() == [TITLES[m - 1] for m in release.ratings[:, 1]]
    assert a.linked == (("movie_id", "title"),)
    assert any("not the original" in notice for notice in a.notices)
    assert any("bytes where the original has" in notice for notice in b.notices)
    assert any("100 ratings where" in notice for notice in b.notices)


def test_codes_are_spelled_out(tmp_path: Path):
    table = load(raw := make_raw("movielens_1m"), raw.zip(tmp_path / "a.zip")).table
    user = raw.ratings[:, 0]
    assert table["gender"].to_pylist() == ["female" if u % 2 else "male" for u in user]
    row = int(np.flatnonzero(user == 4)[0])
    assert table["age"][row].as_py() == "45-49"
    assert table["occupation"][row].as_py() == "college/grad student"
    assert table["genre"][row].as_py() == "Drama, War"
    old = load(raw := make_raw("movielens_100k"), raw.zip(tmp_path / "b.zip")).table
    row = int(np.flatnonzero(raw.ratings[:, 1] == 1)[0])
    assert old["genre"][row].as_py() == "unknown, Documentary, Romance"
    assert set(old["gender"].to_pylist()) == {"female", "male"}


def test_utf8_copies_are_read_as_utf8(release: Raw, tmp_path: Path):
    name = release.names[2]
    release.files[name] = release.files[name].decode("latin-1").encode("utf-8")
    raw = load(release, release.zip(tmp_path / "a.zip"))
    assert set(raw.table["title"].to_pylist()) <= set(TITLES)
    assert any("UTF-8" in notice for notice in raw.notices)


def test_windows_line_ends_and_a_missing_last_one_are_accepted(release: Raw, tmp_path: Path):
    plain = load(release, release.zip(tmp_path / "a.zip")).table
    for name in release.names:
        release.files[name] = release.files[name].replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    assert load(release, release.zip(tmp_path / "b.zip")).table.equals(plain)


def test_timestamp_quality(tmp_path: Path):
    raw = make_raw("movielens_1m")
    raw.files["ts_quality.u8"] = bytes([0, 1] * 45 + [2] * 10)
    data = load(raw, raw.zip(tmp_path / "a.zip"))
    assert data.timestamp_quality == "timestamp_quality"
    time = protocols.apply(protocols.PROTOCOLS["time"], data)
    assert time.dropped == {"timestamp is a guess (quality 2)": 10}
    assert max(rows.max() for rows in time.rows.values()) < 90
    assert sum(len(rows) for rows in protocols.apply(protocols.PROTOCOLS["random"], data).rows.values()) == 100
    raw.files["ts_quality.u8"] = b"\0" * 99
    with pytest.raises(InputError, match=r"ts_quality.u8 must hold one byte 0, 1 or 2 per rating \(100\)"):
        load(raw, raw.zip(tmp_path / "b.zip"))


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        (0, "1\t2\t3", "1::2::3", r"line 7: \d columns between '.*' where 4 are expected"),
        (0, "1\t2\t0\t874000000", "1::2::0::874000000", "line 7: rating '0' is not one of 1, 2, 3, 4, 5"),
        (0, "1\t2\t6\t874000000", "1::2::6::874000000", "line 7: rating '6' is not one of"),
        (0, "1\t2\tgood\t874000000", "1::2::good::874000000", "line 7: rating 'good' is not one of"),
        (0, "1\t2\t4.5\t874000000", "1::2::4.5::874000000", "line 7: rating '4.5' is not one of"),
        (0, "1\tx\t4\t874000000", "1::x::4::874000000", "line 7: .* is not user, movie, rating and time"),
        (0, "1\t2\t4\t", "1::2::4::", "line 7: .* is not user, movie, rating and time"),
        (0, "", "", "line 7: 1 columns"),
        (0, "99\t2\t4\t874000000", "99::2::4::874000000", "line 7: user 99 is not in u"),
        (0, "1\t99\t4\t874000000", "1::99::4::874000000", "line 7: movie 99 is not in"),
        (1, "7|x|M|other|1", "7::M::26::1::1", "line 7: (age 'x' is not a number|unknown age '26')"),
        (1, "7|30|X|other|1", "7::X::25::1::1", "line 7: unknown gender 'X'"),
        (1, "7|30|M|other", "7::M::25::1", "line 7: 4 columns between"),
        (1, "6|30|M|other|1", "6::M::25::1::1", "line 7: id 6 is also on line 6"),
        (1, "07|30|M|other|1", "07::M::25::1::1", "line 7: '07' is not an id"),
        (2, "7|Title", "7::Title", "line 7: 2 columns between"),
        (2, "7|T|||" + "|2" * 19, "7::T::Drama::War", "line 7: (a genre flag|4 columns)"),
    ],
)
def test_malformed_lines_are_named(release: Raw, tmp_path: Path, file: int, old: str, new: str, problem: str):
    release.replace_line(release.names[file], 7, old if release.source == "movielens_100k" else new)
    with pytest.raises(InputError, match=f"{re.escape(release.names[file])}, {problem}"):
        load(release, release.zip(tmp_path / "a.zip"))


def test_a_pair_rated_twice_is_refused(release: Raw, tmp_path: Path):
    lines = release.files[release.names[0]].decode().split("\n")
    release.replace_line(release.names[0], 9, lines[3])
    with pytest.raises(InputError, match="line 9: the same user and movie as on line 4"):
        load(release, release.zip(tmp_path / "a.zip"))


def test_a_file_cut_short_is_noticed_by_u_info(tmp_path: Path):
    raw = make_raw("movielens_100k")
    raw.files["u.data"] = b"\n".join(raw.files["u.data"].split(b"\n")[:60]) + b"\n"
    with pytest.raises(InputError, match="states 100 ratings, but there are 60"):
        load(raw, raw.zip(tmp_path / "a.zip"))


def test_missing_and_damaged_files(release: Raw, tmp_path: Path):
    with pytest.raises(InputError, match=r"does not exist; set --data\.raw"):
        load(release, tmp_path / "nowhere.zip")
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(InputError, match="is not a whole zip file"):
        load(release, tmp_path / "text.zip")
    whole = release.zip(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a whole zip file"):
        load(release, tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        middle = archive.infolist()[0].header_offset + 80
    (tmp_path / "bad.zip").write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(InputError, match="is not a whole zip file"):
        load(release, tmp_path / "bad.zip")
    release.files[release.names[0]] = b"\n"
    with pytest.raises(InputError, match="is empty"):
        load(release, release.zip(tmp_path / "empty.zip"))
    del release.files[release.names[1]]
    with pytest.raises(InputError, match=f"holds no {release.names[1]}"):
        load(release, release.zip(tmp_path / "member.zip"))
    with pytest.raises(InputError, match=f"holds no {release.names[1]}"):
        load(release, release.folder(tmp_path / "folder"))


def test_fields_may_be_chosen_but_table_options_are_refused(release: Raw, tmp_path: Path):
    path = release.zip(tmp_path / "a.zip")
    raw = load(release, path, fields=(FieldConfig("title"), FieldConfig("age", "Years")))
    assert [f.name for f in raw.fields] == ["Title", "Years"]
    assert (raw.user, raw.item, raw.linked) == (None, None, ())
    with pytest.raises(InputError, match="no field 'titel'; did you mean 'title'"):
        load(release, path, fields=(FieldConfig("titel"),))
    with pytest.raises(InputError, match="uses 'age' twice"):
        load(release, path, fields=(FieldConfig("age"), FieldConfig("age", "b")))
    with pytest.raises(InputError, match=r"data\.user is for own tables"):
        load(release, path, user="user_id")


def test_linked_groups_may_be_wider_than_the_sources_own(release: Raw, tmp_path: Path):
    path = release.zip(tmp_path / "a.zip")
    wider = (("user_id", "age", "occupation"), ("movie_id", "title", "genre"))
    assert load(release, path, linked=wider).linked == wider
    with pytest.raises(InputError, match=r"data\.linked names column 'titel', which is not among data.fields"):
        load(release, path, linked=(("movie_id", "titel"),))
    with pytest.raises(InputError, match="each column in one group only"):
        load(release, path, linked=(*wider, ("title", "genre")))


def test_unknown_source_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'movielens_1m'"):
        sources.load(DataConfig(source="movielens-1m"))


def real(name: str) -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("ALT_JAX_MOVIELENS", beside)) / name
    if not path.is_file():
        pytest.skip(f"no {name}: set ALT_JAX_MOVIELENS to the folder that holds it")
    return path


@pytest.mark.parametrize(
    ("source", "name", "counts"),
    [
        ("movielens_100k", "ml-100k.zip", (100_000, 943, 1_682)),
        pytest.param("movielens_1m", "ml-1m.zip", (1_000_209, 6_040, 3_706), marks=pytest.mark.slow),
    ],
)
def test_real_data(source: str, name: str, counts: tuple[int, int, int]):
    raw = sources.load(DataConfig(source=source, raw=str(real(name))))
    table = raw.table
    distinct = {column: len(set(table[column].to_pylist())) for column in ("user_id", "movie_id")}
    assert (table.num_rows, distinct["user_id"], distinct["movie_id"]) == counts
    assert set(table["rating"].to_pylist()) == {1.0, 2.0, 3.0, 4.0, 5.0}
    # Text and ids did not shift against each other: a movie has one title, nearly all of which carry their year.
    titles = dict(zip(table["movie_id"].to_pylist(), table["title"].to_pylist(), strict=True))
    assert len(set(zip(table["movie_id"].to_pylist(), table["title"].to_pylist(), strict=True))) == counts[2]
    assert np.mean([bool(re.search(r"\((19|20)\d\d\)$", title.strip())) for title in titles.values()]) > 0.99
    # Latin-1, not mojibake; every title is one line of text.
    assert any("é" in title for title in titles.values())
    assert not any("Ã" in title or "\n" in title for title in titles.values())
    kept = sum(len(rows) for rows in protocols.apply(protocols.PROTOCOLS["random_drop3"], raw).rows.values())
    assert kept == {"movielens_100k": 72_855, "movielens_1m": 739_012}[source]


def test_the_fixture_has_every_user_and_movie():
    ratings = make_raw("movielens_1m").ratings
    assert (len(set(ratings[:, 0])), len(set(ratings[:, 1]))) == (USERS, MOVIES)
