"""Shards: the same bytes whoever writes them, and one array to whoever reads them."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rows import clicks, config, contents

from alt_jax import stages
from alt_jax.config import Config, FinetuneConfig
from alt_jax.data import local, rows, shards, values
from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import prompt_lengths
from alt_jax.data.protocols import SPLITS
from alt_jax.data.shards import ShardedArray, shard_count
from alt_jax.errors import InputError

SHARD = 10


def sharded(config: Config, shard_rows: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shard_rows=shard_rows))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """The same 203 rows in one shard a split, and in shards of ten."""
    folder = tmp_path_factory.mktemp("shards")
    pq.write_table(clicks(), folder / "t.parquet")
    whole = prepare(config(folder / "t.parquet", folder / "whole", "random"))
    return whole, prepare(sharded(config(folder / "t.parquet", folder / "parts", "random"), SHARD))


def test_shards_hold_the_same_rows_whatever_their_size(pair: tuple[Dataset, Dataset]):
    whole, parts = pair
    assert parts.schema == whole.schema
    assert parts.schema.data_hash == whole.schema.data_hash
    for name in SPLITS:
        split = parts.schema.splits[name]
        assert [shard.rows for shard in split.shards[:-1]] == [SHARD] * (len(split.shards) - 1)
        assert len(split.shards) == -(-split.rows // SHARD) > 1
        for mine, theirs in zip(parts.split(name)[:3], whole.split(name)[:3], strict=True):
            assert isinstance(mine, ShardedArray)
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_array_equal(np.asarray(mine), theirs)
        for number, shard in enumerate(split.shards):
            for part, stated in shard.sha256.items():
                path = parts.folder / name / f"{part}-{number:05d}-of-{len(split.shards):05d}.npy"
                assert hashlib.sha256(path.read_bytes()).hexdigest() == stated
    files = {path.name for path in (parts.folder / "train").iterdir()}
    assert len(files) == 3 * len(parts.schema.splits["train"].shards)


def test_what_is_made_of_the_rows_does_not_depend_on_shards(pair: tuple[Dataset, Dataset]):
    whole, parts = pair
    np.testing.assert_array_equal(parts.prompt_tokens(), whole.prompt_tokens())
    np.testing.assert_array_equal(parts.feature_counts(), whole.feature_counts())


def test_prompt_tokens_are_those_of_the_training_rows(pair: tuple[Dataset, Dataset]):
    whole = pair[0]
    lengths = prompt_lengths(whole.pieces, np.asarray(whole.train.values), whole.schema.widths)
    assert whole.prompt_tokens().tolist() == sorted(lengths.tolist())
    few = whole.prompt_tokens(most=20)
    assert few.tolist() == [sorted(lengths)[int((part + 0.5) * len(lengths) / 20)] for part in range(20)]
    assert (
        whole.schema.text.length
        == max(len(split.prompts) - 1 for split in whole.schema.splits.values())
        >= lengths.max()
    )


def test_a_worker_of_its_own_writes_the_same_files(pair: tuple[Dataset, Dataset], tmp_path: Path):
    """From its rows alone, in any order of shards."""
    whole, parts = pair
    for name in SPLITS:
        split, found = whole.split(name), parts.schema.splits[name]
        written = {}
        for number in reversed(range(shard_count(found.rows, SHARD))):
            low = SHARD * number
            arrays = (np.asarray(array[low : low + SHARD]) for array in split[:3])
            written[number] = rows.write_shard(
                tmp_path, name, number, len(found.shards), *arrays, whole.pieces, whole.schema.widths
            )
        again = rows.prepared_split([written[n] for n in sorted(written)], found.hash)
        assert (again, again.shards) == (found, found.shards)
        here, there = contents_of(tmp_path / name), contents_of(parts.folder / name)
        assert here == there


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shard_rows", [12, 50])
def test_parts_of_any_size_make_the_same_shards(
    pair: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_rows: int
):
    raw = pair[0].folder.parent / "t.parquet"
    expected = prepare(sharded(config(raw, tmp_path / "a", "time"), shard_rows))
    monkeypatch.setattr(local, "_CHUNK", 3)
    monkeypatch.setattr(values, "_CHUNK", 5)
    other = prepare(sharded(config(raw, tmp_path / "b", "time"), shard_rows))
    assert contents(other.folder) == contents(expected.folder)


@given(st.data())
def test_an_array_of_shards_reads_like_the_whole(data: st.DataObject):
    n, size = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 12))
    whole = np.arange(3 * n, dtype=np.int32).reshape(n, 3)
    count = shard_count(n, size)
    opened = []

    def open_shard(part: str, number: int) -> np.ndarray:
        opened.append(number)
        return whole[size * number : size * (number + 1)]

    sizes = [len(whole[size * number : size * (number + 1)]) for number in range(count)]
    array = ShardedArray(sizes, (3,), "values", open_shard)
    assert (len(array), array.shape, array.dtype) == (n, (n, 3), whole.dtype)
    assert opened == []
    low, high = data.draw(st.integers(0, 45)), data.draw(st.integers(0, 45))
    np.testing.assert_array_equal(array[low:high], whole[low:high])
    assert len(opened) <= max(1, (high - 1) // size - low // size + 1)
    np.testing.assert_array_equal(array[low:high, 1], whole[low:high, 1])
    np.testing.assert_array_equal(array[:, 1:], whole[:, 1:])
    np.testing.assert_array_equal(np.asarray(array), whole)
    if n:
        chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=30)), np.int32)
        np.testing.assert_array_equal(array.take(chosen), whole[chosen])
        np.testing.assert_array_equal(array[chosen, 2], whole[chosen, 2])
    assert len(opened) == len(set(opened))


def test_a_missing_shard_is_found_at_once_and_a_changed_one_when_it_is_opened(
    pair: tuple[Dataset, Dataset], tmp_path: Path
):
    folder = shutil.copytree(pair[1].folder, tmp_path / "copy")
    path = folder / "test" / "values-00001-of-00002.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    changed = Dataset.load(folder).test.values
    np.testing.assert_array_equal(changed[:SHARD], pair[0].test.values[:SHARD])
    for _ in range(2):
        with pytest.raises(InputError, match=r"test/values-00001-of-00002\.npy is not as it was prepared"):
            changed[SHARD:]
    path.unlink()
    with pytest.raises(InputError, match=r"copy/test/values-00001-of-00002\.npy is missing; copy the dataset"):
        Dataset.load(folder)


@pytest.mark.parametrize("part", ["values", "labels"])
def test_a_changed_training_shard_is_found_before_training_begins(
    pair: tuple[Dataset, Dataset], tmp_path: Path, part: str
):
    """Where all rows are mapped; else when its window is read."""
    folder = shutil.copytree(pair[1].folder, tmp_path / "copy")
    count = len(pair[1].schema.splits["train"].shards)
    path = folder / shards.file_name("train", part, count - 1, count)
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    opened = Dataset.load(folder)
    with pytest.raises(InputError, match=rf"train/{path.name} is not as it was prepared"):
        opened.split("train")
    windowed = Dataset.load(folder, memory_gib=2 * SHARD * 45 / 2**30).train
    last = next(n for n in range(17) if count - 1 in np.random.default_rng([0, 0, 1]).permutation(count)[: n + 1])
    for window in range(last):
        batch_at(windowed, seed=0, step=SHARD * window, batch_size=1)
    with pytest.raises(InputError, match=rf"train/{path.name} is not as it was prepared"):
        batch_at(windowed, seed=0, step=SHARD * last, batch_size=1)


def test_a_changed_test_shard_is_found_before_training_begins(pair: tuple[Dataset, Dataset], tmp_path: Path):
    """And not after it, when its rows are read."""
    folder = shutil.copytree(pair[1].folder, tmp_path / "copy")
    path = folder / shards.file_name("test", "labels", 1, 2)
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    experiment = sharded(config(pair[1].folder.parent / "t.parquet", folder, "random"), SHARD)
    recipes = dataclasses.replace(experiment.finetune, ctr=FinetuneConfig(batch_size=16))
    with pytest.raises(InputError, match=rf"test/{path.name} is not as it was prepared"):
        stages.finetune(dataclasses.replace(experiment, finetune=recipes), "ctr", None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shards_of_another_count_are_not_taken_for_these(pair: tuple[Dataset, Dataset], tmp_path: Path):
    folder = shutil.copytree(pair[1].folder, tmp_path / "copy")
    schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
    del schema["splits"]["train"]["shards"][3]
    (folder / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    with pytest.raises(InputError, match="has shards of train that do not add up"):
        Dataset.load(folder)
