"""Numbers for a report, in NumPy. What is undefined is NaN or absent, never a guess."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from alt_jax import metrics
from alt_jax.metrics import Labels

# Rows of training that have a value: from this bound up to the next one.
FREQUENCIES = (0, 1, 4, 11, 31, 101)


class Curve(NamedTuple):
    """Points of a line."""

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]


def smooth(step: Sequence[float], value: Sequence[float], parts: int = 150) -> Curve:
    """The mean of each of at most so many equal parts of a series, at the mean of its steps.

    Args:
      step: Where.
      value: What was seen there.
      parts: Points of the outcome at most; a series of no more points stays as it is.
    """
    steps, values = np.asarray(step, float), np.asarray(value, float)
    number = min(parts, len(steps))
    if not number:
        return Curve(steps, values)
    bounds = np.linspace(0, len(steps), number + 1).astype(int)
    size = np.diff(bounds)
    return Curve(np.add.reduceat(steps, bounds[:-1]) / size, np.add.reduceat(values, bounds[:-1]) / size)


def roc(label: Labels, score: Float[np.ndarray, " N"], most: int = 200) -> Curve | None:
    """The ROC curve: false positive rate and true positive rate at every distinct score, from (0, 0) to (1, 1).

    Args:
      label: True or not 0 for the positives.
      score: Higher for what is more likely positive.
      most: Points that are kept, all of them on the exact curve.

    Returns:
      The points, or None where only one class is present.
    """
    label = np.asarray(label, bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return None
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # rows of equal scores come in together
    true = np.r_[0, np.cumsum(label[order])[last]] / positives
    false = np.r_[0, np.cumsum(~label[order])[last]] / negatives
    if len(true) > most:
        along = false + true  # rises from 0 to 2 without a step back
        kept = np.unique(np.searchsorted(along, np.linspace(0, 2, most)).clip(0, len(along) - 1))
        true, false = true[kept], false[kept]
    return Curve(false, true)


class Calibration(NamedTuple):
    """Rows of equally wide bins of the predicted probability.

    Attributes:
      rows: How many; bins without any have NaN below.
      predicted: Mean probability.
      clicked: Share of positives.
    """

    rows: Int[np.ndarray, " bins"]
    predicted: Float[np.ndarray, " bins"]
    clicked: Float[np.ndarray, " bins"]

    @property
    def ece(self) -> float:
        """Σ (n_b / N) |clicked − predicted|, as `metrics.ece`."""
        own = self.rows > 0
        gap = np.abs(self.clicked[own] - self.predicted[own]) * self.rows[own]
        return float(gap.sum() / self.rows.sum())


def calibration(label: Labels, probability: Float[np.ndarray, " N"], bins: int = 15) -> Calibration:
    """What became of the rows that were given like probabilities; bins as those of `metrics.ece`."""
    index = np.minimum((probability * bins).astype(int), bins - 1)
    rows = np.bincount(index, minlength=bins)
    sums = (np.bincount(index, weights=np.asarray(x, float), minlength=bins) for x in (probability, label))
    with np.errstate(invalid="ignore"):
        predicted, clicked = (total / rows for total in sums)
    return Calibration(rows, predicted, clicked)


class Bin(NamedTuple):
    """Rows whose value was seen about as often in training; the AUC is NaN where they are of one class."""

    name: str
    rows: int
    auc: float


def by_frequency(label: Labels, score: Float[np.ndarray, " N"], seen: Int[np.ndarray, " N"]) -> list[Bin]:
    """AUC of the rows by how many training rows have their value.

    Args:
      label: True or not 0 for the positives.
      score: Higher for what is more likely positive.
      seen: Training rows that have the row's value.
    """
    label, ends = np.asarray(label, bool), [*(low - 1 for low in FREQUENCIES[1:]), None]
    found = []
    for low, high in zip(FREQUENCIES, ends, strict=True):
        own = (seen >= low) & (seen <= high if high is not None else True)
        name = f"{low}" if low == high else f"{low}–{high}" if high is not None else f"{low} or more"
        found.append(Bin(name, int(own.sum()), metrics.auc(label[own], score[own])))
    return found


def mixtures(
    label: Labels, ctr: Float[np.ndarray, " N"], text: Float[np.ndarray, " N"], alphas: Float[np.ndarray, " n"]
) -> Curve:
    """AUC of α · logit_c + (1 − α) · logit_t over α.

    Args:
      label: True or not 0 for the positives.
      ctr: logit_c.
      text: logit_t.
      alphas: α.
    """
    return Curve(alphas, np.array([metrics.auc(label, a * ctr + (1 - a) * text) for a in alphas.tolist()]))


def partner_rank(similarity: Float[np.ndarray, "N N"], same: Bool[np.ndarray, "N N"]) -> Int[np.ndarray, " N"]:
    """Which place each row's own partner has among all columns, from 1; that of an equal row counts as its own.

    A column that is as similar as the partner is before it where its number is lower, as `argmax` has it.

    Args:
      similarity: Of row i of one side to row j of the other.
      same: Whether rows i and j are equal; true on the diagonal.
    """
    own = np.where(same, similarity, -np.inf)
    at, best = own.argmax(axis=1)[:, None], own.max(axis=1, keepdims=True)
    before = (similarity > best) | ((similarity == best) & (np.arange(len(same))[None, :] < at))
    return 1 + (before & ~same).sum(axis=1)


def chance_at(same: Bool[np.ndarray, "N N"], k: int) -> float:
    """How often one of k columns drawn by chance, without replacement, is a row's own or an equal one's."""
    total, equal = len(same), same.sum(axis=1)
    missed = np.ones(total)
    for drawn in range(min(k, total)):
        missed *= np.maximum(total - equal - drawn, 0) / (total - drawn)
    return float((1 - missed).mean())


class Ranks(NamedTuple):
    """What ranks come to: rows, the share at rank 1, 5 at most and 10 at most, and the mean of 1 / rank."""

    rows: int
    first: float
    in_five: float
    in_ten: float
    reciprocal: float


def of_ranks(rank: Int[np.ndarray, " N"]) -> Ranks:
    """Summary of ranks from 1; NaN where there are none."""
    if not len(rank):
        return Ranks(0, math.nan, math.nan, math.nan, math.nan)
    first, in_five, in_ten = (float((rank <= k).mean()) for k in (1, 5, 10))
    return Ranks(len(rank), first, in_five, in_ten, float((1 / rank).mean()))


def principal_plane(points: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, "N 2"], float]:
    """Points on the plane of their two first principal components, and the share of the variance that lies in it.

    The sign of an axis is such that its largest loading is positive, so that equal points give equal maps.
    """
    centred = points - points.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    plane = axes[:2]
    largest = np.abs(plane).argmax(axis=1)
    plane = plane * np.sign(plane[np.arange(len(plane)), largest])[:, None]
    flat = centred @ plane.T
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    total = float((scale**2).sum())
    return flat, float((scale[:2] ** 2).sum()) / total if total else math.nan
