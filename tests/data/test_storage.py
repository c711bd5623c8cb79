"""Datasets behind URLs: written, read and refused as those in folders are."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_rows import clicks, config
from test_shards import sharded

from alt_jax.config import Config
from alt_jax.data import storage
from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.prepare import prepare
from alt_jax.data.prepared_config import check_prepared
from alt_jax.data.protocols import SPLITS
from alt_jax.errors import InputError

URL = "memory://bucket/clicks"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    storage._copies.cache_clear()  # datasets of other tests are the same
    yield files
    files.store.clear()


def at(config_: Config, folder: str | Path, **data: object) -> Config:
    return dataclasses.replace(config_, data=dataclasses.replace(config_.data, dir=str(folder), **data))


@pytest.fixture
def base(tmp_path: Path) -> Config:
    pq.write_table(clicks(), tmp_path / "t.parquet")
    return sharded(config(tmp_path / "t.parquet", tmp_path / "local", "random"), 10)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, memory: fsspec.AbstractFileSystem, tmp_path: Path) -> str:
    return URL if request.param == "memory" else f"file://{tmp_path}/far/clicks"


def test_a_dataset_behind_a_url_is_the_one_in_a_folder(base: Config, url: str):
    local, remote = prepare(base), prepare(at(base, url))
    assert remote.schema == local.schema
    files = {name: storage.place(base.data.dir).read(name) for name in storage.place(base.data.dir).sizes()}
    found = {name: storage.place(url).read(name) for name in storage.place(url).sizes()}
    del files["config.json"], found["config.json"]  # which say where they lie
    assert found == files
    again = Dataset.load(url)
    for name in SPLITS:
        for mine, theirs in zip(again.split(name)[:3], local.split(name)[:3], strict=True):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    assert again.vocabulary().value == local.vocabulary().value
    np.testing.assert_array_equal(again.prompt_tokens(), local.prompt_tokens())
    raw = clicks().append_column("before", [[""] * 203])
    mine, theirs = (Encoder.load(dataset.folder).encode(raw)[0] for dataset in (again, local))
    np.testing.assert_array_equal(mine, theirs)
    check_prepared(at(base, url))
    with pytest.raises(InputError, match=rf"{url} was prepared with data.shard_rows = 10, not 11"):
        check_prepared(sharded(at(base, url), 11))


@pytest.mark.parametrize("memory_gib", [1.0, 2 * 20 * 45 / 2**30])
def test_batches_do_not_depend_on_where_the_dataset_lies(
    base: Config, url: str, memory_gib: float, monkeypatch: pytest.MonkeyPatch
):
    """Neither where memory holds all rows nor where it does not; and training copies nothing to a disk."""
    prepare(base)
    prepare(at(base, url))
    local, remote = Dataset.load(base.data.dir, memory_gib).train, Dataset.load(url, memory_gib).train
    assert (local.windows is None) == (memory_gib == 1)
    assert remote.windows is not None
    assert remote.windows.per_window == (len(remote.windows.sizes) if memory_gib == 1 else 2)
    monkeypatch.setattr(storage.Remote, "local", lambda self, name: pytest.fail(f"{name} was copied"))
    for step in (0, 1, 9, 10, 30, 5):
        mine, theirs = (batch_at(rows, seed=0, step=step, batch_size=16) for rows in (local, remote))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_is_copied_goes_when_the_process_ends(base: Config, url: str):
    remote = prepare(at(base, url))
    assert Dataset.load(url).folder == remote.folder  # and not once more for every look
    copied = {path.relative_to(remote.folder).as_posix() for path in remote.folder.rglob("*") if path.is_file()}
    assert not any(name.startswith("train/") for name in copied)
    assert {"schema.json", "vocabulary.parquet", "pieces.npz", "config.json"} <= copied


def test_an_earlier_dataset_is_replaced_and_nothing_else(base: Config, memory: fsspec.AbstractFileSystem):
    first = prepare(at(base, URL))
    second = prepare(sharded(at(base, URL, protocol="time"), 30))
    assert Dataset.load(URL).schema == second.schema != first.schema
    assert Dataset.load(URL).folder != first.folder
    assert not any("-of-00017" in name for name in storage.place(URL).sizes())  # the first one's 162 training rows
    memory.pipe_file("/bucket/clicks/notes.txt", b"mine")
    with pytest.raises(InputError, match=rf"{URL} is not empty and not \(only\) a prepared dataset"):
        prepare(at(base, URL))


def test_a_killed_upload_leaves_nothing_that_passes_for_a_dataset(
    base: Config, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
):
    prepare(at(base, URL))
    write, calls = storage.Remote.write, []

    def dying_write(self: storage.Remote, name: str, path: Path) -> None:
        calls.append(name)
        if len(calls) == 20:
            raise KeyboardInterrupt
        write(self, name, path)

    monkeypatch.setattr(storage.Remote, "write", dying_write)
    with pytest.raises(KeyboardInterrupt):
        prepare(at(base, URL, protocol="time"))
    with pytest.raises(InputError, match=rf"{URL}/schema.json does not exist; run `alt-jax prepare` first"):
        Dataset.load(URL)
    monkeypatch.undo()
    assert prepare(at(base, URL, protocol="time")).schema == Dataset.load(URL).schema


def test_nothing_but_a_dataset_is_copied_and_nothing_elsewhere(base: Config, memory: fsspec.AbstractFileSystem):
    prepare(at(base, URL))
    memory.pipe_file("/bucket/clicks/large.bin", b"not ours")
    assert not (Dataset.load(URL).folder / "large.bin").exists()
    memory.pipe_file("/bucket/clicks/tokenizer/../../../escaped", b"not ours")
    with pytest.raises(InputError, match=r"tokenizer/\.\./\.\./\.\./escaped is no name of a file of a dataset"):
        Dataset.load(URL)


@pytest.mark.parametrize("other", [False, True])
def test_of_two_that_prepare_the_same_url_the_first_stays(
    base: Config, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, other: bool
):
    sizes, calls = storage.Remote.sizes, []

    def overtaken(self: storage.Remote) -> dict[str, int]:
        calls.append(self)
        if len(calls) == 2:  # when this one has written its folder
            prepare(at(base, URL, protocol="time" if other else "random"))
            calls.append(memory.created("/bucket/clicks/schema.json"))
        return sizes(self)

    monkeypatch.setattr(storage.Remote, "sizes", overtaken)
    if other:
        with pytest.raises(InputError, match=f"{URL} was meanwhile prepared otherwise; choose another data.dir"):
            prepare(at(base, URL))
    else:
        prepare(at(base, URL))
        assert memory.created("/bucket/clicks/schema.json") in calls


def test_missing_and_changed_shards_are_named(base: Config, memory: fsspec.AbstractFileSystem):
    prepare(at(base, URL))
    path = "/bucket/clicks/train/values-00003-of-00017.npy"
    content = memory.cat_file(path)
    memory.pipe_file(path, content[:-1] + b"\7")
    rows = Dataset.load(URL).train
    said = r"memory://bucket/clicks/train/values-00003-of-00017\.npy is not as it was prepared"
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            batch_at(rows, seed=0, step=0, batch_size=8)
    with pytest.raises(InputError, match=said):
        np.asarray(rows.values)
    opened = Dataset.load(URL)
    memory.rm_file(path)
    with pytest.raises(InputError, match=r"values-00003-of-00017\.npy cannot be read \(it does not exist\); copy"):
        batch_at(opened.train, seed=0, step=0, batch_size=8)
    with pytest.raises(InputError, match=r"values-00003-of-00017\.npy is missing; copy the dataset again"):
        Dataset.load(URL)
    memory.rm_file("/bucket/clicks/pieces.npz")
    with pytest.raises(InputError, match=rf"{URL} lacks pieces.npz"):
        Dataset.load(URL)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere://bucket/x", "nowhere://bucket/x cannot be opened .Protocol not known: nowhere"),
        (URL, f"{URL}/schema.json does not exist; run `alt-jax prepare` first or correct --data.dir."),
    ],
)
def test_what_cannot_be_opened_is_said(memory: fsspec.AbstractFileSystem, url: str, said: str):
    with pytest.raises(InputError, match=said):
        Dataset.load(url)


def test_any_failure_of_a_storage_is_one_sentence(
    base: Config, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
):
    """Kinds of storage raise what they like."""
    prepare(at(base, URL))
    opened = Dataset.load(URL)

    def forbidden(self: object, *arguments: object, **options: object) -> bytes:
        raise RuntimeError("403, Anonymous caller\nmore of it")

    monkeypatch.setattr(type(memory), "cat_file", forbidden)
    with pytest.raises(InputError, match=r"npy cannot be read \(403, Anonymous caller\); copy the dataset again"):
        batch_at(opened.train, seed=0, step=0, batch_size=8)
    with pytest.raises(InputError, match=r"schema.json cannot be read \(403, Anonymous caller\)"):
        Dataset.load(URL)
    monkeypatch.setattr(type(memory), "find", forbidden)
    with pytest.raises(InputError, match=rf"{URL} cannot be read \(403, Anonymous caller\)"):
        prepare(at(base, URL))
    monkeypatch.setattr(type(memory), "get_file", forbidden)
    with pytest.raises(InputError, match=r"valid/values-.*\.npy cannot be read \(403"):
        np.asarray(opened.valid.values)
