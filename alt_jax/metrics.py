"""Evaluation metrics in NumPy: exact, over all scores at once."""

import numpy as np
from jaxtyping import Float, Int, Integer


def auc(label: Integer[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> float:
    """Exact area under the ROC curve by the rank-sum formula; a tie between classes counts ½.

    NaN where only one class is present: the AUC is then undefined.
    """
    label = np.asarray(label, bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    rank_sum = mean_rank[inverse][label].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def logloss(label: Integer[np.ndarray, " N"], probability: Float[np.ndarray, " N"]) -> float:
    """Mean negative log-likelihood; probabilities are kept 1e-7 away from 0 and 1."""
    p = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(label, np.log(p), np.log1p(-p))))


def gauc(label: Integer[np.ndarray, " N"], score: Float[np.ndarray, " N"], group: Int[np.ndarray, " N"]) -> float:
    """AUC within each group (user), averaged by the group's rows over groups that have both classes.

    As in Zhou et al., Deep Interest Network (KDD 2018), equation 7. NaN where no group has both classes.
    """
    order = np.lexsort((score, group))
    group, label, score = group[order], np.asarray(label, bool)[order], score[order]
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    size = np.diff(np.r_[first, len(group)])
    # ranks within each group, ties sharing their mean: runs of equal (group, score) are contiguous after the sort
    run = np.flatnonzero(np.r_[True, (group[1:] != group[:-1]) | (score[1:] != score[:-1])])
    length = np.diff(np.r_[run, len(group)])
    start = np.repeat(first, size)
    rank = np.repeat(run + (length - 1) / 2, length) - start + 1
    positives = np.add.reduceat(label, first, dtype=np.int64)
    rank_sum = np.add.reduceat(rank * label, first)
    both = (positives > 0) & (positives < size)
    if not both.any():
        return float("nan")
    pos, neg = positives[both], (size - positives)[both]
    area = (rank_sum[both] - pos * (pos + 1) / 2) / (pos * neg)
    return float(np.average(area, weights=size[both]))


def ece(label: Integer[np.ndarray, " N"], probability: Float[np.ndarray, " N"], bins: int = 15) -> float:
    """Expected calibration error over equally wide bins (Guo et al., ICML 2017): Σ (n_b / N) |mean y − mean p|."""
    index = np.minimum((np.asarray(probability) * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=np.asarray(label, np.float64) - probability, minlength=bins)
    return float(np.abs(gap).sum() / len(index))


def relaimpr(value: float, base: float) -> float:
    """Relative improvement of an AUC over another's, (AUC − ½) / (AUC_base − ½) − 1.

    NaN where the base is no better than chance: there is nothing to improve on.
    """
    return (value - 0.5) / (base - 0.5) - 1 if base > 0.5 else float("nan")
