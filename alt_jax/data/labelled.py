"""Fewer labels than rows: the training rows whose labels finetuning may look at."""

import numpy as np

from alt_jax.data.shards import Rows
from alt_jax.errors import InputError


def labelled(rows: Rows, share: float, seed: int) -> Rows:
    """Some of the training rows, drawn by the seed; what a smaller share takes, a larger one takes too.

    Args:
      rows: The training part.
      share: Up to 1, a share of them; above, a number of them.
      seed: Draws them.

    Returns:
      The same rows for a share of 1, and else those that were drawn, in memory.

    Raises:
      InputError: There are not so many rows.
    """
    total = len(rows.labels)
    number = max(1, round(share * total)) if share <= 1 else int(share)
    if number > total:
        raise InputError(f"finetune.label_share asks for {number:,} of {total:,} training rows; lower it.")
    if number == total:
        return rows
    # NumPy takes (seed,) and (seed, 0) for the same, and the orders of epochs are drawn by (seed, epoch).
    order = np.random.default_rng((seed, 0, 1, 1)).permutation(total)
    chosen = np.sort(order[:number])
    values, labels, numbers = (array[chosen] for array in (rows.values, rows.labels, rows.rows))
    return Rows(values, labels, numbers, None, rows.opened)
