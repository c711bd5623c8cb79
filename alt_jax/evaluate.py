"""Scores of a finetuned model, and what they are worth."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from alt_jax import metrics
from alt_jax.data.batches import in_order
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import Pieces, prompt_lengths
from alt_jax.sharding import replicate, split_rows
from alt_jax.tasks import Finetune, Params, text_length

ID_BATCH, TEXT_BATCH = 4096, 256  # rows a device at a time, with ids alone and with a text tower


class Scorer:
    """Click probabilities of raw value ids under one set of prompt pieces; compiled once, used with any parameters."""

    def __init__(self, task: Finetune, mesh: Mesh, pieces: Pieces) -> None:
        """Puts the pieces on the devices.

        Args:
          task: Model and strategy.
          mesh: Devices.
          pieces: As NumPy arrays.
        """
        self._mesh, self._host_pieces = mesh, pieces
        self._pieces = replicate(mesh, pieces)
        self._widths = task.model.schema.widths
        self._batch = mesh.size * (ID_BATCH if task.strategy == "ctr" else TEXT_BATCH)
        self._logit: Callable[..., jax.Array] = jax.jit(task.logit, static_argnums=3)

    def __call__(self, params: Params, values: Int[np.ndarray, "N S"]) -> Float[np.ndarray, " N"]:
        """σ(logit) of every row, in order."""
        logits = np.empty(len(values), np.float64)
        if not len(values):
            return logits
        length = text_length(int(prompt_lengths(self._host_pieces, np.asarray(values), self._widths).max()))
        low = 0
        for batch, real in in_order(values, self._batch):
            scores = self._logit(params, self._pieces, split_rows(self._mesh, batch), length)
            logits[low : low + real] = np.asarray(scores)[:real]
            low += real
        return 1 / (1 + np.exp(-logits))


def report(dataset: Dataset, split: str, probability: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Metrics of a split.

    Args:
      dataset: Gives labels, users, items.
      split: Which part.
      probability: Of every row of it, in order.

    Returns:
      rows, positives, auc, logloss, ece; gauc where the schema names a user; and where it names a user or an item, the
      rows and AUC of those that training never saw. An undefined value is NaN.
    """
    rows, schema = dataset.split(split), dataset.schema
    label = np.asarray(rows.labels)
    found: dict[str, float] = {
        "rows": len(label),
        "positives": int(label.sum()),
        "auc": metrics.auc(label, probability),
        "logloss": metrics.logloss(label, probability),
        "ece": metrics.ece(label, probability),
        "gauc": float("nan"),
    }
    if schema.user is not None:
        found["gauc"] = metrics.gauc(label, probability, np.asarray(rows.values[:, schema.slot(schema.user)]))
    for what, field in (("user", schema.user), ("item", schema.item)):
        if field is not None:
            new = unseen(dataset, split, field)
            found[f"unseen_{what}_rows"] = int(new.sum())
            found[f"unseen_{what}_auc"] = metrics.auc(label[new], probability[new])
    return found


def unseen(dataset: Dataset, split: str, field: str) -> Bool[np.ndarray, " N"]:
    """Which rows of a split have a value of `field` without a feature id of its own."""
    values = dataset.split(split).values[:, dataset.schema.slot(field)]
    features = np.asarray(dataset.pieces.feature)[values]
    return features == dataset.schema.fields[dataset.schema.index(field)].offset
