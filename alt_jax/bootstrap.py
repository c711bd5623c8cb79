"""How far a difference in AUC would move with other test users: a paired bootstrap."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from alt_jax import run_files
from alt_jax.data.dataset import Dataset
from alt_jax.metrics import Labels

_RESAMPLES, _FEWEST = 1000, 200
_WORK = 1 << 28  # rows times models times draws, a minute or so; a long test part has a narrow interval anyhow
_ELEMENTS = 1 << 22  # of a table of weights that is in memory


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def auc_difference(
    label: Labels,
    group: Int[np.ndarray, " N"] | None,
    ours: Sequence[Float[np.ndarray, " N"]],
    theirs: Sequence[Float[np.ndarray, " N"]],
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval:
    """The 95 % interval of mean AUC of some models minus that of others, on the same rows, by the percentile bootstrap.

    Whole groups are drawn again with replacement, since the rows of a user are not independent; all models are scored
    on the same draws (Efron and Tibshirani 1993, chapter 13; for paired AUC see also Hanley and McNeil 1983). It says
    how certain a difference is for *these* trained models; what another seed would give is not in it.

    Args:
      label: True for the positives.
      group: Of every row, e.g. its user; None: every row is its own.
      ours: Scores by each of some models.
      theirs: By each of the others.
      resamples: Draws; None: 1000, or 200 at least where there are many rows.
      seed: Of the draws.

    Returns:
      The interval; NaN where fewer than half of the draws have both classes.
    """
    label = np.asarray(label, bool)
    _, member = np.unique(np.arange(len(label)) if group is None else group, return_inverse=True)
    groups = int(member.max()) + 1 if len(member) else 0
    if not groups:
        return Interval(float("nan"), float("nan"))
    if resamples is None:
        models = len(ours) + len(theirs)
        resamples = min(_RESAMPLES, max(_FEWEST, _WORK // max(1, len(label) * models)))
    ranked = [[_Ranked(label, scores) for scores in side] for side in (ours, theirs)]
    random, found = np.random.default_rng(seed), []
    for first in range(0, resamples, step := max(1, _ELEMENTS // len(label))):
        drawn = random.multinomial(groups, np.full(groups, 1 / groups), size=min(step, resamples - first))
        weight = drawn[:, member].astype(np.float64)
        mine, other = (np.mean([model.areas(weight) for model in side], axis=0) for side in ranked)
        found.append(mine - other)
    differences = np.concatenate(found)
    defined = differences[np.isfinite(differences)]
    if len(defined) < resamples / 2:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, (0.025, 0.975))
    return Interval(float(low), float(high))


def of_runs(dataset: Dataset, ours: Sequence[Path], theirs: Sequence[Path]) -> Interval | None:
    """The interval for the test scores that runs have kept; None where one has none of these rows, or it is undefined.

    Whole users are drawn where the dataset tells them apart, and rows where it does not.

    Raises:
      InputError: A file of scores is damaged.
    """
    label, entities = np.asarray(dataset.test.labels), dataset.schema.entities
    sides: list[list[np.ndarray]] = []
    for folders in (ours, theirs):
        scores = (run_files.read_scores(folder).get("test") for folder in folders)
        sides.append([score for score in scores if score is not None and len(score) == len(label)])
        if not folders or len(sides[-1]) < len(folders):
            return None
    user = None
    if "user" in entities:
        user = dataset.entity("test", "user")
        user = np.where(user < 0, -1 - np.arange(len(user)), user)  # of whom nobody knows who it is, is somebody else
    found = auc_difference(label, user, *sides)
    return None if np.isnan(found.low) else found


class _Ranked:
    """Scored rows in order: their AUC under any weights then takes one pass."""

    def __init__(self, label: np.ndarray, score: np.ndarray) -> None:
        self._positive, negative = np.flatnonzero(label), np.flatnonzero(~label)
        self._negative = negative[np.argsort(score[negative], kind="stable")]
        ordered, asked = score[self._negative], score[self._positive]
        self._below, self._upto = (np.searchsorted(ordered, asked, side) for side in ("left", "right"))

    def areas(self, weight: Float[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
        """The AUC of every weighting of the rows; a tie counts ½. NaN where a class has no weight."""
        beaten = np.zeros((len(weight), len(self._negative) + 1))
        np.cumsum(weight[:, self._negative], axis=1, out=beaten[:, 1:])
        positive = weight[:, self._positive]
        pairs = positive.sum(axis=1) * beaten[:, -1]
        won = (positive * (beaten[:, self._below] + beaten[:, self._upto])).sum(axis=1) / 2
        return np.divide(won, pairs, out=np.full(len(weight), np.nan), where=pairs > 0)
