"""Batches as a pure function of (seed, step): there is no iterator state to save, resuming is an integer.

The orders of all epochs, one after the other, are one stream of rows, and update `step` takes the rows at step · B to
step · B + B - 1 of it, whoever asks: every row comes once an epoch, a batch may hold the last rows of one and the first
of the next, and hosts that each take their part of a batch have the same global batches whatever their number.
"""

import functools
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from alt_jax.data.shards import Rows
from alt_jax.data.windows import Window
from alt_jax.errors import InputError


class Batch(NamedTuple):
    """What travels to the device (NumPy until then). A weight of 0 marks a row that does not count."""

    values: Int[Array, "B S"]
    label: Float[Array, " B"]
    weight: Float[Array, " B"]


def updates(rows: int, batch_size: int, epochs: int) -> int:
    """Updates after which every row has come in `epochs` epochs; the last one may hold a few rows of another epoch.

    Raises:
      InputError: There are fewer rows than one batch needs.
    """
    if rows < batch_size:
        raise InputError(
            f"A batch of {batch_size} rows is larger than the {rows} training rows; lower --pretrain.batch-size, "
            "or in a finetuning --finetune.STRATEGY.batch-size."
        )
    return -(-epochs * rows // batch_size)


def epochs_over(rows: int, batch_size: int, step: int) -> int:
    """Epochs of which every row has come after `step` updates."""
    return step * batch_size // rows


def batch_at(rows: Rows, *, seed: int, step: int, batch_size: int, part: slice = slice(None)) -> Batch:
    """The training batch of update `step` (from 0).

    Args:
      rows: The training part.
      seed: Of the order.
      step: Updates before.
      batch_size: Rows of the global batch.
      part: Which of them to return; only these are read.

    Raises:
      InputError: There are fewer rows than one batch needs, or a shard is missing or changed.
    """
    updates(len(rows.labels), batch_size, epochs=1)
    low, high, _ = part.indices(batch_size)
    start = step * batch_size
    # Not by indexing, which takes four times as long from a memory-mapped file.
    taken = [
        (values.take(chosen, axis=0), labels.take(chosen))
        for values, labels, chosen in _stream(rows, seed, start + low, start + high)
    ]
    found: Any = taken[0] if len(taken) == 1 else map(np.concatenate, zip(*taken, strict=True))
    values, label = found
    weight: Any = np.ones(high - low, np.float32)
    return Batch(values, label.astype(np.float32), weight)


def blank(rows: Rows, part: slice) -> Batch:
    """A batch of the shape that `batch_at` gives, without anything read."""
    count = part.stop - part.start
    values: Any = np.zeros((count, rows.values.shape[1]), np.int32)
    label, weight = (values[:, 0].astype(np.float32) + x for x in (0, 1))
    return Batch(values, label, weight)


def _stream(rows: Rows, seed: int, start: int, stop: int) -> Iterator[tuple[Any, Any, Int[np.ndarray, " n"]]]:
    """Rows at these positions of the stream: arrays of values and labels, and which rows of those."""
    ahead = rows.windows
    sizes, per_window = ((len(rows.labels),), 1) if ahead is None else (ahead.sizes, ahead.per_window)
    while start < stop:
        epoch, position = divmod(start, len(rows.labels))
        windows = _windows(sizes, per_window, seed, epoch)
        number = bisect_right(windows, position, key=lambda window: window.first) - 1
        window = windows[number]
        low = position - window.first
        high = min(window.rows, low + stop - start)
        values: Any = rows.values
        labels: Any = rows.labels
        if ahead is not None:
            then = windows[number + 1] if number + 1 < len(windows) else _windows(sizes, per_window, seed, epoch + 1)[0]
            values, labels = ahead.load(window, then, draw=_order)
        yield values, labels, _order(window.rows, window.key)[low:high]
        start += high - low


@functools.lru_cache(maxsize=4)
def _windows(sizes: tuple[int, ...], per_window: int, seed: int, epoch: int) -> tuple[Window, ...]:
    """An epoch's windows: all shards, or so many at a time, in an order drawn anew for every epoch."""
    if per_window >= len(sizes):
        return (Window(tuple(range(len(sizes))), 0, sum(sizes), (seed, epoch)),)
    # NumPy takes (seed, epoch) and (seed, epoch, 0) for the same, so numbers begin with 1.
    order = np.random.default_rng((seed, epoch, 1)).permutation(len(sizes)).tolist()
    windows: list[Window] = []
    first = 0
    for low in range(0, len(order), per_window):
        shards = tuple(order[low : low + per_window])
        windows.append(Window(shards, first, sum(sizes[n] for n in shards), (seed, epoch, 2 + len(windows))))
        first += windows[-1].rows
    return tuple(windows)


@functools.lru_cache(maxsize=2)
def _order(rows: int, key: tuple[int, ...]) -> Int[np.ndarray, " N"]:
    """The shuffled order of a window."""
    order = np.arange(rows, dtype=np.int32 if rows < 2**31 else np.int64)  # as `permutation`, in half the memory
    np.random.default_rng(key).shuffle(order)
    return order
