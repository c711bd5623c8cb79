"""Histories for rows that are to be scored, from a log, beside those that `prepare` makes of the same rows."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import histories
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.prepare import prepare
from alt_jax.errors import InputError

ROWS = 200


def log() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "user": [None if n % 13 == 0 else f"u{random.integers(9)}" for n in range(ROWS)],
            "item": random.integers(0, 30, ROWS),
            "at": np.sort(random.integers(0, 150, ROWS)),  # some at once
            "label": random.integers(0, 2, ROWS),
        }
    )


def sequence(outcome: str, name: str) -> FieldConfig:
    return FieldConfig(name, kind="sequence", of="item", slots=3, past="all", outcome=outcome)


@pytest.fixture(scope="module", params=[0, 11])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Dataset]:
    folder = tmp_path_factory.mktemp("histories")
    pq.write_table(log(), folder / "log.parquet")
    item = FieldConfig("item", hash_buckets=request.param)
    fields = (FieldConfig("user"), item, sequence("positive", "liked"), sequence("any", "seen"))
    names = {"timestamp": "at", "user": "user", "item": "item", "protocol": "time"}
    config = Config(
        data=DataConfig(fields=fields, raw=str(folder / "log.parquet"), dir=str(folder / "prepared"), **names),
        text=TextConfig(vocab_size=128, hidden=16, layers=1, heads=2, intermediate=16, max_length=64),
    )
    return config, prepare(config)


@pytest.mark.parametrize("where", ["dataset", "a file"])
def test_they_are_those_that_prepare_makes(prepared: tuple[Config, Dataset], where: str):
    config, dataset = prepared
    encoder = Encoder.load(dataset.folder)
    raw = pq.read_table(config.data.raw)
    found = histories.load("dataset" if where == "dataset" else config.data.raw, config.data)
    for split in ("valid", "test"):
        rows = raw.take(pa.array(dataset.split(split).rows)).drop_columns("label")
        filled = histories.fill(rows, found, config.data, dataset.schema, "rows")
        values, _ = encoder.encode(filled)
        np.testing.assert_array_equal(values, np.asarray(dataset.split(split).values))
        assert (np.asarray(dataset.split(split).values)[:, 2:] >= 0).sum() > len(rows)  # some have one


def test_new_users_and_no_rows_at_all_have_none(prepared: tuple[Config, Dataset]):
    config, dataset = prepared
    found = histories.load("dataset", config.data)
    new = pa.table({"user": ["new", None], "item": [1, 2], "at": [1000, 1000]})
    filled = histories.fill(new, found, config.data, dataset.schema, "rows")
    assert filled["seen"].to_pylist() == [[], []]
    assert histories.fill(new[:0], found, config.data, dataset.schema, "rows")["seen"].to_pylist() == []
    again = histories.fill(filled, found, config.data, dataset.schema, "rows")  # a column that is there is made anew
    assert again.column_names.count("seen") == 1


def test_a_log_without_times_is_refused(prepared: tuple[Config, Dataset], tmp_path: Path):
    config, _ = prepared
    with pytest.raises(InputError, match="declares no user, item or time, so it has no histories"):
        histories.load("dataset", dataclasses.replace(config.data, timestamp=None))
    with pytest.raises(InputError, match="does not exist"):
        histories.load(str(tmp_path / "none.parquet"), config.data)
