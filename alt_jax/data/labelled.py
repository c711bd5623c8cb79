"""Fewer labels than rows: the training rows whose labels finetuning may look at."""

import numpy as np

from alt_jax.data.protocols import UNLABELLED
from alt_jax.data.shards import Rows
from alt_jax.errors import InputError


def labelled(rows: Rows, share: float, seed: int, unlabelled: int = 0) -> Rows:
    """Some of the training rows, drawn by the seed; what a smaller share takes, a larger one takes too.

    Args:
      rows: The training part.
      share: Up to 1, a share of those that have a label; above, a number of them.
      seed: Draws them.
      unlabelled: How many of the rows have no label.

    Returns:
      The same rows for a share of 1 if all have a label, and else those that were drawn, in memory.

    Raises:
      InputError: There are not so many rows.
    """
    total = len(rows.labels) - unlabelled
    number = number_labelled(total, share)
    if number == len(rows.labels):
        return rows
    has = np.flatnonzero(np.asarray(rows.labels) != UNLABELLED) if unlabelled else np.arange(total)
    # NumPy takes (seed,) and (seed, 0) for the same, and the orders of epochs are drawn by (seed, epoch).
    order = np.random.default_rng((seed, 0, 1, 1)).permutation(total)
    chosen = has[np.sort(order[:number])]
    values, labels, numbers = (array[chosen] for array in (rows.values, rows.labels, rows.rows))
    return Rows(values, labels, numbers, None, rows.opened)


def number_labelled(total: int, share: float) -> int:
    """How many labels finetuning may look at.

    Args:
      total: Training rows that have one.
      share: As for `labelled`.

    Raises:
      InputError: There are not so many rows.
    """
    number = max(1, round(share * total)) if share <= 1 else int(share)
    if number > total:
        raise InputError(f"finetune.label_share asks for {number:,} of {total:,} labelled training rows; lower it.")
    return number
