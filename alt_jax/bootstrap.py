"""How far a difference in AUC would move with other test users: a paired bootstrap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from alt_jax.metrics import Labels

_RESAMPLES, _FEWEST = 1000, 200
_WORK = 1 << 30  # rows times models times draws: minutes; a long test part needs fewer draws for a narrow interval
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


class _Ranked:
    """Rows in the order of their scores: their weighted AUC then takes one pass."""

    def __init__(self, label: np.ndarray, score: np.ndarray) -> None:
        self._order = np.argsort(score, kind="stable")
        self._positive = label[self._order]
        ordered = score[self._order]
        new = np.r_[True, ordered[1:] != ordered[:-1]]
        tie = np.cumsum(new) - 1
        starts = np.flatnonzero(new)
        self._first = starts[tie]
        self._behind = np.r_[starts[1:], len(ordered)][tie]

    def areas(self, weight: Float[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
        """The AUC of every weighting of the rows; a tie counts ½. NaN where a class has no weight."""
        ordered = weight[:, self._order]
        below = np.zeros((len(weight), ordered.shape[1] + 1))
        np.cumsum(ordered * ~self._positive, axis=1, out=below[:, 1:])
        positive = ordered * self._positive
        pairs = positive.sum(axis=1) * below[:, -1]
        won = (positive * (below[:, self._first] + below[:, self._behind])).sum(axis=1) / 2
        return np.divide(won, pairs, out=np.full(len(weight), np.nan), where=pairs > 0)
