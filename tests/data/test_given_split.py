"""A split of one's own: a column that says it, or three files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import protocols, sources
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.errors import InputError

NAMES = {"train": ("train", "Training"), "valid": ("valid", "val", "dev"), "test": ("test", "TEST ")}


def table(rows: int = 60) -> pa.Table:
    random = np.random.default_rng(0)
    part = random.choice(["train", "train", "train", "valid", "test"], rows)
    return pa.table(
        {
            "user": [f"u{n % 7}" for n in range(rows)],
            "__label__": [f"c{n % 5}" for n in range(rows)],  # names that are not reserved
            "__split__": [f"s{n % 3}" for n in range(rows)],
            "split": [NAMES[name][n % len(NAMES[name])] for n, name in enumerate(part)],
            "part": part,
            "label": random.integers(0, 2, rows),
        }
    )


FIELDS = tuple(FieldConfig(name) for name in ("user", "__label__", "__split__"))


def declare(folder: Path, raw: Path | str, **data: object) -> Config:
    values = {"source": "table", "raw": str(raw), "fields": FIELDS, "protocol": "given", "dir": str(folder), **data}
    text = TextConfig(vocab_size=128, hidden=16, layers=1, heads=2, intermediate=16, max_length=64)
    return Config(data=DataConfig(**values), text=text)


def rows(dataset: Dataset) -> dict[str, list[list[str]]]:
    value = dataset.vocabulary().value
    return {name: [[value[v] for v in row] for row in np.asarray(dataset.split(name).values)] for name in NAMES}


def test_a_column_and_three_files_give_the_same_rows(tmp_path: Path):
    whole = table()
    pq.write_table(whole, tmp_path / "whole.parquet")
    by_name = {name: whole.filter(pa.array(np.asarray(whole["part"]) == name)) for name in NAMES}
    for name, part in by_name.items():
        pq.write_table(part, tmp_path / f"{name}.parquet")
    column = prepare(declare(tmp_path / "a", tmp_path / "whole.parquet", split="split"))
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("valid", "test")}
    files = prepare(declare(tmp_path / "b", tmp_path / "train.parquet", **paths))
    memory = prepare(declare(tmp_path / "c", "", split="split"), table=whole)
    expected = {
        name: [list(row.values()) for row in part.select([field.column for field in FIELDS]).to_pylist()]
        for name, part in by_name.items()
    }
    for dataset in (column, files, memory):
        assert rows(dataset) == expected
        for name, part in by_name.items():
            assert np.asarray(dataset.split(name).labels).tolist() == part["label"].to_pylist()
    assert column.schema.data_hash == files.schema.data_hash == memory.schema.data_hash
    assert column.schema.protocol == "given"


def test_what_does_not_say_a_split_is_refused(tmp_path: Path):
    whole = table()
    pq.write_table(whole.set_column(3, "split", pa.array(["train"] * 59 + ["x"])), tmp_path / "t.parquet")
    raw = sources.load(declare(tmp_path, tmp_path / "t.parquet", split="split").data)
    with pytest.raises(InputError, match=r"'split' of .* holds 'x' in data row 60; write train, valid or test"):
        protocols.apply(protocols.get("given"), raw)
    for data, problem in (
        ({}, "goes by a split of your own, but none is declared; set data.split, or data.valid and data.test"),
        ({"split": "part", "protocol": "random"}, "'random' divides the rows, but data.split .* does, too"),
    ):
        config = declare(tmp_path, tmp_path / "t.parquet", **data).data
        with pytest.raises(InputError, match=problem):
            protocols.apply(protocols.get(config.protocol), sources.load(config))
    for data, problem in (
        ({"valid": "v.parquet"}, "data.valid and data.test belong together"),
        ({"valid": "v", "test": "t", "split": "part"}, "data.split and data.valid both say how rows are divided"),
        ({"split": "user"}, "contains the split column 'user'"),
    ):
        with pytest.raises(InputError, match=problem):
            sources.load(declare(tmp_path, tmp_path / "t.parquet", **data).data)
    with pytest.raises(InputError, match=r"The rows are in memory, so data.raw, data.valid and data.test name others"):
        prepare(declare(tmp_path / "p", tmp_path / "t.parquet", split="part"), table=whole)
