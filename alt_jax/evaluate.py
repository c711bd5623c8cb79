"""Scores of a finetuned model, and what they are worth."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from alt_jax import metrics
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import Pieces, prompt_lengths
from alt_jax.data.shards import ShardedArray
from alt_jax.sharding import own_rows, replicate, replicated, split_rows
from alt_jax.tasks import Finetune, Params, text_length

ID_BATCH, TEXT_BATCH = 4096, 256  # rows a device at a time, with ids alone and with a text tower
# Batches that share a program at least. On two cores, one for prompts 8 tokens shorter takes 1 to 3 s to compile and
# saves a tower of TinyBERT's size 0.17 s a batch, so that about as many pay for it; a rare length never has its own.
_RUN = 16
_PART = 1 << 22  # rows whose values are in memory
_AHEAD = 4  # batches that the host is ahead of the devices at most


class Probabilities:
    """Click probabilities of raw value ids under one set of prompt pieces; used with any parameters."""

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
        self._reads, self._packs = task.strategy != "ctr", task.packs
        self._batch = mesh.size * (TEXT_BATCH if self._reads else ID_BATCH)
        self._own = own_rows(mesh, self._batch)
        # Every process gets all scores
        self._logit: Callable[..., jax.Array] = jax.jit(
            task.logit, static_argnums=(3, 4), out_shardings=replicated(mesh)
        )

    def __call__(self, params: Params, values: Int[np.ndarray | ShardedArray, "N S"]) -> Float[np.ndarray, " N"]:
        """σ(logit) of every row, in order. A table that memory may not hold is read in parts."""
        probability = np.empty(len(values), np.float64)
        for low in range(0, len(values), _PART):
            part = slice(low, low + _PART)
            probability[part] = self._score(params, np.asarray(values[part]))
        return probability

    def _score(self, params: Params, values: Int[np.ndarray, "N S"]) -> Float[np.ndarray, " N"]:
        logits = np.empty(len(values), np.float64)
        running: deque[tuple[np.ndarray, jax.Array]] = deque()
        for rows, length, room in self.batches(values):
            running.append((rows, self.dispatch(params, values[rows], length, room)))
            if len(running) > _AHEAD:
                done, scores = running.popleft()
                logits[done] = scores
        for done, scores in running:
            logits[done] = scores
        return 1 / (1 + np.exp(-logits))

    def batches(self, values: Int[np.ndarray, "N S"]) -> Iterator[tuple[Int[np.ndarray, " B"], int, int | None]]:
        """All rows in batches of one size, with prompts of like length in runs that share a program.

        The rows of a run are dealt out to its batches and devices by length, so that all of them have about as many
        tokens.

        Yields:
          Which rows, the last run filled up with its own last one; the length that their prompts are padded to; and how
          many real tokens a device has at most, rounded up to four a row, or None where padding is kept.
        """
        lengths: Any = np.zeros(len(values), np.int32)
        if self._reads:
            lengths = prompt_lengths(self._host_pieces, np.asarray(values), self._widths)
        order = np.argsort(lengths, kind="stable")
        for low in range(0, len(order), _RUN * self._batch):
            run = order[low : low + _RUN * self._batch]
            full, length, room = np.pad(run, (0, -len(run) % self._batch), mode="edge"), 0, None
            if self._reads:
                parts = len(full) // self._batch * self._mesh.size  # of one device in one batch
                full, length = full.reshape(-1, parts).T, text_length(int(lengths[run[-1]]))
                # Tokens a row, in steps of four for the sake of few programs.
                tokens = 4 * -(-int(lengths[full].sum(axis=1).max()) // (4 * full.shape[1]))
                room = tokens * full.shape[1] if self._packs and tokens < length else None
            yield from ((rows, length, room) for rows in full.reshape(-1, self._batch))

    def dispatch(
        self, params: Params, values: Int[np.ndarray, "B S"], length: int, room: int | None
    ) -> Float[jax.Array, " B"]:
        """Logits of one batch, without waiting for them."""
        with jax.set_mesh(self._mesh):
            return self._logit(params, self._pieces, split_rows(self._mesh, values[self._own]), length, room)


def report(dataset: Dataset, split: str, probability: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Metrics of a split.

    Args:
      dataset: Gives labels, users, items.
      split: Which part.
      probability: Of every row of it, in order.

    Returns:
      rows, positives, auc, logloss, ece; gauc where the schema tells users apart; and where it tells users or items
      apart, rows, positives and AUC of those that training never saw. An undefined value is NaN (see `undefined`).
    """
    rows, entities = dataset.split(split), dataset.schema.entities
    label = np.asarray(rows.labels)
    found: dict[str, float] = {
        "rows": len(label),
        "positives": int(label.sum()),
        "auc": metrics.auc(label, probability),
        "logloss": metrics.logloss(label, probability),
        "ece": metrics.ece(label, probability),
        "gauc": float("nan"),
    }
    if "user" in entities:
        user = dataset.entity(split, "user")
        known = user >= 0
        found["gauc"] = metrics.gauc(label[known], probability[known], user[known])
    for what in entities:
        new = unseen(dataset, split, what)
        found[f"unseen_{what}_rows"] = int(new.sum())
        found[f"unseen_{what}_positives"] = int(label[new].sum())
        found[f"unseen_{what}_auc"] = metrics.auc(label[new], probability[new])
    return found


def undefined(found: Mapping[str, float | None], name: str) -> str:
    """Why an area under a curve, as `report` has it or as JSON does, has no value."""
    part = "" if name == "gauc" else name.removesuffix("auc")
    # Older runs have no positives of the unseen; an area of theirs was undefined for one class alone.
    rows, positives = found[f"{part}rows"], found.get(f"{part}positives", 0)
    if name == "gauc" and "unseen_user_rows" not in found:
        return "no users"
    if not rows:
        return "no rows"
    if positives in (0, rows):
        return "one class"
    auc = found["auc"]
    if name == "gauc" and auc is not None and np.isfinite(auc):
        return "no user has both classes"
    return "all scores are equal"


def unseen(dataset: Dataset, split: str, what: str) -> Bool[np.ndarray, " N"]:
    """Which rows of a split have a user or an item (`what`) without a feature id of its own."""
    schema, values = dataset.schema, dataset.entity(split, what)
    features = np.asarray(dataset.pieces.feature)[values]
    return (values >= 0) & (features == schema.fields[schema.index(schema.entities[what])].offset)
