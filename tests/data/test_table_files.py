"""Files of tables as people have them: separators, quotes, encodings, compression, parts, folders, and what is none."""

import bz2
import dataclasses
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax.config import CSVConfig, DataConfig, FieldConfig
from alt_jax.data import headers, table_files
from alt_jax.data.sources import table
from alt_jax.errors import InputError

ROWS = [{"id": "7", "title": "Heat; or, 5"}, {"id": "8", "title": 'The "Big" One'}]


def read(path: Path, csv: CSVConfig = CSVConfig()) -> tuple[list[dict[str, str]], list[str]]:
    notices: list[str] = []
    headers.check_columns(path, ["id", "title"], csv)
    found = table.read(path, ["id", "title"], encoded=True, csv=csv, notices=notices)
    return found.to_pylist(), notices


@pytest.mark.parametrize(
    ("name", "text", "csv", "said"),
    [
        ("t.csv", 'id,title\n7,"Heat; or, 5"\n8,"The ""Big"" One"\n', {}, ""),
        ("t.tsv", 'id\ttitle\n7\tHeat; or, 5\n8\tThe "Big" One\n', {}, ""),
        ("t.csv", 'id;title\n7;"Heat; or, 5"\n8;"The ""Big"" One"\n', {}, "has semicolons between its columns"),
        ("t.csv", 'id|title\r\n7|Heat; or, 5\r\n8|The "Big" One\r\n', {}, "has bars between its columns"),
        ("t.csv", 'id\ttitle\n\n7\tHeat; or, 5\n8\tThe "Big" One', {"separator": "tab"}, ""),
        ("t.csv", "id,title\n7,'Heat; or, 5'\n8,The \"Big\" One\n", {"quote": "'"}, ""),
        ("T.CSV", 'id,title,more\n7,"Heat; or, 5",\n8,"The ""Big"" One",x\n', {}, ""),
    ],
)
def test_what_stands_between_columns(tmp_path: Path, name: str, text: str, csv: dict[str, str], said: str):
    (tmp_path / name).write_text(text)
    rows, notices = read(tmp_path / name, CSVConfig(**csv))
    assert rows == ROWS
    assert [said in notice for notice in notices] == ([True] if said else [])


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings_and_compression(tmp_path: Path, ending: str, encoding: str):
    text = 'id,title\n7,"Amélie\nor not"\n8,b\n'.encode(encoding)
    path = tmp_path / f"t.csv{ending}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[ending](text))
    rows, notices = read(path, CSVConfig(encoding=encoding.removesuffix("-sig")))
    assert rows == [{"id": "7", "title": "Amélie\nor not"}, {"id": "8", "title": "b"}]
    assert notices == [f"{path} has values of several lines, in quotes: 3 lines are 2 rows."]


def test_decimal_commas(tmp_path: Path):
    (tmp_path / "t.csv").write_text("id;title\n7,25;a, b\n-1,5;1,2,3\n")
    rows, _ = read(tmp_path / "t.csv", CSVConfig(decimal=","))
    assert rows == [{"id": "7.25", "title": "a, b"}, {"id": "-1.5", "title": "1,2,3"}]


def test_what_no_csv_has_is_refused(tmp_path: Path):
    """A value that nobody reads would be a silent mistake."""
    rows = pa.table({"id": ["a", "b"], "label": [0, 1]})
    pq.write_table(rows, tmp_path / "t.parquet")
    config = DataConfig(raw=str(tmp_path / "t.parquet"), fields=(FieldConfig("id"),), csv=CSVConfig(decimal=","))
    with pytest.raises(InputError, match=r"data.csv says how CSV files are read, but .*t\.parquet is none"):
        table.load(config)
    with pytest.raises(InputError, match=r"but the rows are in memory; leave it out"):
        table.load(dataclasses.replace(config, raw=""), rows)


def test_a_stray_quote_swallows_no_row(tmp_path: Path):
    """Every line is a row, whatever quotes stand at the beginning of values."""
    lines = [f"{n}\t{chr(34) if n in (20, 60) else ''}film {n}" for n in range(100)]
    (tmp_path / "t.tsv").write_text("id\ttitle\n" + "\n".join(lines) + "\n")
    rows, notices = read(tmp_path / "t.tsv")
    assert [row["id"] for row in rows] == [str(n) for n in range(100)]
    assert rows[20]["title"] == '"film 20'
    assert len(notices) == 1
    assert "has quotes that are none: taken for quotes they would swallow 40 of its lines" in notices[0]
    with pytest.raises(InputError, match=r"the quotes of the row that begins in line 22 do not fit"):
        read(tmp_path / "t.tsv", CSVConfig(quote='"'))


def test_a_stray_quote_beside_real_ones_is_refused_with_its_line(tmp_path: Path):
    lines = [f'{n},"film, {n}"' for n in range(50)]
    lines[10] = '10,"film 10'
    (tmp_path / "t.csv").write_text("id,title\n" + "\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"t.csv is malformed: .*(line 12|Row #12)"):
        read(tmp_path / "t.csv")


def test_parts_in_folders_patterns_and_what_lies_beside_them(tmp_path: Path):
    for day, at in (("2026-09-02", 0), ("2026-09-01", 10), ("__HIVE_DEFAULT_PARTITION__", 20)):
        folder = tmp_path / "log" / f"dt={day}" / "country=C%C3%B4te"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"id": [at, at + 1]}), folder / "part-0.parquet")
        (folder / "_SUCCESS").touch()
        (folder / ".part-0.parquet.crc").touch()
    (tmp_path / "log" / "_temporary").mkdir()
    (tmp_path / "log" / "_temporary" / "x.parquet").touch()
    columns = ["id", "dt", "country"]
    headers.check_columns(tmp_path / "log", columns, CSVConfig())
    found = table.read(tmp_path / "log", columns, encoded=True).to_pydict()
    assert found["id"] == [10, 11, 0, 1, 20, 21]
    assert found["dt"] == ["2026-09-01"] * 2 + ["2026-09-02"] * 2 + [""] * 2
    assert set(found["country"]) == {"Côte"}
    files = table_files.find(tmp_path / "log")
    groups, schema = table.row_groups(files.parts, columns)
    assert [table.read_group(group, schema).to_pydict()["id"] for group in groups] == [[10, 11], [0, 1], [20, 21]]
    some = table.read(tmp_path / "log" / "dt=2026-*" / "*" / "*.parquet", ["id"])
    assert some["id"].to_pylist() == [10, 11, 0, 1]
    with pytest.raises(InputError, match=r"\*.csv matches no file"):
        table_files.find(tmp_path / "*.csv")
    (tmp_path / "log" / "more.csv").write_text("id\n1\n")
    with pytest.raises(InputError, match=r"has files of several kinds, like .*; name those of one kind by a pattern"):
        table_files.find(tmp_path / "log")


def test_a_path_that_exists_is_no_pattern(tmp_path: Path):
    (tmp_path / "a[1].csv").write_text("id,title\n7,a\n")
    assert read(tmp_path / "a[1].csv")[0] == [{"id": "7", "title": "a"}]


def test_parts_of_different_types_keep_every_value(tmp_path: Path):
    """Arrow would make doubles of the large integers."""
    (tmp_path / "t").mkdir()
    big = 2**53 + 1
    for name, column in {
        "0": pa.array([big, None]),
        "1": pa.array([0.5, 3.0]),
        "2": pa.array([2**64 - 1], pa.uint64()),
        "3": pa.array(["007"]),
        "4": pa.nulls(1),
    }.items():
        pq.write_table(
            pa.table({"id": column, "tags": pa.array([[1]] * len(column))}), tmp_path / "t" / f"{name}.parquet"
        )
    expected = [str(big), "", "0.5", "3", str(2**64 - 1), "007", ""]
    assert table.read(tmp_path / "t", ["id"], encoded=True)["id"].to_pylist() == expected
    groups, schema = table.row_groups(table_files.find(tmp_path / "t").parts, ["id", "tags"])
    found = [value for group in groups for value in table.read_group(group, schema)["id"].to_pylist()]
    assert found == expected
    pq.write_table(pa.table({"id": [1], "tags": ["1"]}), tmp_path / "t" / "5.parquet")
    parts = table_files.find(tmp_path / "t").parts
    for reading in (lambda: table.read(tmp_path / "t", ["tags"]), lambda: table.row_groups(parts, ["tags"])):
        with pytest.raises(InputError, match=r"'tags' holds lists in .*parquet and single values in .*5.parquet"):
            reading()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the file"),
        ("t.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the"),
        ("t.csv", "id,title\n7,Amélie\n".encode("utf-16"), "is UTF-16 text, or no text; set data.csv.encoding utf-16"),
        ("t.csv", "id,title\n7,Amélie\n".encode("latin-1"), "is not UTF-8 text .*; set data.csv.encoding"),
        ("t.csv", b"PK\x03\x04...", "is a zip archive"),
        ("t.csv", gzip.compress(b"id,title\n", mtime=0), "is compressed by gzip, whatever its name"),
        ("t.csv.gz", b"id,title\n1,2\n", "cannot be read .*; write it again"),
        ("t.csv", b"PAR1", "is Parquet, whatever its name"),
        ("t.jsonl", '{"id": 1, "title": "a"}\n{"id": \n', "cannot be read as JSON Lines"),
        ("t.jsonl", '{"id": 1}\n', "has no column 'title'"),
        ("t.txt", "id", r"is not named like a table; its name should end in \.csv, \.tsv"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, name: str, content: str | bytes, problem: str):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=problem):
        read(path)


@pytest.mark.parametrize(
    ("csv", "problem"),
    [
        ({"separator": ",,"}, "separator ',,' should be one character, or tab"),
        ({"quote": "''"}, "should be one character, or none"),
        ({"encoding": "utf-9"}, "is no encoding that Python knows"),
    ],
)
def test_options_that_cannot_be_are_refused(csv: dict[str, str], problem: str):
    with pytest.raises(ValueError, match=problem):
        CSVConfig(**csv)
