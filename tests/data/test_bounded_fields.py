"""Fields whose ids are bounded, by a cap or by hashing, against counting and hashing by hand."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax import evaluate
from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data.dataset import Dataset, encode
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import feature_ids
from alt_jax.data.spelling import hashes
from alt_jax.errors import InputError

ROWS, BUCKETS = 300, 5
USER, ITEM, GENRE = FieldConfig("user"), FieldConfig("item"), FieldConfig("genre", kind="multi", slots=2)
LIKED = FieldConfig("liked", kind="sequence", of="item", slots=3)


def clicks() -> pa.Table:
    """Users and items of every popularity, missing ones among them; genres in pairs."""
    rng = np.random.default_rng(6)
    user, item = rng.integers(0, 40, ROWS), np.minimum(rng.geometric(0.15, ROWS), 20)
    return pa.table(
        {
            "user": pa.array([None if u == 7 else f"u{u}" for u in user]),
            "item": [f"i{i}" for i in item],
            "genre": [f"kind {i % 7}|kind {i % 3}" if i % 5 else "" for i in item],
            "time": rng.integers(0, 100, ROWS),
            "label": (rng.random(ROWS) < 0.5).astype(int),
        }
    )


def prepared(folder: Path, table: pa.Table, *fields: FieldConfig, protocol: str = "time") -> Dataset:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "rows.parquet")
    data = DataConfig(
        raw=str(folder / "rows.parquet"),
        dir=str(folder / "prepared"),
        fields=fields,
        protocol=protocol,
        timestamp="time",
        user="user",
        item="item",
        min_count=2,
    )
    return prepare(Config(data=data, text=TextConfig(vocab_size=200, max_length=64)))


def bucket(value: str | None, buckets: int) -> str:
    digest = hashlib.blake2b((value or "").encode(), digest_size=8).digest()
    return str(int.from_bytes(digest, "little") % buckets) if value else ""


def hashes_of(dataset: Dataset) -> dict[str, str]:
    return {name: split.hash for name, split in dataset.schema.splits.items()}


def buckets_of(values: Iterable[str | None]) -> list[str]:
    return [bucket(value, BUCKETS) for value in values]


@pytest.fixture
def hashed(tmp_path: Path) -> Dataset:
    fields = (dataclasses.replace(field, hash_buckets=BUCKETS) for field in (USER, ITEM, GENRE))
    return prepared(tmp_path / "hashed", clicks(), *fields, LIKED)


def test_the_hash_is_that_of_everyone():
    """`printf abc | b2sum -l 64`"""
    said = ["e4a6a0577479b2b4", "d8bb14d833d59559", "707438faa779d508"]
    assert [int(h).to_bytes(8, "little").hex() for h in hashes(["", "abc", "Zürich"])] == said
    assert hashes(["abc"], seed=1) != hashes(["abc"])
    assert hashes([]).shape == (0,)


def test_a_cap_keeps_the_most_frequent_values_of_training(tmp_path: Path):
    table = clicks()
    capped = dataclasses.replace(ITEM, max_ids=4), dataclasses.replace(GENRE, max_ids=3)
    dataset = prepared(tmp_path / "capped", table, USER, *capped, LIKED)
    whole = prepared(tmp_path / "whole", table, USER, ITEM, GENRE, LIKED)
    vocabulary = dataset.vocabulary()
    for f, (column, most) in enumerate((("item", 4), ("genre", 3)), start=1):
        rows = [table[column][row].as_py() for row in dataset.train.rows.tolist()]
        counts = Counter(value for row in rows for value in row.split("|"))
        best = sorted(counts, key=lambda value: (-counts[value], value))[:most]
        field = dataset.schema.fields[f]
        ids = {v: i for g, v, i in zip(vocabulary.field, vocabulary.value, vocabulary.feature, strict=True) if g == f}
        assert {value: i - field.offset for value, i in ids.items() if i > field.offset} == {
            value: i for i, value in enumerate(best, start=1)
        }
        assert field.size == 1 + most < len(counts)
    # What is beyond the cap keeps its words: no value id moves, in a history neither.
    assert vocabulary.value == whole.vocabulary().value
    for name in ("train", "valid", "test"):
        assert (dataset.split(name).values == whole.split(name).values).all()
    assert dataset.schema.fields[3].size == 5


def test_a_cap_that_nothing_exceeds_changes_nothing(tmp_path: Path):
    whole = prepared(tmp_path / "whole", clicks(), USER, ITEM)
    capped = prepared(tmp_path / "capped", clicks(), USER, dataclasses.replace(ITEM, max_ids=1000))
    assert capped.schema == whole.schema


@pytest.mark.parametrize("columns", [("user", "item", "genre"), ("item", "genre", "liked")])
def test_a_hashed_column_is_a_column_of_buckets(tmp_path: Path, columns: tuple[str, ...]):
    """Not with both the user and a history: whose history it is, the ids say and not their buckets."""
    table = clicks()
    fields = (USER, ITEM, GENRE, LIKED)[: 4 if "liked" in columns else 3]
    own = {field.column: field.column in columns and field.kind != "sequence" for field in fields}
    hashed = prepared(
        tmp_path / "hashed",
        table,
        *(dataclasses.replace(f, hash_buckets=BUCKETS) if own[f.column] else f for f in fields),
    )
    for column in filter(own.get, own):
        strings = ["|".join(buckets_of((value or "").split("|"))) for value in table[column].to_pylist()]
        table = table.set_column(table.column_names.index(column), column, pa.array(strings))
    byhand = prepared(tmp_path / "byhand", table, *fields)
    for entry in ("vocabulary.parquet", "pieces.npz", "tokenizer/tokenizer.json"):
        assert (hashed.folder / entry).read_bytes() == (byhand.folder / entry).read_bytes()
    assert hashed.schema.data_hash == byhand.schema.data_hash
    assert [bool(field.hash_buckets) for field in hashed.schema.fields] == [f.column in columns for f in fields]
    assert hashed.schema.fields[1].size == 1 + BUCKETS
    assert hashed.schema.splits == byhand.schema.splits
    assert hashed.schema.fingerprint != byhand.schema.fingerprint  # or a model would read raw ids where buckets were


def test_raw_rows_are_hashed_as_prepared_and_new_values_fall_into_buckets(hashed: Dataset):
    table, items = clicks(), clicks()["item"].to_pylist()
    value = hashed.vocabulary().value
    item_slot, liked_slot = hashed.schema.slot("item"), hashed.schema.slot("liked")
    histories = [["i1", "i3"]] * ROWS
    values, pieces = encode(hashed, table.append_column("liked", pa.array(histories)))
    for part in (hashed.train, hashed.valid, hashed.test):
        assert (values[part.rows, :liked_slot] == part.values[:, :liked_slot]).all()
    assert [value[v] for v in values[:, item_slot]] == buckets_of(items)
    assert [value[v] for v in values[0, liked_slot : liked_slot + 2]] == buckets_of(["i1", "i3"])

    new = {"user": ["nobody", None], "item": ["never", "seen"], "genre": ["a|b", ""], "liked": ["never|i1", ""]}
    values, pieces = encode(hashed, pa.table(new))
    assert len(pieces.feature) == len(value)  # so there is nothing new
    assert [[value[v] for v in row if v >= 0] for row in values.tolist()] == [
        buckets_of(["nobody", "never", "a", "b", "never", "i1"]),
        ["", bucket("seen", BUCKETS), "", ""],
    ]
    assert (feature_ids(pieces, values)[:, 0] > hashed.schema.fields[0].offset).all()
    assert hashed.schema.fields[0].size == 1 + BUCKETS + 1  # out of vocabulary, buckets, missing


def test_a_protocol_goes_by_ids_and_not_by_buckets(tmp_path: Path):
    field = dataclasses.replace(USER, hash_buckets=BUCKETS)
    for protocol in ("cold_users", "time_skip5"):
        hashed = prepared(tmp_path / "hashed", clicks(), field, ITEM, protocol=protocol)
        plain = prepared(tmp_path / "plain", clicks(), USER, ITEM, protocol=protocol)
        assert hashes_of(hashed) == hashes_of(plain)


def test_what_cannot_be_told_of_buckets_is_not(tmp_path: Path, hashed: Dataset):
    field = dataclasses.replace(USER, hash_buckets=BUCKETS)
    by_user = prepared(tmp_path / "user", clicks(), field, ITEM)
    score = np.linspace(0.1, 0.9, len(by_user.test.labels))
    found = evaluate.report(by_user, "test", score)
    assert np.isnan(found["gauc"])
    assert "unseen_item_auc" in found
    assert "unseen_user_auc" not in found
    assert by_user.schema.user == "user"  # it is still the user's field
    assert hashed.schema.entities == {}


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"max_ids": 3, "hash_buckets": 5}, "hash_buckets of field 'x' bound its ids already; leave max_ids out"),
        ({"max_ids": 3, "kind": "numeric"}, "max_ids of field 'x' has no effect on kind 'numeric'"),
        ({"hash_buckets": 3, "kind": "text"}, "hash_buckets of field 'x' has no effect on kind 'text'"),
        ({"hash_buckets": 3, "kind": "sequence"}, "hash_buckets of field 'x' has no effect on kind 'sequence'"),
        ({"max_ids": -1}, "greater than or equal to 0"),
    ],
)
def test_bounds_without_a_meaning_are_refused(field: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        FieldConfig("x", **field)


def test_a_bucket_has_no_title(tmp_path: Path):
    fields = (USER, dataclasses.replace(ITEM, hash_buckets=3), GENRE, dataclasses.replace(LIKED, spelled="genre"))
    with pytest.raises(InputError, match="'liked' is spelled by column 'genre', but its items are hashed"):
        prepared(tmp_path, clicks(), *fields)


def test_the_schema_says_how_a_field_is_hashed(hashed: Dataset):
    stored = json.loads((hashed.folder / "schema.json").read_text(encoding="utf-8"))
    assert [field["hash_buckets"] for field in stored["fields"]] == [BUCKETS] * 4
