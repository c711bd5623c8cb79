"""A missing user or item is nobody: it has no history, is in no group, and is no one that training has not seen."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax import evaluate, factors, metrics
from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare

ROWS = 300
HISTORY = FieldConfig("before", kind="sequence", of="item", slots=3, outcome="any", past="all")


def prepared(folder: Path, fields: tuple[FieldConfig, ...] = (), **data: object) -> Dataset:
    """Every other row has no user, every seventh no item; what a row's item is follows from its number."""
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "user": [None if n % 2 else f"u{random.integers(9)}" for n in range(ROWS)],
            "item": ["" if n % 7 == 0 else f"i{n % 11}" for n in range(ROWS)],
            "at": np.arange(ROWS),
            "label": random.integers(0, 2, ROWS),
        }
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "rows.parquet")
    values = {"source": "table", "raw": str(folder / "rows.parquet"), "dir": str(folder / "prepared"), "user": "user"}
    declared = (FieldConfig("user"), FieldConfig("item"), *fields)
    text = TextConfig(vocab_size=128, hidden=16, layers=1, heads=2, intermediate=16, max_length=64)
    return prepare(Config(data=DataConfig(**(values | {"item": "item", "fields": declared} | data)), text=text))


def strings(dataset: Dataset, split: str, name: str) -> list[list[str]]:
    """The values of a field in every row of a split."""
    value, slot = dataset.vocabulary().value, dataset.schema.slot(name)
    width = dataset.schema.widths[dataset.schema.index(name)]
    rows = np.asarray(dataset.split(split).values[:, slot : slot + width])
    return [[value[v] for v in row if v >= 0] for row in rows]


def test_nobody_has_a_history(tmp_path: Path):
    dataset = prepared(tmp_path, (HISTORY,), protocol="time", timestamp="at")
    for split in ("train", "valid", "test"):
        users, histories = (strings(dataset, split, name) for name in ("user", "before"))
        assert all(history == [""] for (user,), history in zip(users, histories, strict=True) if not user)
        if split != "train":
            assert all(len(history) == 3 for (user,), history in zip(users, histories, strict=True) if user)


def test_protocols_take_nobody_for_no_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    skipped = prepared(tmp_path, protocol="time_skip5", timestamp="at")
    assert "150 dropped: without a user, of whom nothing earlier is known" in capsys.readouterr().out
    assert not skipped.nobody.get("user")
    cold = prepared(tmp_path, protocol="cold_users", dir=str(tmp_path / "cold"))
    for split, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        missing = int((cold.entity(split, "user") < 0).sum())
        assert abs(missing - 150 * share) < 20  # each row by itself
    said = capsys.readouterr().out
    assert "rows without a user, who are nobody's:" in said
    users = [{user for (user,) in strings(cold, split, "user") if user} for split in ("train", "valid", "test")]
    assert not users[0] & (users[1] | users[2])


def test_nobody_is_in_no_group_and_not_unseen(tmp_path: Path):
    dataset = prepared(tmp_path)
    label = np.asarray(dataset.test.labels)
    score = np.random.default_rng(1).random(len(label))
    user = np.array([name for (name,) in strings(dataset, "test", "user")])
    somebody = user != ""
    found = evaluate.report(dataset, "test", score)
    by_user = np.unique(user[somebody], return_inverse=True)[1]
    assert found["gauc"] == pytest.approx(metrics.gauc(label[somebody], score[somebody], by_user))
    assert found["unseen_user_rows"] == 0
    assert found["unseen_item_rows"] == 0


def test_nobody_is_in_no_pair(tmp_path: Path):
    dataset = prepared(tmp_path)
    ids, _ = factors.factors(dataset, 4)
    vocabulary = dataset.vocabulary()
    nobody = {int(vocabulary.feature[dataset.nobody[what]]) for what in ("user", "item")}
    assert not nobody & set(ids.tolist())
    known = {int(f) for f, value in zip(vocabulary.feature, vocabulary.value, strict=True) if value}
    assert set(ids.tolist()) <= known


def test_rows_without_a_user_are_negatives_of_each_other(tmp_path: Path):
    from alt_jax import bridge
    from alt_jax.pretraining import Pretrain

    dataset = prepared(tmp_path)
    config = Config().override({"icl.leave_out": ("user",), "text.hidden": 16, "text.layers": 1, "text.heads": 2})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(dataset.folder)))
    task = Pretrain.build(config, dataset, bridge.encoder_config(config.text, dataset.schema))
    values = np.asarray(dataset.train.values[:64])
    apart = np.asarray(task.apart(jnp.asarray(values)))[:, 0]
    user = np.array([name for (name,) in strings(dataset, "train", "user")])[:64]
    same = apart[:, None] == apart[None]
    expected = (user[:, None] == user[None]) & (user != "")[:, None] | np.eye(64, dtype=bool)
    np.testing.assert_array_equal(same, expected)


def test_no_history_holds_a_missing_item(tmp_path: Path):
    dataset = prepared(tmp_path, (HISTORY,), protocol="time", timestamp="at")
    histories = [history for split in ("train", "valid", "test") for history in strings(dataset, split, "before")]
    assert all(history == [""] or "" not in history for history in histories)
    vocabulary = dataset.vocabulary()
    own = [value for f, value in zip(vocabulary.field, vocabulary.value, strict=True) if f == 2]
    assert len(own) == len(set(own))  # the empty history is the one empty string
