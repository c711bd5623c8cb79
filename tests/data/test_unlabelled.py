"""Rows without a label beside those with one: what of them is kept, and who sees them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from alt_jax import recipe, stages
from alt_jax.cli import run
from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data.dataset import Dataset
from alt_jax.data.labelled import labelled
from alt_jax.data.prepare import prepare
from alt_jax.data.prepared_config import check_prepared
from alt_jax.data.protocols import UNLABELLED
from alt_jax.errors import InputError

ROWS, MORE = 300, 120
FIELDS = (FieldConfig("user"), FieldConfig("item"), FieldConfig("price", kind="numeric", bins=4))


def table(rows: int, seed: int, users: range, first: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "user": random.integers(users.start, users.stop, rows),
            "item": [f"i{n}" for n in random.integers(0, 12, rows)],
            "price": random.random(rows).round(3),
            "when": random.permutation(rows) + first,
            "click": random.integers(0, 2, rows),
        }
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """300 rows of users 0 to 19; 120 of users 10 to 29 without a label, as late as the others."""
    pq.write_table(table(ROWS, 0, range(20)), tmp_path / "rows.parquet")
    more = table(MORE, 1, range(10, 30), first=150).drop_columns(["click"])
    pq.write_table(more, tmp_path / "more.parquet")
    data = DataConfig(
        raw=str(tmp_path / "rows.parquet"),
        unlabelled=str(tmp_path / "more.parquet"),
        dir=str(tmp_path / "data"),
        fields=FIELDS,
        label="click",
        timestamp="when",
        user="user",
        item="item",
        shard_rows=100,
    )
    return Config(data=data, text=TextConfig(vocab_size=200, max_length=64))


def strings(dataset: Dataset, split: str, field: int) -> list[str]:
    rows = dataset.split(split)
    return [dataset.vocabulary().value[value] for value in np.asarray(rows.values)[:, field]]


def test_they_are_trained_on_and_never_held_out(config):
    dataset = prepare(config)
    part = dataset.schema.splits["train"]
    assert (part.rows, part.unlabelled, part.labelled) == (240 + MORE, MORE, 240)
    assert [dataset.schema.splits[name].unlabelled for name in ("valid", "test")] == [0, 0]
    labels = np.asarray(dataset.train.labels)
    assert (labels[:240] != UNLABELLED).all()
    assert (labels[240:] == UNLABELLED).all()
    assert part.positives == (labels == 1).sum()
    more = pq.read_table(config.data.unlabelled)
    assert strings(dataset, "train", 0)[240:] == [str(user) for user in more["user"].to_pylist()]
    assert strings(dataset, "train", 1)[240:] == more["item"].to_pylist()
    np.testing.assert_array_equal(np.asarray(dataset.train.rows)[240:], ROWS + np.arange(MORE))
    # A user whom no labelled row has is known all the same, and counted.
    vocabulary = dataset.vocabulary()
    place = [*zip(vocabulary.field.tolist(), vocabulary.value, strict=True)].index((0, "29"))
    assert vocabulary.feature[place] > dataset.schema.fields[0].offset
    assert vocabulary.count[place] == more["user"].to_pylist().count(29)


def test_without_them_the_labelled_rows_are_split_as_before(config):
    both = prepare(config)
    alone = prepare(config.override({"data.unlabelled": "", "data.dir": f"{config.data.dir}-alone"}))
    for name, number in (("train", 240), ("valid", 30), ("test", 30)):
        np.testing.assert_array_equal(both.split(name).rows[:number], alone.split(name).rows[:])
        np.testing.assert_array_equal(both.split(name).labels[:number], alone.split(name).labels[:])


def test_in_order_of_time_none_is_newer_than_training(config, capsys):
    dataset = prepare(config.override({"data.protocol": "time"}))
    first, more = (np.asarray(pq.read_table(path)["when"]) for path in (config.data.raw, config.data.unlabelled))
    newest = np.sort(first)[239]
    kept = np.flatnonzero(more <= newest)
    np.testing.assert_array_equal(np.asarray(dataset.train.rows)[240:], ROWS + kept)
    assert 0 < len(kept) < MORE
    said = capsys.readouterr()
    assert f"{MORE - len(kept)} dropped: without a label, newer than training" in said.out + said.err
    assert f"240 rows  {dataset.schema.splits['train'].positives / 240:.4f} positive" in said.out + said.err
    assert f"and {len(kept)} without a label" in said.out + said.err


@pytest.mark.parametrize(("protocol", "field"), [("cold_items", 1), ("cold_users", 0)])
def test_no_held_out_entity_is_learned_from_them(config, protocol, field):
    dataset = prepare(config.override({"data.protocol": protocol}))
    assert 0 < dataset.schema.splits["train"].unlabelled < MORE
    seen = set(strings(dataset, "train", field))
    for split in ("valid", "test"):
        assert not seen & set(strings(dataset, split, field))


def test_a_history_holds_none_of_them(config):
    before = FieldConfig("before", kind="sequence", of="item", slots=300, outcome="any")
    not_clicked = FieldConfig("passed", kind="sequence", of="item", slots=300, outcome="negative", past="all")
    fields = (*FIELDS, before, not_clicked)
    config = Config(data=Config().data.__class__(**{**vars(config.data), "protocol": "time", "fields": fields}))
    dataset = prepare(config.override({"text.vocab_size": 200, "text.max_length": 2000}))
    table, at = pq.read_table(config.data.raw), sum(dataset.schema.widths[:3])
    rows = {name: np.asarray(table[name].to_pylist()) for name in ("user", "when", "click")}
    values, numbers = np.asarray(dataset.train.values), np.asarray(dataset.train.rows)
    strings = dataset.vocabulary().value
    for which in (1, 100, 200):  # rows that have a label
        row = numbers[which]
        earlier = (rows["user"] == rows["user"][row]) & (rows["when"] < rows["when"][row])
        held = [strings[value] for value in values[which, at:] if value >= 0 and strings[value]]
        assert len(held) == earlier.sum() + (earlier & (rows["click"] == 0)).sum()


def test_times_of_both_are_of_one_kind(config, tmp_path):
    more = pq.read_table(config.data.unlabelled)
    stamps = pa.array((np.arange(MORE) * 10**6).astype("datetime64[us]"))
    pq.write_table(more.set_column(more.column_names.index("when"), "when", stamps), tmp_path / "stamps.parquet")
    said = r"'when' holds numbers in .*rows\.parquet and times in .*stamps\.parquet; write both alike"
    with pytest.raises(InputError, match=said):
        prepare(config.override({"data.unlabelled": str(tmp_path / "stamps.parquet")}))


def test_a_dataset_that_was_prepared_without_them_is_refused(config):
    prepare(config.override({"data.unlabelled": ""}))
    with pytest.raises(InputError, match=r"was prepared with data\.unlabelled = '', not"):
        check_prepared(config)
    prepare(config)
    check_prepared(config.override({"data.unlabelled": ""}))
    check_prepared(config.override({"data.unlabelled": "moved.parquet"}))


def test_a_csv_beside_a_csv(config, tmp_path):
    for name in ("raw", "unlabelled"):
        pa.csv.write_csv(pq.read_table(getattr(config.data, name)), tmp_path / f"{name}.csv")
    values = {f"data.{name}": str(tmp_path / f"{name}.csv") for name in ("raw", "unlabelled")}
    columns, text = (
        prepare(config.override({"data.dir": str(tmp_path / where), **changed}))
        for where, changed in (("one", {}), ("other", values))
    )
    assert columns.schema.data_hash == text.schema.data_hash


def test_finetuning_does_not_see_them(config):
    dataset = prepare(config)
    part = dataset.schema.splits["train"]
    for share, number in ((1.0, 240), (0.5, 120), (7, 7)):
        rows = labelled(dataset.train, share, 0, part.unlabelled)
        assert len(rows.labels) == number
        assert (np.asarray(rows.labels) < UNLABELLED).all()
    with pytest.raises(InputError, match="asks for 241 of 240 labelled training rows"):
        labelled(dataset.train, 241, 0, part.unlabelled)


def test_a_run_on_both(config, tmp_path, monkeypatch):
    """Pretraining goes through all rows, finetuning through those that have a label."""
    seen = []

    def stopped(*given: object, **_: object) -> None:
        seen.append(given[4])
        raise EnoughError

    monkeypatch.setattr(stages, "train", stopped)
    prepare(config)
    for number, stage in enumerate((stages.pretrain, lambda *given: stages.finetune(given[0], "ctr", None, given[1]))):
        with pytest.raises(EnoughError):
            stage(config.override({"pretrain.batch_size": 16}), tmp_path / f"run-{number}")
    assert [len(rows.labels) for rows in seen] == [240 + MORE, 240]
    assert recipe.finetuning(config, "ctr", 240, False).finetune.ctr.batch_size <= 240


class EnoughError(Exception):
    """Raised in place of training."""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unlabelled": "nowhere.parquet"}, r"nowhere\.parquet"),
        ({"unlabelled": "lacks.csv"}, r"lacks\.csv has no column 'item'"),
        ({"unlabelled": "other.parquet"}, r"Column 'user' holds lists in .*other\.parquet and single values in .*rows"),
        ({"source": "movielens_100k", "fields": (), "label": "label", "timestamp": None, "user": None, "item": None},
         r"data\.unlabelled is for own tables"),
    ],
)  # fmt: skip
def test_refused(config, tmp_path, changed, said):
    more = pq.read_table(config.data.unlabelled)
    pa.csv.write_csv(more.drop_columns(["item"]), tmp_path / "lacks.csv")
    lists = pa.array([[1]] * MORE, pa.list_(pa.int64()))
    pq.write_table(more.set_column(0, "user", lists), tmp_path / "other.parquet")
    if name := changed.get("unlabelled"):
        changed = {"unlabelled": str(tmp_path / name)}
    data = config.data.__class__(**{**vars(config.data), **changed})
    with pytest.raises(InputError, match=said):
        prepare(Config(data=data, text=config.text))


def test_a_missing_column_is_told_before_anything_is_read(config, tmp_path, capsys):
    pa.csv.write_csv(pq.read_table(config.data.unlabelled).drop_columns(["price"]), tmp_path / "lacks.csv")
    file = tmp_path / "config.py"
    file.write_text(
        f"from alt_jax.config import Config\ndef get_config():\n    return Config.from_json({config.to_json()!r}, '')\n"
    )
    assert run(["prepare", str(file), "--data.unlabelled", str(tmp_path / "lacks.csv")]) == 2
    assert "has no column 'price'" in capsys.readouterr().err
