"""Rows in parts: the dataset is the same however its table is stored, read and written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import local, sources, values
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import prompt_lengths
from alt_jax.data.protocols import SPLITS

FIELDS = (
    FieldConfig("user"),
    FieldConfig("item"),
    FieldConfig("city"),
    FieldConfig("price", kind="numeric", bins=4),
    FieldConfig("tags", kind="multi", slots=3),
    FieldConfig("before", kind="sequence", of="item", spelled="city", slots=2, outcome="any"),
    FieldConfig("story", kind="text"),
)


def clicks(count: int = 203) -> pa.Table:
    """A click log of all kinds of columns, with nulls, in no order of time."""
    rng = np.random.default_rng(0)
    city = [None if c == 5 else f"City-{c}" for c in rng.integers(0, 6, count)]
    return pa.table(
        {
            "user": rng.integers(0, 17, count),
            "item": [f"i{n}" for n in rng.integers(0, 40, count)],
            "city": pa.array(city, pa.string()),
            "price": rng.integers(0, 30, count) / 4,
            "tags": ["|".join(f"t{t}" for t in rng.integers(0, 9, rng.integers(0, 5))) for _ in range(count)],
            "story": [f"once, in {year}" for year in rng.integers(1990, 2000, count)],
            "when": rng.integers(0, 90, count),
            "label": rng.integers(0, 2, count),
        }
    )


def config(raw: Path, folder: Path, protocol: str) -> Config:
    data = DataConfig(
        raw=str(raw), dir=str(folder), protocol=protocol, fields=FIELDS, user="user", item="item", timestamp="when"
    )
    return Config(data=data, text=TextConfig(vocab_size=120, max_length=96))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a dataset but its config, which says where it lies."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["config.json"]
    return files


@pytest.mark.parametrize("protocol", ["time", "random", "time_skip5", "cold_items"])
def test_the_dataset_is_the_same_in_parts_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str):
    table, parts = clicks(), tmp_path / "parts"
    pq.write_table(table, tmp_path / "whole.parquet")
    whole = prepare(config(tmp_path / "whole.parquet", tmp_path / "whole", protocol))

    monkeypatch.setattr(local, "_CHUNK", 3)
    monkeypatch.setattr(values, "_CHUNK", 5)
    pq.write_table(table, tmp_path / "groups.parquet", row_group_size=7)
    parts.mkdir()
    for number in range(3):
        pq.write_table(table.slice(80 * number, 80), parts / f"part-{number}.parquet", row_group_size=11)
    pa.csv.write_csv(table, tmp_path / "rows.csv")
    for name in ("groups.parquet", "parts", "rows.csv"):
        other = prepare(config(tmp_path / name, tmp_path / "other", protocol))
        assert contents(other.folder) == contents(whole.folder), name


def test_what_is_written_in_parts_is_what_numpy_would_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "_CHUNK", 8)
    pq.write_table(clicks(), tmp_path / "t.parquet")
    dataset = prepare(config(tmp_path / "t.parquet", tmp_path / "out", "random"))
    lengths = []
    for name in SPLITS:
        part = np.asarray(dataset.split(name).values)
        np.save(tmp_path / "again.npy", part)
        assert (tmp_path / "again.npy").read_bytes() == (
            tmp_path / "out" / name / "values-00000-of-00001.npy"
        ).read_bytes()
        lengths.append(prompt_lengths(dataset.pieces, part, dataset.schema.widths).max())
    assert dataset.schema.text.length == max(lengths)
    assert Dataset.load(tmp_path / "out").schema == dataset.schema


def test_parquet_columns_are_read_one_by_one_when_asked_for(tmp_path: Path):
    pq.write_table(clicks(), tmp_path / "t.parquet")
    raw = sources.load(config(tmp_path / "t.parquet", tmp_path / "out", "random").data)
    assert raw.table.num_rows == 203
    (tmp_path / "t.parquet").rename(tmp_path / "moved.parquet")
    with pytest.raises(sources.table.InputError, match="does not exist"):
        raw.table["item"]
    (tmp_path / "moved.parquet").rename(tmp_path / "t.parquet")
    assert raw.table["item"] == clicks()["item"].dictionary_encode()
