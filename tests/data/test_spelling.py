"""One spelling for a value: by hand, over Arrow's types, and through every entrance of a dataset."""

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import spelling
from alt_jax.data.beam import engine
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.frames import as_table
from alt_jax.data.online import OnlineEncoder
from alt_jax.data.prepare import prepare
from alt_jax.data.sources import table
from alt_jax.serving.rows import RowModel

WHEN = dt.datetime(2026, 9, 1, 10, 30, 0, 500_000)
MIDNIGHT = dt.datetime(2026, 9, 1)


def texts(column: pa.Array | pa.ChunkedArray) -> list[str]:
    return spelling.texts(column).to_pylist()


@pytest.mark.parametrize(
    ("column", "expected", "kind"),
    [
        (pa.array([3, None, -7, 10**18 + 1]), ["3", "", "-7", "1000000000000000001"], "number"),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"], "number"),
        (pa.array([3.0, 0.1, -0.0, float("nan")]), ["3", "0.1", "0", ""], "number"),
        (pa.array([2.0**53, 1e16, 1e-7]), ["9007199254740992", "10000000000000000", "0.0000001"], "number"),
        (pa.array([0.1, 1e300]), ["0.1", "1e+300"], "number"),
        (pa.array([0.1, 2.5], pa.float32()), ["0.1", "2.5"], "number"),
        (pa.array([0.1, None, 65504.0], pa.float16()), ["0.1", "", "65504"], "number"),
        (pa.array([decimal.Decimal("3.50"), None], pa.decimal128(12, 2)), ["3.5", ""], "number"),
        (pa.array([decimal.Decimal("3.50")], pa.decimal32(5, 2)), ["3.5"], "number"),
        (pa.array([decimal.Decimal(300)], pa.decimal128(5, -2)), ["300"], "number"),
        (
            pa.array([decimal.Decimal("1234567890123456789.0000000000000000001")], pa.decimal256(50, 20)),
            ["1234567890123456789.0000000000000000001"],
            "number",
        ),
        (pa.array([True, None, False]), ["true", "", "false"], "boolean"),
        (pa.array([WHEN, MIDNIGHT]), ["2026-09-01 10:30:00.5", "2026-09-01"], "time"),
        (pa.array([WHEN], pa.timestamp("ns")), ["2026-09-01 10:30:00.5"], "time"),
        (pa.array([WHEN], pa.timestamp("ms", "Europe/Berlin")), ["2026-09-01 10:30:00.5Z"], "time"),
        (pa.array([MIDNIGHT], pa.timestamp("s", "UTC")), ["2026-09-01 00:00:00Z"], "time"),
        (pa.array([MIDNIGHT.date()]), ["2026-09-01"], "time"),
        (pa.array([MIDNIGHT.date()], pa.date64()), ["2026-09-01"], "time"),
        (pa.array([dt.time(10, 30)], pa.time64("us")), ["10:30:00"], "string"),
        (pa.array(["a", None, ""]), ["a", "", ""], "string"),
        (pa.array([b"caf\xc3\xa9"], pa.binary()), ["café"], "string"),
        (pa.array(["a", None], pa.string_view()), ["a", ""], "string"),
        (pa.nulls(2), ["", ""], "string"),
        (pa.DictionaryArray.from_arrays(pa.array([1, 0, None], pa.uint8()), ["a", None]), ["", "a", ""], "string"),
        (pa.DictionaryArray.from_arrays([0, 0], pa.array([WHEN])), ["2026-09-01 10:30:00.5"] * 2, "time"),
        (pa.array([1, 1, 2]).dictionary_encode(), ["1", "1", "2"], "number"),
        (pa.RunEndEncodedArray.from_arrays([2, 3], [7, 8]), ["7", "7", "8"], "number"),
    ],
)
def test_every_type_has_one_plain_spelling(column: pa.Array, expected: list[str], kind: str):
    for several in (column, pa.chunked_array([column]), pa.chunked_array([column, column])):
        found = texts(several)
        assert found == expected * (len(found) // len(expected))
    assert spelling.type_of(expected) == kind
    assert spelling.canonical(expected, kind) == expected
    assert texts(column[:0]) == []
    assert texts(pa.chunked_array([], column.type)) == []


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (pa.array([dt.timedelta(1)]), r"holds duration\[us\], which has no plain spelling; store it as text"),
        (pa.array([{"a": 1}]), "holds struct<a: int64>, which has no plain spelling"),
        (pa.array([[1]]), "holds list<item: int64>, which has no plain spelling"),
        (pa.array([b"0123456789abcdef"], pa.uuid()), "holds extension<arrow.uuid>, which has no plain spelling"),
        (pa.array([b"0123"], pa.binary(4)), r"holds fixed_size_binary\[4\], which has no plain spelling"),
        (pa.array([b"\xff"]), "holds binary that is no UTF-8 text; store it as text"),
    ],
)
def test_a_type_without_a_plain_spelling_is_refused_by_name(column: pa.Array, problem: str):
    with pytest.raises((TypeError, ValueError), match=problem):
        spelling.texts(column)


@pytest.mark.parametrize(
    ("strings", "kind", "expected"),
    [
        (["1", "2.50", "-3"], "number", ["1", "2.5", "-3"]),
        (["1e3", "0.10"], "number", ["1000", "0.1"]),
        (["9" * 45, "-0.0"], "number", ["9" * 45, "0"]),
        (["007", "8"], "string", None),  # whose zeros may matter
        (["1.1", "1.10"], "string", None),  # two versions
        (["1", "one"], "string", None),
        (["True", "false", ""], "boolean", ["true", "false", ""]),
        (["2026-09-01T00:00:00", "2026-09-01 10:30"], "time", ["2026-09-01", "2026-09-01 10:30:00"]),
        (["2026-09-01 10:30:00+02:00"], "time", ["2026-09-01 08:30:00Z"]),
        (["2026-09-01 10:30:00.120000Z"], "time", ["2026-09-01 10:30:00.12Z"]),
        (["", ""], "string", None),
    ],
)
def test_what_a_column_of_text_holds_is_found_out(strings: list[str], kind: str, expected: list[str] | None):
    assert spelling.type_of(strings) == kind
    assert spelling.canonical(strings, kind) == (strings if expected is None else expected)


@pytest.mark.parametrize("odd", ["x", "2026-13-01", "1_000", "0x1F", "nan", "1e99999999999999999999", "--1"])
@pytest.mark.parametrize("kind", ["number", "time", "boolean"])
def test_what_is_not_of_a_type_stays_as_it_is(odd: str, kind: str):
    assert spelling.canonical([odd], kind) == [odd]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_view(pa.string())),
        *(pa.large_list_view(pa.string()), pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    ],
)
def test_lists_of_any_type_are_those_with_a_separator(kind: pa.DataType):
    rows = [["a", " b "], [], None, ["c", "", None, "a", "d"], [""]]
    expected = [["a", "b"], [""], [""], ["c", "a"], [""]]
    text = pa.array([None if row is None else "|".join(value or "" for value in row) for row in rows])
    for column in (pa.array(rows, kind), text, pa.chunked_array([text[:2], text[2:]])):
        found = spelling.spell(column, slots=2, separator="|")
        assert [[found.strings[code] for code in row if code >= 0] for row in found.codes] == expected
        assert found.longer is not None
        assert found.longer.tolist() == [False, False, False, True, False]
    pairs = spelling.spell(pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)), slots=2)
    assert pairs.strings[:4] == ["1", "2", "3", "4"]


whole = st.integers(-(2**53), 2**53)
CARRIERS: dict[str, tuple[Any, list[pa.DataType]]] = {
    "whole numbers": (whole, [pa.int64(), pa.float64(), pa.decimal128(30, 2), pa.decimal256(60, 9)]),
    "small numbers": (
        st.integers(0, 127),
        [pa.int8(), pa.uint8(), pa.int16(), pa.uint64(), pa.float16(), pa.float32()],
    ),
    "decimals": (st.decimals(-999, 999, places=2), [pa.decimal128(6, 2), pa.decimal32(6, 3), pa.float64()]),
    "times": (
        st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2200, 1, 1)).map(lambda t: t.replace(microsecond=0)),
        [pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")],
    ),
    "days": (st.dates(dt.date(1970, 1, 1), dt.date(2200, 1, 1)), [pa.date32(), pa.date64(), pa.timestamp("ms")]),
    "truth values": (st.booleans(), [pa.bool_()]),
    "text": (st.text(max_size=5), [pa.string(), pa.large_string(), pa.string_view(), pa.binary()]),
}


@pytest.mark.parametrize("name", CARRIERS)
@settings(max_examples=40)
@given(data=st.data())
def test_equal_values_are_spelled_alike_whatever_carries_them(name: str, data: st.DataObject):
    values, kinds = CARRIERS[name]
    drawn = data.draw(st.lists(st.none() | values, min_size=1, max_size=6))
    kind = None
    spelled = []
    for carrier in kinds:
        if pa.types.is_binary(carrier):
            column = pa.array([None if value is None else value.encode() for value in drawn], carrier)
        elif pa.types.is_floating(carrier):
            column = pa.array([None if value is None else float(value) for value in drawn], pa.float64()).cast(carrier)
        else:
            column = pa.array(drawn).cast(carrier)
        spelled.append(texts(column))
        kind = kind or spelling.type_of_column(carrier)
    assert all(one == spelled[0] for one in spelled[1:])
    if kind:  # as text they are found to be what they are, and the spelling of the text is the same
        written = ["" if value is None else str(value) for value in drawn]
        assert spelling.canonical(written, kind) == spelled[0]


# --- through every entrance ---

FIELDS = (
    FieldConfig("user"),
    FieldConfig("day"),
    FieldConfig("member"),
    FieldConfig("amount"),
    FieldConfig("price", kind="numeric"),
    FieldConfig("tags", kind="multi", slots=3),
    FieldConfig("title", kind="text"),
    FieldConfig("bucket", hash_buckets=7, type="number"),  # of what is hashed, a file of text does not tell
)


def rows(number: int = 80) -> pa.Table:
    random = np.random.default_rng(0)
    days = [None if n % 9 == 0 else dt.datetime(2026, 1, 1 + n % 5, 8 * (n % 3)) for n in range(number)]
    return pa.table(
        {
            "user": pa.array([None if n % 11 == 0 else 2**52 + n % 7 for n in range(number)]),
            "day": pa.array(days, pa.timestamp("ms")),
            "member": pa.array([None if n % 13 == 0 else n % 2 == 0 for n in range(number)]),
            "amount": pa.array([decimal.Decimal(n % 4) / 2 for n in range(number)], pa.decimal128(6, 2)),
            "price": pa.array(random.integers(0, 9, number) / 4),
            "tags": pa.array([["a", "b", "c"][: n % 4] for n in range(number)]),
            "title": pa.array([f"film {n % 6}" for n in range(number)]),
            "bucket": pa.array([n % 17 for n in range(number)]),
            "label": pa.array(random.integers(0, 2, number)),
        }
    )


def joined(whole: pa.Table) -> pa.Table:
    tags = pa.array(["|".join(row) for row in whole["tags"].to_pylist()])
    return whole.set_column(whole.column_names.index("tags"), "tags", tags)


def config(folder: Path, raw: str = "") -> Config:
    return Config(
        data=DataConfig(source="table", fields=FIELDS, raw=raw, dir=str(folder)),
        text=TextConfig(vocab_size=256, hidden=16, layers=1, heads=2, intermediate=16, max_length=64),
    )


def files(folder: Path, whole: pa.Table) -> dict[str, str]:
    """The same rows in files of every kind, written by several tools."""
    flat = joined(whole)
    pq.write_table(whole, folder / "plain.parquet")
    pyarrow.csv.write_csv(flat, folder / "arrow.csv")
    flat.to_pandas().to_csv(folder / "pandas.csv.gz", index=False)
    pl.from_arrow(flat).write_csv(folder / "polars.tsv", separator="\t")
    pl.from_arrow(whole).write_parquet(folder / "polars.parquet")
    with (folder / "lines.jsonl").open("w") as file:
        for row in whole.to_pylist():
            day = row["day"] and row["day"].isoformat(" ")
            file.write(json.dumps(row | {"day": day, "amount": float(row["amount"])}) + "\n")
    parts = folder / "parts" / "at=1"
    parts.mkdir(parents=True)
    first, second = whole[:30], whole[30:]
    pq.write_table(first, parts / "0.parquet")
    other = second.set_column(0, "user", second["user"].cast(pa.float64()))
    pq.write_table(other.set_column(1, "day", second["day"].cast(pa.timestamp("ns"))), parts / "1.parquet")
    (parts / "_SUCCESS").touch()
    return {name: str(folder / name) for name in ("plain.parquet", "arrow.csv", "pandas.csv.gz", "polars.tsv")} | {
        name: str(folder / name) for name in ("polars.parquet", "lines.jsonl", "parts")
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, str]]:
    folder = tmp_path_factory.mktemp("entrances")
    paths = files(folder, rows())
    return prepare(config(folder / "prepared", paths["plain.parquet"])), paths


def test_a_table_prepares_to_the_same_dataset_from_whatever_holds_it(
    prepared: tuple[Dataset, dict[str, str]], tmp_path: Path
):
    dataset, paths = prepared
    expected = dataset.schema.data_hash, dataset.schema.vocabulary_hash, dataset.schema.fingerprint
    whole = rows()
    frames = {"arrow": whole, "pandas": whole.to_pandas(), "polars": pl.from_arrow(whole), "dicts": whole.to_pylist()}
    found = {name: prepare(config(tmp_path / name, path)) for name, path in paths.items() if name != "plain.parquet"}
    found |= {name: prepare(config(tmp_path / f"of {name}"), table=frame) for name, frame in frames.items()}
    found["parts, by Beam"] = prepare(config(tmp_path / "beam", paths["parts"]), engine("", []))
    for name, other in found.items():
        assert (other.schema.data_hash, other.schema.vocabulary_hash, other.schema.fingerprint) == expected, name
    assert {field.column: field.type for field in dataset.schema.fields} == {
        **{"user": "number", "day": "time", "member": "boolean", "amount": "number"},
        **{"price": "number", "tags": "string", "title": "string", "bucket": "number"},
    }


def test_a_row_has_the_same_ids_through_every_entrance(prepared: tuple[Dataset, dict[str, str]]):
    dataset, paths = prepared
    encoder = Encoder.load(dataset.folder)
    online = OnlineEncoder(encoder)
    whole = rows()
    expected = feature_and_numbers(encoder, whole)
    assert (expected[0] >= 0).all()
    cast = whole
    for name, kind in {
        **{"user": pa.float64(), "day": pa.timestamp("us"), "member": pa.string(), "amount": pa.decimal256(40, 9)},
        **{"price": pa.float32(), "title": pa.string_view()},
    }.items():
        cast = cast.set_column(cast.column_names.index(name), name, cast[name].cast(kind))
    entrances = {name: table.read(Path(path), list(encoder.columns), encoded=True) for name, path in paths.items()} | {
        "pandas": as_table(whole.to_pandas(), encoder.columns, "rows"),
        "pandas, nullable": as_table(
            whole.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get), encoder.columns, ""
        ),
        "polars": as_table(pl.from_arrow(whole), encoder.columns, "rows"),
        "polars, categorical": as_table(
            pl.from_arrow(whole).with_columns(pl.col("title").cast(pl.Categorical)), encoder.columns, "rows"
        ),
        "dicts": as_table(whole.to_pylist(), encoder.columns, "rows"),
        "columns": as_table(whole.to_pydict(), encoder.columns, "rows"),
        "other types": cast,
        "lists in one string": joined(whole),
    }
    for name, given_rows in entrances.items():
        for got, wanted in zip(feature_and_numbers(encoder, given_rows), expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=name)
        values, pieces = online.encode(online.spell(given_rows, name))
        np.testing.assert_array_equal(ids_of(values, pieces), expected[0], err_msg=name)
    model = RowModel(dataset.schema)
    as_json = [
        {
            **row,
            **{
                "day": row["day"] and row["day"].isoformat(),
                "amount": float(row["amount"]),
                "price": str(row["price"]),
            },
        }
        for row in whole.drop_columns("label").to_pylist()
    ]
    read = model.read(json.dumps({"rows": as_json}).encode(), len(as_json))
    values, pieces = online.encode(model.spell(read))
    np.testing.assert_array_equal(ids_of(values, pieces), expected[0])


def feature_and_numbers(encoder: Encoder, given_rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    values, pieces = encoder.encode(given_rows)
    return ids_of(values, pieces), np.where(values < 0, 0, np.asarray(pieces.number)[values])


def ids_of(values: np.ndarray, pieces: Any) -> np.ndarray:
    return np.where(values < 0, 0, np.asarray(pieces.feature)[values])
