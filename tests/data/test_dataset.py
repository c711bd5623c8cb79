"""The prepared folder: loading, damage, and encoding of new rows."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data.dataset import Dataset, Encoder, copy_encoder, encode
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import compose, prompt_lengths, sentence
from alt_jax.data.protocols import SPLITS
from alt_jax.data.tokenizer import load_tokenizer
from alt_jax.errors import InputError

Damage = Callable[[Path], object]
VALUES, ROWS = "values-00000-of-00001.npy", "rows-00000-of-00001.npy"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    rows = "".join(f"{i % 4},item number {i % 7},{i % 2}\n" for i in range(60))
    (folder / "t.csv").write_text("who,what,label\n" + rows, encoding="utf-8")
    data = DataConfig(
        raw=str(folder / "t.csv"),
        dir=str(folder / "out"),
        fields=(FieldConfig("who", "Who"), FieldConfig("what", "What")),
    )
    return prepare(Config(data=data, text=TextConfig(vocab_size=80, max_length=24)))


def test_loading_gives_what_was_prepared(prepared: Dataset):
    again = Dataset.load(str(prepared.folder))
    assert again.schema == prepared.schema
    assert isinstance(again.train.values.base, np.memmap)
    assert (again.train.values == prepared.train.values).all()
    assert again.split("test").rows.tolist() == prepared.test.rows.tolist()
    with pytest.raises(InputError, match="No split 'dev'"):
        again.split("dev")
    counts = again.feature_counts()
    assert counts.shape == (again.schema.num_ids,)
    assert counts[:2].tolist() == [0, 0]
    features = again.pieces.feature[again.train.values]
    assert counts.tolist() == np.bincount(features.ravel(), minlength=again.schema.num_ids).tolist()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: (d / "schema.json").unlink(), "schema.json does not exist; run `alt-jax prepare`"),
        (lambda d: (d / "schema.json").write_text("{}"), "schema.json is not a schema of format"),
        (lambda d: relabel(d / "schema.json"), "schema.json is of format 3, not 4; prepare again"),
        (lambda d: (d / "pieces.npz").unlink(), "lacks pieces.npz"),
        (lambda d: (d / "config.json").unlink(), "lacks config.json, .* prepare again"),
        (lambda d: shutil.rmtree(d / "tokenizer"), "lacks tokenizer"),
        (lambda d: shutil.rmtree(d / "valid"), "lacks valid"),
        (lambda d: (d / "pieces.npz").write_bytes(b"PK"), "pieces.npz cannot be read"),
        (lambda d: (d / "test" / ROWS).unlink(), f"test/{ROWS} is missing; copy the dataset again, or prepare"),
        (lambda d: cut(d / "train" / VALUES), f"train/{VALUES} is cut short; copy"),
        (lambda d: short(d / "schema.json"), "schema.json has shards of test that do not add up"),
    ],
)
def test_damage_is_named(prepared: Dataset, tmp_path: Path, damage: Damage, problem: str):
    folder = shutil.copytree(prepared.folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(InputError, match=problem):
        Dataset.load(folder)


@pytest.mark.parametrize("part", ["values", "labels", "rows"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_changed_shard_is_named_when_its_split_is_first_asked_for(
    prepared: Dataset, tmp_path: Path, part: str, split: str
):
    folder = shutil.copytree(prepared.folder, tmp_path / "copy")
    path = folder / split / f"{part}-00000-of-00001.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    damaged = Dataset.load(folder)
    for name in SPLITS:
        if name != split:
            damaged.split(name)
    with pytest.raises(InputError, match=rf"{split}/{path.name} is not as it was prepared .*; copy the dataset again"):
        damaged.split(split)


def relabel(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace('"version": 4', '"version": 3'), encoding="utf-8")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def short(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    schema["splits"]["test"]["shards"][0]["rows"] -= 1
    path.write_text(json.dumps(schema), encoding="utf-8")


def test_known_rows_encode_to_the_prepared_ones(prepared: Dataset):
    raw = pa.table({"what": [f"item number {i % 7}" for i in range(60)], "who": [str(i % 4) for i in range(60)]})
    values, pieces = encode(prepared, raw)
    for part in (prepared.train, prepared.valid, prepared.test):
        assert (values[part.rows] == part.values).all()
    known = len(prepared.pieces.feature)
    assert len(pieces.feature) == known
    text = prepared.schema.text
    before = compose(prepared.pieces, np.asarray(prepared.test.values), length=text.length, pad_id=text.pad_id)
    after = compose(pieces, values[prepared.test.rows], length=text.length, pad_id=text.pad_id)
    assert (before.tokens == after.tokens).all()
    assert (before.field == after.field).all()


def test_new_strings_keep_their_text_and_get_the_out_of_vocabulary_id(prepared: Dataset):
    raw = pa.table({"who": [9, 1, None, 9], "what": ["item é", "item number 1", "item é", "long " * 50]})
    values, pieces = encode(prepared, raw)
    schema = prepared.schema
    offsets = [f.offset for f in schema.fields]
    features = pieces.feature[values]
    assert features[0].tolist() == features[2].tolist() == features[3].tolist() == offsets
    assert (features[1] > offsets).all()
    assert values[0, 0] == values[3, 0] != values[2, 0]
    text = schema.text
    lengths = prompt_lengths(pieces, values)
    assert lengths.max() <= text.max_length
    prompt = compose(pieces, values, length=text.max_length, pad_id=text.pad_id)
    tokenizer = load_tokenizer(str(prepared.folder / "tokenizer"))
    for row, strings in enumerate([("9", "item é"), ("1", "item number 1"), ("", "item é")]):
        assert prompt.tokens[row][prompt.mask[row]].tolist() == tokenizer(sentence(schema.names, strings)).input_ids


def test_a_value_is_looked_up_where_it_stands(prepared: Dataset):
    """Against a dictionary a field, value by value, nulls and values unknown or only declared among them."""
    rng = np.random.default_rng(0)
    strings = ["0", "1", "2", "3", "new", "newer", "never used"]
    who = pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, 6, 200), pa.int32()), pa.array(strings))
    what = [None if n == 7 else f"item number {n}" for n in rng.integers(0, 12, 200)]
    values, pieces = encode(prepared, pa.table({"who": who, "what": what}))
    vocabulary = prepared.vocabulary()
    known = {(f, v): i for i, (f, v) in enumerate(zip(vocabulary.field, vocabulary.value, strict=True))}
    new: dict[tuple[int, str], int] = {}
    for row, found in zip(zip(who.to_pylist(), what, strict=True), values.tolist(), strict=True):
        for f, (string, value) in enumerate(zip(row, found, strict=True)):
            key = f, string or ""
            assert value == (known[key] if key in known else new.setdefault(key, value))
    assert sorted(new.values()) == list(range(len(known), len(known) + len(new)))
    assert (1, "") in new
    assert len(pieces.feature) == len(known) + len(new)


def test_new_strings_have_no_tokens_where_no_prompts_are_wanted(prepared: Dataset):
    raw = pa.table({"who": ["9", "1", None], "what": ["new", "item number 1", "newer"]})
    encoder = Encoder.load(prepared.folder)
    (values, pieces), (others, without) = encoder.encode(raw), encoder.encode(raw, prompts=False)
    assert (values == others).all()
    assert (pieces.feature == without.feature).all()
    assert (pieces.number == without.number).all()
    assert len(without.tokens) == len(prepared.pieces.tokens)


def test_encode_refuses_missing_columns(prepared: Dataset):
    with pytest.raises(InputError, match=r"rows.csv has no column 'who'; did you mean 'whom'"):
        encode(prepared, pa.table({"whom": ["1"], "what": ["x"]}), "rows.csv")


def test_no_rows_encode_to_no_rows(prepared: Dataset):
    values, _ = encode(prepared, pa.table({"who": pa.array([], pa.string()), "what": pa.array([], pa.string())}))
    assert values.shape == (0, 2)


def test_an_encoder_travels_without_the_rows(prepared: Dataset, tmp_path: Path):
    copy_encoder(prepared.folder, tmp_path / "export")
    raw = pa.table({"who": ["1", "77"], "what": ["item number 3", "new"]})
    there, here = Encoder.load(tmp_path / "export").encode(raw), encode(prepared, raw)
    assert (there[0] == here[0]).all()
    assert all((a == b).all() for a, b in zip(there[1], here[1], strict=True))


def test_another_datasets_vocabulary_is_refused(prepared: Dataset, tmp_path: Path):
    copy_encoder(prepared.folder, tmp_path / "export")
    vocabulary = prepared.vocabulary()
    dataclasses.replace(vocabulary, value=[f"{v}!" for v in vocabulary.value]).save(
        tmp_path / "export" / "vocabulary.parquet"
    )
    with pytest.raises(InputError, match="is not the vocabulary of"):
        Encoder.load(tmp_path / "export")
