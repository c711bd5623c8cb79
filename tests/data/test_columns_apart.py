"""Columns that need not be inputs: users and items that are no field, and fields that the prompt does not spell."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax import bridge, evaluate, masking, metrics
from alt_jax.config import Config, DataConfig, FieldConfig, MaskConfig, TextConfig
from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.online import OnlineEncoder
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import compose, sentence
from alt_jax.errors import InputError
from alt_jax.pretraining import Pretrain

ROWS = 240
FIELDS = (
    FieldConfig("cookie", in_prompt=False),
    FieldConfig("age", "Age", kind="numeric"),
    FieldConfig("genres", "Genres", kind="multi", slots=3),
    FieldConfig("codes", kind="multi", slots=2, in_prompt=False),
    FieldConfig("title", "Title", kind="text"),
    FieldConfig("seen", "Seen", kind="sequence", of="cookie", slots=2, outcome="any"),
)


def table() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "cookie": [f"c{n % 17}" for n in range(ROWS)],
            "age": random.integers(0, 60, ROWS),
            "genres": [["drama", "war", "noir"][: n % 4] for n in range(ROWS)],
            "codes": [["x", "y"][: n % 3] for n in range(ROWS)],
            "title": [f"The film {n % 9}" for n in range(ROWS)],
            "who": [f"u{random.integers(12)}" for _ in range(ROWS)],
            "what": [f"i{random.integers(20)}" for _ in range(ROWS)],
            "at": np.arange(ROWS),
            "label": random.integers(0, 2, ROWS),
        }
    )


def config_of(folder: Path, **data: object) -> Config:
    values = {"fields": FIELDS, "user": "who", "item": "what", "timestamp": "at", "protocol": "time", **data}
    return Config(
        data=DataConfig(raw=str(folder / "rows.parquet"), dir=str(folder / "prepared"), **values),
        text=TextConfig(vocab_size=200, hidden=16, layers=1, heads=2, intermediate=16, dropout=0.0, max_length=64),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Dataset]:
    folder = tmp_path_factory.mktemp("apart")
    pq.write_table(table(), folder / "rows.parquet")
    config = config_of(folder)
    return config, prepare(config)


def test_prompts_spell_what_is_in_them_as_the_tokenizer_does(prepared: tuple[Config, Dataset]):
    _, dataset = prepared
    encoder = Encoder.load(dataset.folder)
    online, schema = OnlineEncoder(encoder), dataset.schema
    raw = table().append_column("seen", pa.array([[]] * ROWS, pa.list_(pa.string())))
    new = raw.set_column(0, "cookie", pa.array(["new"] * ROWS)).set_column(4, "title", pa.array(["Another"] * ROWS))
    for rows in (raw, new, new.drop_columns(["who", "what"])):
        names = ["Age", "Genres", "Title", "Seen"]
        lists = [
            [str(row["age"]), row["genres"] or [""], row["title"], row["seen"] or [""]] for row in rows.to_pylist()
        ]
        expected = [encoder.tokenizer(sentence(names, values)).input_ids for values in lists]
        for values, pieces in (encoder.encode(rows), online.encode(online.spell(rows, "rows"))):
            prompt = compose(pieces, values, length=64, pad_id=0, widths=schema.widths)
            found = [list(tokens[real]) for tokens, real in zip(prompt.tokens, prompt.mask, strict=True)]
            assert found == expected


def test_users_and_items_that_are_no_fields_are_told_apart(prepared: tuple[Config, Dataset]):
    _, dataset = prepared
    schema = dataset.schema
    assert (schema.user, schema.item) == ("who", "what")
    assert "who" not in schema.columns
    assert list(schema.columns_of("ctr")) == ["cookie", "age", "genres", "codes", "seen"]
    assert list(schema.columns_of("plm")) == ["age", "genres", "title", "seen"]
    assert [schema.fields[f].column for f in schema.tabular] == ["cookie", "age", "genres", "codes", "seen"]
    label, score = np.asarray(dataset.test.labels), np.random.default_rng(1).random(len(dataset.test.labels))
    user = np.unique(np.array(table()["who"].to_pylist())[dataset.test.rows], return_inverse=True)[1]
    assert evaluate.report(dataset, "test", score)["gauc"] == pytest.approx(metrics.gauc(label, score, user))


def test_histories_are_those_of_the_user(prepared: tuple[Config, Dataset]):
    _, dataset = prepared
    who, cookie = table()["who"].to_pylist(), table()["cookie"].to_pylist()
    slot, value = dataset.schema.slot("Seen"), dataset.vocabulary().value
    train = set(dataset.train.rows.tolist())
    for row, values in zip(dataset.test.rows.tolist(), np.asarray(dataset.test.values), strict=True):
        past = [cookie[r] for r in range(row - 1, -1, -1) if r in train and who[r] == who[row]][:2]
        assert [value[v] for v in values[slot : slot + 2] if v >= 0] == (past or [""])


@pytest.mark.parametrize("pairing", ["independent", "same", "complementary"])
def test_masks_draw_what_a_side_has(prepared: tuple[Config, Dataset], pairing: str):
    _, dataset = prepared
    schema = dataset.schema
    config = MaskConfig(rate=0.4, pairing=pairing)
    keys = (jax.random.key(0), jax.random.key(1))
    masks = masking.choose_masks(keys, 500, schema, config)
    prompt, ids = ([field.in_prompt for field in schema.fields], list(schema.tabular))
    assert np.asarray(masks.text).any(axis=0).tolist() == prompt
    assert np.flatnonzero(np.asarray(masks.table).any(axis=0)).tolist() == ids
    if pairing == "independent":
        assert (np.asarray(masks.text).sum(axis=1) == 1).all()  # of the four in the prompt
        assert (np.asarray(masks.table).sum(axis=1) == 2).all()


@pytest.mark.parametrize("pairing", ["independent", "same"])
def test_pretraining_learns_from_them(prepared: tuple[Config, Dataset], pairing: str):
    config, dataset = prepared
    config = dataclasses.replace(config, mask=MaskConfig(rate=0.4, pairing=pairing))
    task = Pretrain.build(config, dataset, bridge.encoder_config(config.text, dataset.schema))
    params = task.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch_at(dataset.train, seed=0, step=0, batch_size=16))
    loss, found = task.loss(params, jax.tree.map(jnp.asarray, dataset.pieces), batch, jax.random.key(0), train=False)
    assert np.isfinite(loss)
    assert {"icl", "mlm", "mtm"} <= set(found)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ((FieldConfig("title", kind="text", in_prompt=False), FIELDS[1]), "so nothing reads it"),
        ((FIELDS[0],), "No field is in the prompt"),
    ],
)
def test_what_would_be_read_by_nobody_is_refused(tmp_path: Path, fields: tuple[FieldConfig, ...], problem: str):
    pq.write_table(table(), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=problem):
        prepare(config_of(tmp_path, fields=fields))
    with pytest.raises(InputError, match="has no column 'woh'; did you mean 'who'"):
        prepare(config_of(tmp_path, user="woh"))
