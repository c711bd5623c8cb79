"""Batches: every row once an epoch, whatever the batch, the shards, the windows and the hosts."""

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_jax.data.batches import batch_at, epochs_over, updates
from alt_jax.data.shards import Rows, ShardedArray, shard_count
from alt_jax.data.windows import Windows, shards_at_once
from alt_jax.errors import InputError


class Split:
    """A split whose row n has the values (n, -n) and the label n % 2, and a list of the shards that were read."""

    def __init__(self, rows: int, shard_rows: int, per_window: int | None = None) -> None:
        number = np.arange(rows, dtype=np.int64)
        arrays = {
            "values": np.stack([number, -number], axis=1).astype(np.int32),
            "labels": (number % 2).astype(np.uint8),
            "rows": number,
        }
        self.read: list[tuple[str, int]] = []

        def read(part: str, n: int) -> np.ndarray:
            self.read.append((part, n))
            return arrays[part][n * shard_rows : (n + 1) * shard_rows]

        sizes = [len(number[n * shard_rows : (n + 1) * shard_rows]) for n in range(shard_count(rows, shard_rows))]
        windows = None if per_window is None else Windows(sizes, per_window, read)
        shapes = {"values": (2,), "labels": (), "rows": ()}
        self.rows = Rows(*(ShardedArray(sizes, shapes[part], part, read) for part in arrays), windows)


splits = st.tuples(st.integers(1, 60), st.integers(1, 25), st.none() | st.integers(1, 6))


@settings(deadline=None)
@given(splits, st.data())
def test_every_row_comes_once_an_epoch(made: tuple[int, int, int | None], data: st.DataObject):
    count, _, _ = made
    rows, epochs = Split(*made).rows, data.draw(st.integers(1, 3))
    batch_size = data.draw(st.integers(1, count))
    last = updates(count, batch_size, epochs)
    stream = np.concatenate(
        [batch_at(rows, seed=3, step=step, batch_size=batch_size).values[:, 0] for step in range(last)]
    )
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))
    assert epochs * count <= len(stream) < epochs * count + batch_size
    # An epoch is over with the update that reaches its last row, and with none before.
    over = [epochs_over(count, batch_size, step) for step in range(last + 1)]
    ends = [step for step in range(1, last + 1) if over[step] > over[step - 1]]
    assert ends == [next(s for s in range(1, last + 1) if s * batch_size >= (e + 1) * count) for e in range(epochs)]
    assert ends[-1] == last
    assert over[-1] == epochs


@settings(max_examples=30, deadline=None)
@given(splits, st.data())
def test_hosts_take_parts_of_one_batch_at_any_step_in_any_order(made: tuple[int, int, int | None], data: st.DataObject):
    hosts = data.draw(st.sampled_from([1, 2, 3, 4]).filter(lambda hosts: hosts <= made[0]))
    batch_size = hosts * data.draw(st.integers(1, made[0] // hosts))
    share = batch_size // hosts
    rows = Split(*made).rows
    for step in data.draw(st.lists(st.integers(0, 50), max_size=6)):
        whole = batch_at(rows, seed=1, step=step, batch_size=batch_size)
        assert (whole.values[:, 1] == -whole.values[:, 0]).all()
        assert whole.label.tolist() == (whole.values[:, 0] % 2).tolist()
        assert whole.weight.tolist() == [1] * batch_size
        parts = [
            batch_at(
                Split(*made).rows, seed=1, step=step, batch_size=batch_size, part=slice(h * share, (h + 1) * share)
            )
            for h in range(hosts)
        ]
        for name in whole._fields:
            part = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(part, getattr(whole, name))
            assert part.dtype == getattr(whole, name).dtype


@pytest.mark.parametrize(("shard_rows", "per_window"), [(60, None), (60, 1), (7, None), (7, 9), (7, 20)])
def test_what_fits_memory_is_shuffled_exactly_and_the_same_in_any_shards(shard_rows: int, per_window: int | None):
    rows = Split(60, shard_rows, per_window).rows
    for step in range(24):
        order = np.random.default_rng([5, step // 6]).permutation(60)
        expected = order[step % 6 * 10 : (step % 6 + 1) * 10]
        assert batch_at(rows, seed=5, step=step, batch_size=10).values[:, 0].tolist() == expected.tolist()


def test_beyond_memory_shards_are_shuffled_and_rows_within_windows_of_them():
    """The order by hand: windows of 3 of 8 shards of 10 rows, the last shard of 5."""
    split = Split(75, 10, per_window=3)
    seen = []
    for epoch in range(2):
        found = [int(batch_at(split.rows, seed=9, step=75 * epoch + n, batch_size=1).values[0, 0]) for n in range(75)]
        shards = np.random.default_rng([9, epoch, 1]).permutation(8)
        for window, low in enumerate((0, 3, 6)):
            lying = np.concatenate([np.arange(75)[10 * n : 10 * (n + 1)] for n in shards[low : low + 3]])
            order = lying[np.random.default_rng([9, epoch, 2 + window]).permutation(len(lying))].tolist()
            assert found[: len(order)] == order
            assert sorted(order) != order
            found = found[len(order) :]
        assert found == []
        seen.append(shards.tolist())
    assert seen[0] != seen[1]


def test_a_pass_in_order_reads_every_shard_once_an_epoch():
    split = Split(75, 10, per_window=3)
    for step in range(3 * 75 // 5 - 1):  # the last window's last batch is still to come
        batch_at(split.rows, seed=0, step=step, batch_size=5)
    _finished()
    counts = Counter(split.read)
    ahead = {n for n in range(8) if counts["values", n] == 4}  # of the fourth epoch's first window
    assert len(ahead) == 3
    assert counts == {(part, n): 3 + (n in ahead) for part in ("values", "labels") for n in range(8)}


def test_the_next_window_is_fetched_meanwhile_and_no_more():
    split = Split(60, 10, per_window=2)
    batch_at(split.rows, seed=0, step=0, batch_size=3)
    _finished()
    order = np.random.default_rng([0, 0, 1]).permutation(6).tolist()
    assert [n for part, n in split.read if part == "values"] == order[:4]
    batch_at(split.rows, seed=0, step=0, batch_size=3)
    assert len(split.read) == 8


def test_a_window_of_everything_is_read_once():
    split = Split(60, 10, per_window=6)
    for step in range(40):
        batch_at(split.rows, seed=0, step=step, batch_size=7)
    assert Counter(split.read) == {(part, n): 1 for part in ("values", "labels") for n in range(6)}


def test_only_the_own_part_is_read_from_a_map():
    split = Split(60, 1)
    part = batch_at(split.rows, seed=0, step=0, batch_size=20, part=slice(5, 10))
    assert {n for _, n in split.read} == set(part.values[:, 0].tolist())


def test_a_shard_that_cannot_be_read_is_told_where_its_window_is_asked_for():
    def read(part: str, number: int) -> np.ndarray:
        if number == broken:
            raise InputError("shard is missing")
        return np.zeros((10, 2), np.int32) if part == "values" else np.zeros(10, np.uint8)

    order = np.random.default_rng([0, 0, 1]).permutation(4).tolist()
    broken = order[2]
    rows = Split(40, 10).rows._replace(windows=Windows([10] * 4, 1, read))
    for step in range(4):  # the third window is fetched from the second on
        batch_at(rows, seed=0, step=step, batch_size=5)
    for _ in range(2):
        with pytest.raises(InputError, match="shard is missing"):
            batch_at(rows, seed=0, step=4, batch_size=5)


def test_a_batch_larger_than_the_training_part_is_refused():
    with pytest.raises(
        InputError, match=r"A batch of 61 rows is larger than the 60 training rows; lower --pretrain\.batch-size"
    ):
        updates(60, 61, 1)
    with pytest.raises(InputError, match="larger than the 60 training rows"):
        batch_at(Split(60, 60).rows, seed=0, step=0, batch_size=61)


GIB = 2**30


@pytest.mark.parametrize(
    ("bytes_", "expected"),
    [
        (100 * (13 + 8), 10),  # 3 slots: 4 · 3 + 1 bytes, and two places in orders
        (100 * (13 + 8) - 1, 6),
        (2 * 10 * (13 + 4), 1),
        (2 * 20 * (13 + 4), 2),
        (2 * 20 * (13 + 4) - 1, 1),
    ],
)
def test_windows_are_as_large_as_the_memory_allows(bytes_: int, expected: int):
    assert shards_at_once([10] * 10, 3, bytes_ / GIB, "data") == expected


def test_a_shard_that_memory_does_not_hold_twice_is_refused():
    with pytest.raises(
        InputError, match=r"shards of d/train take 3\.17e-07 GiB, more than the 3\.1e-07 of data\.memory_gib"
    ):
        shards_at_once([10] * 10, 3, 3.1e-7, "d/train")


def _finished() -> None:
    """Waits for what is fetched in the background."""
    for thread in threading.enumerate():
        if thread.name == "next window":
            thread.join(10)
