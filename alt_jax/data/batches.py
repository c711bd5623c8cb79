"""Batches as a pure function of (seed, step): there is no iterator state to save, resuming is an integer."""

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from alt_jax.data.dataset import Rows
from alt_jax.errors import InputError


class Batch(NamedTuple):
    """What travels to the device (NumPy until then). A weight of 0 marks a row that does not count."""

    values: Int[Array, "B S"]
    label: Float[Array, " B"]
    weight: Float[Array, " B"]


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    """The shuffled order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Whole batches in an epoch; the few rows left over differ from epoch to epoch.

    Raises:
      InputError: There are fewer rows than one batch needs.
    """
    if rows < batch_size:
        raise InputError(f"A batch of {batch_size} rows is larger than the {rows} training rows; lower the batch size.")
    return rows // batch_size


def batch_at(rows: Rows, *, seed: int, step: int, batch_size: int, part: slice = slice(None)) -> Batch:
    """The training batch of update `step` (from 0), or a part of its rows."""
    epoch, position = divmod(step, steps_per_epoch(len(rows.labels), batch_size))
    chosen = _order(len(rows.labels), seed, epoch)[position * batch_size : (position + 1) * batch_size][part]
    # Not by indexing, which takes four times as long from a memory-mapped file.
    values: Any = np.take(rows.values, chosen, axis=0)
    label: Any = np.take(rows.labels, chosen).astype(np.float32)
    weight: Any = np.ones(len(chosen), np.float32)
    return Batch(values, label, weight)
