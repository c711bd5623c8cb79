"""Evaluation metrics in NumPy: exact, over all scores; all but `gauc` take little more memory than the scores do."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

Labels = Bool[np.ndarray, " N"] | Integer[np.ndarray, " N"]

_CHUNK = 1 << 20  # rows whose temporaries exist at a time


def auc(label: Labels, score: Float[np.ndarray, " N"]) -> float:
    """Exact area under the ROC curve: the share of (positive, negative) pairs in order, a tie counts ½.

    Pairs are counted in integers, and the one large temporary is a copy of the scores. NaN is above every number and a
    tie with itself, as NumPy sorts it.

    Args:
      label: True or not 0 for the positives.
      score: Higher for what is more likely positive.

    Returns:
      The area; NaN where it is undefined: only one class is present, or all scores are equal, which is no order at
      all and not one that is right half of the time.
    """
    label = np.asarray(label, bool)
    positives, negatives = score[label], score[~label]
    if not len(positives) or not len(negatives):
        return float("nan")
    positives.sort()  # sorted queries find what they ask for in the processor's cache
    negatives.sort()
    below = upto = 0  # pairs whose negative is below the positive; and those with the ties
    for part in _chunks(len(positives)):
        below += int(np.searchsorted(negatives, positives[part], "left").sum())
        upto += int(np.searchsorted(negatives, positives[part], "right").sum())
    pairs = len(positives) * len(negatives)
    return (below + upto) / (2 * pairs) if upto - below < pairs else float("nan")


def logloss(label: Labels, probability: Float[np.ndarray, " N"]) -> float:
    """Mean negative log-likelihood; probabilities are kept 1e-7 away from 0 and 1."""
    total = 0.0
    for part in _chunks(len(label)):
        p = np.clip(np.asarray(probability[part], np.float64), 1e-7, 1 - 1e-7)
        total -= float(np.where(label[part], np.log(p), np.log1p(-p)).sum())
    return total / len(label)


def gauc(label: Labels, score: Float[np.ndarray, " N"], group: Int[np.ndarray, " N"]) -> float:
    """AUC within each group (user), averaged by the group's rows over groups that have both classes.

    As in Zhou et al., Deep Interest Network (KDD 2018), equation 7. A group whose scores are all equal counts with ½,
    as published: it tells nothing of its own order, but others may. NaN where no group has both classes, or where all
    scores are equal, of whatever group.
    """
    if not len(label):
        return float("nan")
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
    if not both.any() or bool((score == score[0]).all() or np.isnan(score).all()):
        return float("nan")
    pos, neg = positives[both], (size - positives)[both]
    area = (rank_sum[both] - pos * (pos + 1) / 2) / (pos * neg)
    return float(np.average(area, weights=size[both]))


def ece(label: Labels, probability: Float[np.ndarray, " N"], bins: int = 15) -> float:
    """Expected calibration error over equally wide bins (Guo et al., ICML 2017): Σ (n_b / N) |mean y − mean p|."""
    gap = np.zeros(bins)
    for part in _chunks(len(label)):
        p = probability[part]
        index = np.minimum((p * bins).astype(int), bins - 1)
        gap += np.bincount(index, weights=np.asarray(label[part], np.float64) - p, minlength=bins)
    return float(np.abs(gap).sum() / len(label))


def _chunks(rows: int) -> Iterator[slice]:
    for low in range(0, rows, _CHUNK):
        yield slice(low, low + _CHUNK)


def relaimpr(value: float, base: float) -> float:
    """Relative improvement of an AUC over another's, (AUC − ½) / (AUC_base − ½) − 1.

    NaN where the base is no better than chance: there is nothing to improve on.
    """
    return (value - 0.5) / (base - 0.5) - 1 if base > 0.5 else float("nan")
