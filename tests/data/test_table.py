"""Own tables: CSV as written, Parquet spelled plainly, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data import protocols, sources
from alt_jax.data.sources import table
from alt_jax.data.sources.raw import as_text
from alt_jax.errors import InputError

CSV = 'who,what,label,when\n007,"a, ""b""",1,3\n,NA,0,1\n1.0,"two\nlines",1,2\n'


def declare(path: Path, **options: object) -> DataConfig:
    values = {"fields": (FieldConfig("who", "Who"), FieldConfig("what")), "raw": str(path), **options}
    return DataConfig(source="table", **values)


def write(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_fields_are_strings_exactly_as_written(tmp_path: Path):
    raw = sources.load(declare(write(tmp_path, CSV), timestamp="when", user="who", linked=(("who", "what"),)))
    assert raw.table["who"].to_pylist() == ["007", "", "1.0"]
    assert raw.table["what"].to_pylist() == ['a, "b"', "NA", "two\nlines"]
    assert raw.table[raw.label].to_pylist() == [1.0, 0.0, 1.0]
    assert raw.table[raw.timestamp].to_pylist() == [3, 1, 2]
    assert [f.name for f in raw.fields] == ["Who", "what"]
    assert raw.linked == (("who", "what"),)


def test_tsv_and_bom(tmp_path: Path):
    text = b"\xef\xbb\xbf" + CSV.split('"', maxsplit=1)[0].encode() + b"x,1,2\n"
    raw = sources.load(declare(write(tmp_path, text.replace(b",", b"\t"), "t.tsv")))
    assert raw.table["who"].to_pylist() == ["007"]


@pytest.mark.parametrize("encoded", [False, True])
def test_parquet_spellings(tmp_path: Path, encoded: bool):
    columns = {
        "integer": pa.array([1, None, 10**15 + 1]),
        "float": pa.array([3.0, None, 0.1]),
        "nan": pa.array([float("nan"), -0.0, 1e20]),
        "bool": pa.array([True, None, False]),
        "text": pa.array(["a", None, ""]),
        "dictionary": pa.array(["b", None, "b"]).dictionary_encode(),
        "date": pa.array([0, 1, 2], pa.date32()),
        "null": pa.nulls(3),
        "decimal": pa.array([1, None, 2], pa.decimal128(5, 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    read = table.read(tmp_path / "t.parquet", list(columns), encoded=encoded)
    text = {name: as_text(read[name], name, "t").to_pylist() for name in columns}
    assert text == {
        "integer": ["1", "", "1000000000000001"],
        "float": ["3", "", "0.1"],
        "nan": ["", "0", "100000000000000000000"],
        "bool": ["true", "", "false"],
        "text": ["a", "", ""],
        "dictionary": ["b", "", "b"],
        "null": ["", "", ""],
        "decimal": ["1", "", "2"],
        "date": ["1970-01-01", "1970-01-02", "1970-01-03"],
    }
    for name in columns:  # no string has two codes
        distinct = as_text(read[name], name, "t").dictionary.to_pylist()
        assert len(set(distinct)) == len(distinct)


def test_a_folder_of_parts_is_one_table(tmp_path: Path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, names in enumerate([["a", "b"], ["c", "a"]]):
        rows = pa.table({"who": pa.array(names).dictionary_encode(), "what": [1, 2], "label": [0, 1]})
        pq.write_table(rows, folder / f"part-{part}.parquet")
    (folder / "_SUCCESS").touch()
    raw = sources.load(declare(folder))
    assert as_text(raw.table["who"], "who", "t").to_pylist() == ["a", "b", "c", "a"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"is a folder without table files"):
        sources.load(declare(tmp_path / "empty"))


def test_times_may_be_numbers_or_iso_8601(tmp_path: Path):
    text = "who,what,label,when\na,b,1,2024-01-02 03:04:05\na,c,0,2023-12-31\n"
    raw = sources.load(declare(write(tmp_path, text), timestamp="when"))
    assert np.argsort(raw.table[raw.timestamp].to_numpy()).tolist() == [1, 0]
    with pytest.raises(
        InputError, match="neither all numbers nor all ISO 8601 times of one form: 'last -12-31' in data r"
    ):
        sources.load(declare(write(tmp_path, text.replace("2023", "last ")), timestamp="when"))


def test_times_with_a_zone_are_those_of_utc(tmp_path: Path):
    """In CSV as in Parquet; without one among them nobody can tell their order."""
    text = (
        "who,what,label,when\na,b,1,2024-01-02T03:04:05Z\na,c,0,2024-01-02T03:04:05.5+02:00\na,c,0,2024-01-02 01:05Z\n"
    )
    expected = ["2024-01-02T03:04:05", "2024-01-02T01:04:05.5", "2024-01-02T01:05"]
    found = sources.load(declare(write(tmp_path, text), timestamp="when"))
    assert found.table[found.timestamp].to_pylist() == np.array(expected, "datetime64[us]").astype(int).tolist()
    with pytest.raises(InputError, match="of one form: '2024-01-02 01:05' in data row 3; write it like"):
        sources.load(declare(write(tmp_path, text.replace("01:05Z", "01:05")), timestamp="when"))


def test_labels_may_be_true_and_false(tmp_path: Path):
    found = sources.load(declare(write(tmp_path, "who,what,label\na,b,true\na,c,false\n")))
    assert found.table[found.label].to_pylist() == [1.0, 0.0]


@pytest.mark.parametrize("stray", ["4", "2", "-1", "0.5"])
def test_a_label_that_is_neither_0_nor_1_is_named(tmp_path: Path, stray: str):
    """Whatever it is: taken for a rating, it would make every click a negative."""
    rows = "".join(f"a,b,{label}\n" for label in ["0", "1"] * 20)
    found = sources.load(declare(write(tmp_path, f"who,what,label\n{rows}a,b,{stray}\n{rows}")))
    random = protocols.get("random")
    with pytest.raises(
        InputError, match=rf"The label {stray} in data row 41 of .*t\.csv is neither 0 nor 1; correct it"
    ):
        protocols.apply(random, found)
    assert protocols.apply(random, found, positive_above=0.0).threshold == 0


def test_narrow_floats_are_spelled_in_as_few_digits_as_tell_them_apart():
    for kind in (np.float16, np.float32, np.float64):
        column = pa.array(np.array([1.26, 20.0, np.nan], kind))
        assert as_text(column, "price", "t").to_pylist() == ["1.26", "20", ""]


@pytest.mark.parametrize("when", [[3.0, None, 1.0], [3.5, float("nan"), 1.0], ["3", "nan", "1"]])
def test_a_missing_timestamp_is_refused(tmp_path: Path, when: list[float | str | None]):
    """It would sort behind all others, into the test part."""
    pq.write_table(pa.table({"who": [1, 2, 3], "label": [0, 1, 0], "when": when}), tmp_path / "t.parquet")
    data = DataConfig(raw=str(tmp_path / "t.parquet"), fields=(FieldConfig("who"),), timestamp="when")
    with pytest.raises(InputError, match=r"Timestamp column 'when' of .* is missing in data row 2; fill it"):
        sources.load(data)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("who,wat,label\na,b,1\n", "no column 'what'; did you mean 'wat'"),
        ("who,what,what,label\na,b,c,1\n", "more than one column 'what'"),
        ("who,what,lable\na,b,1\n", "no column 'label'; did you mean 'lable'"),
        ("who,what,label\na,b,1\na,b,x\n", "'label' of .*t.csv is not numeric: 'x' in data row 2"),
        ("who,what,label\na,b,1\na,b,\n", "'label' of .*t.csv is not numeric: '' in data row 2"),
        ("who,what,label\na,b,1\na,b,nan\n", "'label' of .*t.csv is not finite in data row 2"),
        ("who,what,label\na,b,1\na,b\n", "t.csv is malformed: .*Row #3"),
        ("who,what,label\na,Café,1\n".encode("latin-1"), "is not UTF-8 text"),
        ("", "t.csv is malformed: .*[Ee]mpty"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str | bytes, problem: str):
    with pytest.raises(InputError, match=problem):
        sources.load(declare(write(tmp_path, text)))


def test_malformed_parquet(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        sources.load(declare(write(tmp_path, "PAR1", "t.parquet")))
    rows = {"who": ["a", "b"], "what": [[1], [2]], "label": [1, None]}
    pq.write_table(pa.table(rows), tmp_path / "u.parquet")
    with pytest.raises(InputError, match=r"'label' of .* is null in data row 2"):
        sources.load(declare(tmp_path / "u.parquet"))
    with pytest.raises(InputError, match="'what' of t holds list"):
        as_text(pa.chunked_array([[[1], [2]]]), "what", "t")
    rows["label"] = [[1], [0]]
    pq.write_table(pa.table(rows), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=r"'label' of .* is not numeric but list"):
        sources.load(declare(tmp_path / "v.parquet"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"raw": ""}, "needs data.raw"),
        ({"fields": ()}, "needs data.fields"),
        ({"raw": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"fields": (FieldConfig("who"), FieldConfig("who", "b"))}, "uses the column 'who' twice"),
        ({"fields": (FieldConfig("who", "x"), FieldConfig("what", "x"))}, "uses the name 'x' twice"),
        ({"fields": (FieldConfig("who"), FieldConfig("label"))}, "contains the label column 'label'"),
        ({"user": "nobody"}, "has no column 'nobody'"),
        ({"item": "nothing"}, "has no column 'nothing'"),
        ({"linked": (("who", "nothing"),)}, r"data\.linked names column 'nothing'"),
        ({"linked": (("who",),)}, "groups of two or more"),
        ({"linked": (("who", "what"), ("what", "who"))}, "each column in one group"),
        ({"timestamp": "wenn"}, "no column 'wenn'; did you mean 'when'"),
    ],
)
def test_wrong_declarations(tmp_path: Path, options: dict[str, object], problem: str):
    with pytest.raises(InputError, match=problem):
        sources.load(declare(write(tmp_path, CSV), **options))


def test_unknown_suffix(tmp_path: Path):
    with pytest.raises(InputError, match=r"not named like a table; its name should end in \.csv"):
        sources.load(declare(write(tmp_path, CSV, "t.txt")))
