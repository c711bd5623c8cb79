"""What `prepare` and `predict` make of tables as people have them: said, refused by its row, or kept as it was."""

import datetime as dt
import decimal
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scorers import every_kind, random_scorer

from alt_jax import card
from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import prepare as preparing
from alt_jax.data import spelling
from alt_jax.data.dataset import Dataset, Encoder, copy_encoder
from alt_jax.data.online import OnlineEncoder
from alt_jax.data.prepare import prepare
from alt_jax.errors import InputError
from alt_jax.schema import Schema

ROWS = 60


def config_of(folder: Path, table: pa.Table, *fields: FieldConfig, **data: object) -> Config:
    pq.write_table(table.append_column("label", pa.array([n % 2 for n in range(len(table))])), folder / "rows.parquet")
    values = {"raw": str(folder / "rows.parquet"), "dir": str(folder / "prepared"), "fields": fields, **data}
    text = TextConfig(vocab_size=128, hidden=16, layers=1, heads=2, intermediate=16, max_length=64)
    return Config(data=DataConfig(**values), text=text)


def test_lists_that_are_cut_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = pa.table({"tags": [["a", "b", "c", "d"][: n % 5] for n in range(ROWS)]})
    dataset = prepare(config_of(tmp_path, table, FieldConfig("tags", kind="multi", slots=2)))
    longer = sum(int(row) % 5 > 2 for row in dataset.train.rows)
    assert f"its lists are cut to 2 values in {longer} training rows; a larger slots would" in capsys.readouterr().out


@pytest.mark.parametrize("unit", ["parquet", "csv"])
def test_nanoseconds_are_cut_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: str):
    stamps = pa.array([10**18 + n * 1500 for n in range(ROWS)], pa.timestamp("ns"))
    config = config_of(tmp_path, pa.table({"user": list("abc" * 20), "at": stamps}), FieldConfig("user"))
    if unit == "csv":
        whole = pq.read_table(config.data.raw)
        pa.csv.write_csv(whole.set_column(1, "at", whole["at"].cast(pa.string())), tmp_path / "rows.csv")
        config = config.override({"data.raw": str(tmp_path / "rows.csv")})
    dataset = prepare(config.override({"data.timestamp": "at", "data.protocol": "time"}))
    assert "30 times in column 'at' of" in capsys.readouterr().out
    assert np.asarray(dataset.train.rows).tolist() == list(range(48))


def test_a_number_beyond_float32_leaves_the_dataset_as_it_was(tmp_path: Path):
    fields = (FieldConfig("user"), FieldConfig("price", kind="numeric"))
    table = pa.table({"user": list("abc" * 20), "price": [float(n) for n in range(ROWS)]})
    before = prepare(config_of(tmp_path, table, *fields)).schema
    odd = table.set_column(1, "price", pa.array([1.797e308, *range(1, ROWS)], pa.float64()))
    with pytest.raises(InputError, match=r"'price' of .* holds '1\.797e\+308', which is not a finite number within"):
        prepare(config_of(tmp_path, odd, *fields))
    assert Dataset.load(tmp_path / "prepared").schema == before


def test_what_cannot_be_loaded_does_not_take_the_place_of_what_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = pa.table({"user": list("abc" * 20)})
    before = prepare(config_of(tmp_path, table, FieldConfig("user"))).schema
    save = Schema.save

    def damaged(schema: Schema, path: Path) -> None:
        save(schema, path)
        path.write_text(path.read_text(encoding="utf-8").replace('"max_length": 64', '"max_length": -1'))

    monkeypatch.setattr(preparing.Schema, "save", damaged)
    with pytest.raises(InputError, match="contradicts itself"):
        prepare(config_of(tmp_path, table, FieldConfig("user")))
    assert Dataset.load(tmp_path / "prepared").schema == before


def test_a_number_that_cannot_be_told_is_refused_by_its_row(tmp_path: Path):
    fields = (FieldConfig("user"), FieldConfig("price", kind="numeric"))
    table = pa.table({"user": list("abc" * 20), "price": [n % 2 * 1e-9 for n in range(ROWS)]})
    encoder = Encoder.load(prepare(config_of(tmp_path, table, *fields)).folder)
    online = OnlineEncoder(encoder)
    for number, problem in ((1e300, "not a finite number"), (1e35, "too far from the training part's mean")):
        rows = pa.table({"user": ["a"] * 3, "price": [1e-9, 0.0, number]})
        for encode in (encoder.encode, lambda rows, origin: online.encode(online.spell(rows, origin), origin)):
            with pytest.raises(InputError, match=f"'price' of data row 3 of News holds .*{problem}"):
                encode(rows, "News")


def test_no_rows_are_no_scores(tmp_path: Path):
    scorer = random_scorer(every_kind(tmp_path), "ctr")
    for kind in (pa.timestamp("ms"), pa.decimal128(9, 2), pa.float16(), pa.bool_(), pa.null(), pa.date32()):
        columns = {column: pa.array([], kind if column != "the genre" else pa.list_(kind)) for column in scorer.columns}
        assert scorer.score(pa.table(columns)).tolist() == []


def test_the_code_of_a_card_reads_every_kind_and_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fields = (
        FieldConfig("user", in_prompt=False),
        FieldConfig("day"),
        FieldConfig("amount"),
        FieldConfig("member"),
        FieldConfig("price", kind="numeric"),
        FieldConfig("tags", kind="multi", slots=2),
        FieldConfig("words", kind="multi", separator=";"),
        FieldConfig("title", kind="text"),
        FieldConfig("bucket", hash_buckets=5),
        FieldConfig("seen", kind="sequence", of="user", slots=2, outcome="any"),
    )
    table = pa.table(
        {
            "user": [1.0 + n % 4 if n % 7 else None for n in range(ROWS)],
            "day": [dt.datetime(2026, 1, 1 + n % 3, n % 2) for n in range(ROWS)],
            "amount": [decimal.Decimal(n % 3) / 4 for n in range(ROWS)],
            "member": [n % 2 == 0 for n in range(ROWS)],
            "price": np.arange(ROWS) / 4,
            "tags": [["a", "b", "c"][: n % 4] for n in range(ROWS)],
            "words": ["x;y;" if n % 2 else "" for n in range(ROWS)],
            "title": [f"film {n % 5}" for n in range(ROWS)],
            "bucket": np.arange(ROWS) % 11,
            "who": [f"w{n % 5}" for n in range(ROWS)],
            "at": np.arange(ROWS),
        }
    )
    config = config_of(tmp_path, table, *fields, user="who", timestamp="at")
    dataset = prepare(config)
    copy_encoder(dataset.folder, tmp_path / "export")
    shutil.copy(spelling.__file__, tmp_path / "export")
    rows = table.append_column("seen", pa.array([["1", "9"], None] * (ROWS // 2)))
    pq.write_table(rows, tmp_path / "export" / "rows.parquet")
    monkeypatch.chdir(tmp_path / "export")
    monkeypatch.syspath_prepend(str(tmp_path / "export"))
    found: dict[str, np.ndarray] = {}
    exec(card._ENCODE, found)  # what the card tells to run there
    expected, _ = Encoder.load(dataset.folder).encode(rows)
    known = len(dataset.vocabulary().value)
    assert (expected < known).any(axis=0).all()
    field_of = np.repeat(np.arange(len(dataset.schema.fields)), dataset.schema.widths)
    np.testing.assert_array_equal(found["ids"], np.where(expected < known, expected, known + field_of[None, :]))


def test_an_empty_separator_is_refused():
    with pytest.raises(ValueError, match="separator of field 'tags' is empty"):
        FieldConfig("tags", kind="multi", separator="")
