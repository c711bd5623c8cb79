"""`prepare` end to end on small data: properties of what it writes, its report, and what it refuses."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from movielens_files import MOVIES, Raw, make_raw

from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import protocols, sources, storage
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.prepare import prepare
from alt_jax.data.prepared_config import check_prepared
from alt_jax.data.prompt import compose, sentence
from alt_jax.data.protocols import PROTOCOLS, SPLITS
from alt_jax.data.tokenizer import load_tokenizer
from alt_jax.errors import InputError
from alt_jax.schema import FIRST_FIELD_ID

MakeConfig = Callable[..., Config]


@pytest.mark.parametrize("protocol", ["time", "random", "time_drop3", "random_drop3", "time_skip5"])
def test_prepared_rows_are_the_raw_rows(release: Raw, config: MakeConfig, tmp_path: Path, protocol: str):
    config_ = config(release.source, release.zip(tmp_path / "raw.zip"), protocol)
    dataset = prepare(config_)
    raw = sources.load(config_.data)
    split = protocols.apply(PROTOCOLS[protocol], raw)
    columns = [raw.table[f.column].to_pylist() for f in raw.fields]
    vocabulary = dataset.vocabulary()
    for name in SPLITS:
        part = dataset.split(name)
        assert part.rows.tolist() == split.rows[name].tolist()
        assert part.labels.tolist() == (release.ratings[part.rows, 2] > 3).astype(int).tolist()
        spelled = [[vocabulary.value[v] for v in row] for row in part.values]
        assert spelled == [[column[row] for column in columns] for row in part.rows]


def test_the_vocabulary_is_that_of_the_training_part(release: Raw, config: MakeConfig, tmp_path: Path):
    dataset = prepare(config(release.source, release.zip(tmp_path / "raw.zip"), "time", min_count=2))
    schema, vocabulary = dataset.schema, dataset.vocabulary()
    train = dataset.train.values
    expected_offset = FIRST_FIELD_ID
    seen_text = 0
    for f, field in enumerate(schema.fields):
        counts = Counter(train[:, f].tolist())
        mine = np.flatnonzero(vocabulary.field == f)
        assert field.offset == expected_offset
        expected_offset += field.size
        assert vocabulary.count[mine].tolist() == [counts[v] for v in mine]
        known = [v for v in mine if counts[v] >= 2]
        assert field.size == 1 + len(known)
        # Known values first, by descending count and then by string; their feature ids count upwards.
        assert known == mine[: len(known)].tolist()
        assert known == sorted(known, key=lambda v: (-counts[v], vocabulary.value[v]))
        assert dataset.pieces.feature[known].tolist() == list(range(field.offset + 1, field.offset + field.size))
        assert (dataset.pieces.feature[mine[len(known) :]] == field.offset).all()
        seen_text += (vocabulary.count[mine] == 0).sum()
    assert schema.num_ids == expected_offset
    assert seen_text > 0, "the fixture must have values that training never sees"
    assert (dataset.pieces.feature == vocabulary.feature).all()
    assert dataset.feature_counts().sum() == train.size
    for part in (dataset.train, dataset.valid, dataset.test):
        assert part.values.min() >= 0
        assert part.values.max() < len(vocabulary.value)


def test_valid_and_test_change_nothing_that_training_decides(config: MakeConfig, tmp_path: Path):
    raw = make_raw("movielens_1m")
    base = prepare(config(raw.source, raw.zip(tmp_path / "a.zip"), "time"))
    held_out = np.concatenate([base.valid.rows, base.test.rows])
    assert MOVIES not in raw.ratings[base.train.rows, 1]
    raw.replace_line("movies.dat", MOVIES, f"{MOVIES}::Zzz wholly other words (2020)::Western")
    lines = raw.files["ratings.dat"].split(b"\n")
    for row in held_out:
        user, movie, rating, time = lines[row].split(b"::")
        lines[row] = b"::".join([user, movie, b"5" if rating == b"1" else b"1", time])
    raw.files["ratings.dat"] = b"\n".join(lines)
    config_ = config(raw.source, raw.zip(tmp_path / "b.zip"), "time")
    other = prepare(replace(config_, data=replace(config_.data, dir=str(tmp_path / "other"))))
    assert other.schema.fingerprint == base.schema.fingerprint  # fields, vocabulary and tokenizer
    assert other.feature_counts().tolist() == base.feature_counts().tolist()
    assert other.schema.data_hash != base.schema.data_hash


def test_preparing_twice_gives_the_same(release: Raw, config: MakeConfig, tmp_path: Path):
    config_ = config(release.source, release.zip(tmp_path / "raw.zip"))
    first = prepare(config_).schema
    again = prepare(replace(config_, seed=7)).schema  # the run's seed has no say in the data
    assert again == first
    other = prepare(replace(config_, data=replace(config_.data, protocol="time"))).schema
    assert other.data_hash != first.data_hash
    assert [other.splits[name].hash for name in SPLITS] != [first.splits[name].hash for name in SPLITS]


def test_a_split_is_known_by_its_hash_whatever_else_was_chosen(
    release: Raw, config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config_ = config(release.source, release.zip(tmp_path / "raw.zip"))
    first = prepare(config_).schema
    data = replace(config_.data, min_count=3, fields=(FieldConfig("title"),), positive_above=2.0)
    other = prepare(replace(config_, data=data, text=TextConfig(vocab_size=200), seed=3)).schema
    assert other.data_hash != first.data_hash
    assert {n: s.hash for n, s in other.splits.items()} == {n: s.hash for n, s in first.splits.items()}
    assert len({s.hash for s in first.splits.values()}) == 3
    assert f"split {first.splits['test'].hash[:12]}" in capsys.readouterr().out


def test_prompts_are_the_tokenizers_own(release: Raw, config: MakeConfig, tmp_path: Path):
    dataset = prepare(config(release.source, release.zip(tmp_path / "raw.zip")))
    text, vocabulary = dataset.schema.text, dataset.vocabulary()
    tokenizer = load_tokenizer(str(dataset.folder / "tokenizer"))
    lengths = []
    for part in (dataset.train, dataset.valid, dataset.test):
        values = np.asarray(part.values)
        prompt = compose(dataset.pieces, values, length=text.length, pad_id=text.pad_id)
        for row in range(0, len(values), 5):
            whole = tokenizer(sentence(dataset.schema.names, [vocabulary.value[v] for v in values[row]])).input_ids
            assert prompt.tokens[row][prompt.mask[row]].tolist() == whole
        lengths.append(prompt.mask.sum(axis=1).max())
    assert max(lengths) == text.length <= text.max_length
    assert text.vocab_size == len(tokenizer)


def test_a_given_tokenizer_is_used(release: Raw, config: MakeConfig, tmp_path: Path):
    config_ = config(release.source, release.zip(tmp_path / "raw.zip"))
    trained = prepare(config_)
    model = str(trained.folder / "tokenizer")
    data = replace(config_.data, dir=str(tmp_path / "second"), protocol="time")
    given = prepare(replace(config_, data=data, text=TextConfig(model=model)))
    assert given.schema.text.tokenizer == model
    assert given.schema.text.fingerprint == trained.schema.text.fingerprint


def test_the_report(config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = make_raw("movielens_100k")
    dataset = prepare(config(raw.source, raw.zip(tmp_path / "raw.zip"), "random_drop3"))
    out = capsys.readouterr().out
    dropped = int((raw.ratings[:, 2] == 3).sum())
    for part in (
        "note: ",
        f"100 read · {dropped} dropped: label is 3",
        "test rows whose user is unseen in training",
        "Movie ID + Title",
        dataset.schema.data_hash[:12],
        f"{dataset.schema.text.length} at most",
        "prepared ",
    ):
        assert part in out


def table_config(tmp_path: Path, text: str, **options: object) -> Config:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    values = {"fields": (FieldConfig("a"), FieldConfig("b", "Bee")), "raw": str(path), "dir": str(tmp_path / "out")}
    return Config(data=DataConfig(**{**values, **options}), text=TextConfig(vocab_size=60, max_length=32))


ROWS = "a,b,label\n" + "".join(f"u{i % 4},i{i % 5},{i % 2}\n" for i in range(40))


def test_a_table_with_clicks(tmp_path: Path):
    dataset = prepare(table_config(tmp_path, ROWS, user="a", item="b", linked=(("a", "b"),)))
    schema = dataset.schema
    assert (schema.user, schema.item, schema.linked) == ("a", "Bee", (("a", "Bee"),))
    assert schema.names == ("a", "Bee")
    assert {name: part.rows for name, part in schema.splits.items()} == {"train": 32, "valid": 4, "test": 4}
    assert dataset.train.labels.tolist() == (dataset.train.rows % 2).tolist()


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        (ROWS, {"dir": ""}, "data.dir is empty"),
        (ROWS, {"source": "tabel"}, "Unknown data.source 'tabel'; did you mean 'table'"),
        (ROWS, {"protocol": "randm"}, "Unknown data.protocol 'randm'; did you mean 'random'"),
        (ROWS, {"protocol": "time"}, "has no timestamp column declared"),
        (ROWS, {"min_count": 1000}, "No value of column 'a' of .*t.csv occurs 1000 times in training"),
        (ROWS.replace(",1\n", ",0\n"), {}, "All training labels of .*t.csv are on one side of 0.5"),
        ("a,b,label\nu,i,1\nu,j,0\n", {}, "The valid split of .*t.csv is empty"),
        ("a,b,label\n", {}, "split of .*t.csv is empty"),
    ],
)
def test_refused_before_anything_is_written(tmp_path: Path, text: str, options: dict[str, object], problem: str):
    with pytest.raises(InputError, match=problem):
        prepare(table_config(tmp_path, text, **options))
    assert {entry.name for entry in tmp_path.iterdir()} == {"t.csv"}


def test_only_a_prepared_dataset_is_replaced(tmp_path: Path):
    config_ = table_config(tmp_path, ROWS)
    out = tmp_path / "out"
    out.mkdir()
    prepare(config_)  # an empty folder is fine
    stamp = (out / "schema.json").stat().st_ino
    prepare(config_)
    assert (out / "schema.json").stat().st_ino != stamp
    (out / "checkpoints").mkdir()  # a run folder has a schema too
    with pytest.raises(InputError, match="is not empty and not"):
        prepare(config_)
    (out / "checkpoints").rmdir()
    (out / "schema.json").unlink()
    with pytest.raises(InputError, match="is not empty and not"):
        prepare(config_)
    with pytest.raises(InputError, match="is a file"):
        prepare(table_config(tmp_path, ROWS, dir=str(tmp_path / "t.csv")))


def test_of_two_that_prepare_the_same_at_once_the_first_to_finish_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = table_config(tmp_path, ROWS)
    load, stamps = sources.load, []

    def overtaken(data: DataConfig, frame: None) -> object:
        """Before the second has read anything, the first begins and finishes."""
        monkeypatch.setattr(sources, "load", load)
        prepare(first)
        stamps.append((tmp_path / "out" / "schema.json").stat().st_ino)
        return load(data, frame)

    monkeypatch.setattr(sources, "load", overtaken)
    assert prepare(first).schema == Dataset.load(tmp_path / "out").schema
    assert (tmp_path / "out" / "schema.json").stat().st_ino == stamps[0]  # runs may have it open
    assert {entry.name for entry in tmp_path.iterdir()} == {"t.csv", "out"}

    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(sources, "load", overtaken)
    with pytest.raises(InputError, match="out was meanwhile prepared otherwise"):
        prepare(replace(first, text=replace(first.text, max_length=31)))
    assert {entry.name for entry in tmp_path.iterdir()} == {"t.csv", "out"}


def test_a_killed_prepare_leaves_the_old_dataset_and_nothing_that_passes_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config_ = table_config(tmp_path, ROWS)
    before = prepare(config_).schema
    write, calls = storage.write_bytes, []

    def dying_write(folder: Path, name: str, content: bytes) -> None:
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(folder, name, content)

    monkeypatch.setattr(storage, "write_bytes", dying_write)
    with pytest.raises(KeyboardInterrupt):
        prepare(replace(config_, data=replace(config_.data, min_count=2)))
    assert Dataset.load(tmp_path / "out").schema == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"t.csv", "out"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.protocol": "time"}, "data.protocol = 'random', not 'time'; pass --data.protocol random, or prepare"),
        ({"data.shard_rows": 9}, "data.shard_rows = 4194304, not 9; pass --data.shard-rows 4194304"),
        ({"data.min_count": 2}, "data.min_count = 1, not 2; pass --data.min-count 1, or prepare again."),
        ({"data.positive_above": 2.0}, "data.positive_above = None, not 2.0; pass --data.positive-above None, or"),
        ({"data.source": "goodreads"}, "data.source = 'table', not 'goodreads'"),
        ({"data.user": "a"}, "data.user = None, not 'a'"),
        ({"data.fields": [{"column": "b"}]}, "with other data.fields; use the config that it was prepared with, or"),
        ({"data.linked": [["a", "b"]]}, "with other data.linked; use the config"),
        ({"text.max_length": 16}, "text.max_length = 32, not 16; pass --text.max-length 32"),
        ({"text.vocab_size": 90}, "text.vocab_size = 60, not 90"),
        ({"text.vocab_size": 90, "text.model": "a-model"}, None),  # whose tokenizer is compared by itself
        ({"data.raw": "moved.csv", "data.memory_gib": 1.0, "text.layers": 3, "ctr.dim": 5, "seed": 7}, None),
    ],
)
def test_a_dataset_knows_what_it_was_prepared_with(tmp_path: Path, change: dict[str, object], said: str | None):
    config_ = table_config(tmp_path, ROWS)
    prepare(config_)
    assert Config.from_json((tmp_path / "out" / "config.json").read_text(encoding="utf-8"), "") == config_
    check_prepared(config_)
    changed = config_.override(change)
    if said is None:
        check_prepared(changed)
        return
    with pytest.raises(InputError) as refused:
        check_prepared(changed)
    assert str(refused.value).startswith(f"{tmp_path / 'out'} was prepared with ")
    assert said in str(refused.value)


def test_a_damaged_config_of_a_dataset_is_named(tmp_path: Path):
    config_ = table_config(tmp_path, ROWS)
    prepare(config_)
    (tmp_path / "out" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json cannot be read \(.*\); prepare again\.$"):
        check_prepared(config_)


def test_the_schema_file_is_plain_json(tmp_path: Path):
    prepare(table_config(tmp_path, ROWS))
    stored = json.loads((tmp_path / "out" / "schema.json").read_text(encoding="utf-8"))
    assert [f["column"] for f in stored["fields"]] == ["a", "b"]


def test_prompts_that_are_cut_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By rows, whatever is cut of them; and the length that is said to cut none does not, while one less does."""
    long = "one two three four five six seven eight nine ten"
    rows = [("u", long if i % 3 == 0 else "short", i % 2) for i in range(60)]
    text = "a,b,label\n" + "".join(f"{a},{b},{y}\n" for a, b, y in rows)

    def prepared(length: int) -> tuple[Dataset, str]:
        dataset = prepare(replace(table_config(tmp_path, text), text=TextConfig(vocab_size=60, max_length=length)))
        return dataset, next(line for line in capsys.readouterr().out.splitlines() if "text.max_length" in line)

    dataset, said = prepared(14)
    train = sum(rows[n][1] == long for n in dataset.train.rows.tolist())
    enough = dataset.schema.text.uncut_length
    least = f"{enough} is the least that cuts none"
    assert said == f"  text.max_length 14 cuts 20 of 60 prompts ({train} in training); {least}"
    tokenizer = load_tokenizer(str(tmp_path / "out" / "tokenizer"))
    assert len(tokenizer(sentence(dataset.schema.names, ["u", long])).input_ids) == enough
    assert (dataset.schema.text.length, dataset.schema.cut, len(dataset.pieces.limit)) == (14, 20, 3)
    dataset, said = prepared(enough)
    assert said == f"  text.max_length {enough} cuts none; {least}"
    assert (dataset.schema.text.length, dataset.schema.cut, len(dataset.pieces.limit)) == (enough, 0, 0)
    assert prepared(enough - 1)[0].schema.cut == 20


def test_a_tokenizer_whose_ids_have_gaps_is_prepared_and_read_again(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "a", ".", "is", "bee", "u1", "x"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(words)}))
    config_ = table_config(tmp_path, ROWS).override({"text.model": str(tmp_path / "bert")})
    for _ in range(2):
        dataset = prepare(config_)
        assert dataset.schema.text.vocab_size == len(words)
        assert Encoder.load(dataset.folder).tokenizer("x").input_ids == [2, 11, 3]
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 11}))
    with pytest.raises(InputError, match=r"ids up to 11 \('x'\), but the model has embeddings for 11 tokens"):
        prepare(config_)
