"""Metrics against slow definitions over pairs of rows, and their invariances."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_jax import metrics

# Few distinct scores, so that ties are common; exact in binary, so that maps of them keep ties ties.
ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda i: i / 8), st.integers(0, 3)), min_size=1, max_size=30
)


def columns(rows: list[tuple[int, float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, score, group = zip(*rows, strict=True)
    return np.array(label), np.array(score, np.float64), np.array(group)


def slow_auc(label: list[int], score: list[float]) -> float:
    """P(positive above negative) over all pairs, a tie counts ½."""
    wins = pairs = 0.0
    for y_i, s_i in zip(label, score, strict=True):
        for y_j, s_j in zip(label, score, strict=True):
            if y_i and not y_j:
                pairs += 1
                wins += 1.0 if s_i > s_j else 0.5 if s_i == s_j else 0.0
    return wins / pairs if pairs else math.nan


def tied(label: list[int], score: list[float]) -> bool:
    """Whether there are pairs and all of them are ties: then nothing is in any order."""
    return 0 < sum(label) < len(label) and len(set(score)) == 1


def slow_gauc(label: list[int], score: list[float], group: list[int]) -> float:
    total = weight = 0.0
    for g in set(group):
        mine = [i for i in range(len(group)) if group[i] == g]
        area = slow_auc([label[i] for i in mine], [score[i] for i in mine])
        if not math.isnan(area):
            total += len(mine) * area
            weight += len(mine)
    return total / weight if weight else math.nan


def slow_ece(label: list[int], probability: list[float], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        mine = [i for i, p in enumerate(probability) if b / bins <= p < (b + 1) / bins or (b == bins - 1 and p == 1)]
        if mine:
            confidence = sum(probability[i] for i in mine) / len(mine)
            accuracy = sum(label[i] for i in mine) / len(mine)
            total += len(mine) / len(label) * abs(accuracy - confidence)
    return total


@given(ROWS)
@settings(deadline=None)
def test_auc_counts_pairs(rows):
    label, score, _ = columns(rows)
    slow = math.nan if tied(label, score) else slow_auc(label, score)
    assert metrics.auc(label, score) == pytest.approx(slow, abs=1e-12, nan_ok=True)


@given(ROWS)
@settings(deadline=None)
def test_gauc_averages_the_groups_with_both_classes_by_their_rows(rows):
    label, score, group = columns(rows)
    slow = math.nan if tied(label, score) else slow_gauc(label, score, group)
    assert metrics.gauc(label, score, group) == pytest.approx(slow, abs=1e-12, nan_ok=True)
    assert metrics.gauc(label, score, np.zeros_like(group)) == pytest.approx(metrics.auc(label, score), nan_ok=True)


@given(ROWS, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_auc_and_gauc_see_only_the_order(rows, seed):
    """A strictly increasing map and a permutation of the rows change nothing; a decreasing map mirrors at ½."""
    label, score, group = columns(rows)
    found, by_group = metrics.auc(label, score), metrics.gauc(label, score, group)
    shuffled = np.random.default_rng(seed).permutation(len(label))
    for mapped in (np.exp(5 * score), 3 * score - 1e3, score**3):
        assert metrics.auc(label, mapped) == pytest.approx(found, nan_ok=True)
        assert metrics.gauc(label, mapped, group) == pytest.approx(by_group, nan_ok=True)
    assert metrics.auc(label[shuffled], score[shuffled]) == pytest.approx(found, nan_ok=True)
    again = metrics.gauc(label[shuffled], score[shuffled], group[shuffled])
    assert again == pytest.approx(by_group, nan_ok=True)
    assert metrics.auc(label, -score) == pytest.approx(1 - found, nan_ok=True)
    assert metrics.auc(1 - label, score) == pytest.approx(1 - found, nan_ok=True)


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_has_no_auc(only):
    label, score = np.full(4, only), np.array([0.1, 0.2, 0.2, 0.9])
    assert math.isnan(metrics.auc(label, score))
    assert math.isnan(metrics.gauc(label, score, np.array([0, 0, 1, 1])))
    # one class in every group, though both overall
    assert math.isnan(metrics.gauc(np.array([0, 0, 1, 1]), score, np.array([0, 0, 1, 1])))


def test_auc_by_hand():
    assert metrics.auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75


@pytest.mark.parametrize("score", [0.3, 0.0, math.inf, math.nan])
def test_scores_that_are_all_equal_have_no_auc(score):
    """Undefined rather than ½: a model that scores everything alike is dead, not as good as chance."""
    label, scores = np.array([0, 1, 0, 1]), np.full(4, score)
    assert math.isnan(metrics.auc(label, scores))
    assert math.isnan(metrics.gauc(label, scores, np.array([0, 0, 1, 1])))


def test_a_group_whose_scores_are_equal_counts_half():
    label, group = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    assert metrics.gauc(label, np.array([0.1, 0.2, 0.3, 0.3]), group) == 0.75
    assert metrics.gauc(label, np.array([0.1, 0.1, 0.3, 0.3]), group) == 0.5


def test_auc_of_many_float32_scores_is_exact():
    """Counts of pairs beyond float32's integers."""
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 20_000), rng.random(20_000).astype(np.float32)
    below = np.searchsorted(np.sort(score[label == 0]), score[label == 1], side="left").sum()
    upto = np.searchsorted(np.sort(score[label == 0]), score[label == 1], side="right").sum()
    assert metrics.auc(label, score) == pytest.approx(
        (below + upto) / 2 / (label.sum() * (label == 0).sum()), abs=1e-13
    )


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([-2.5, -0.0, 0.0, 0.1, 0.3, 1.0, math.inf])), max_size=60),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([bool, np.uint8, np.int64]),
    st.integers(1, 7),
)
@settings(deadline=None)
def test_auc_is_the_share_of_pairs_whatever_the_types_and_chunks(rows, score_type, label_type, chunk):
    """To the last bit: both sides divide two integers."""
    label = np.array([y for y, _ in rows], label_type)
    score = np.array([s for _, s in rows], score_type)
    above = score[label != 0][:, None] > score[label == 0]
    ties = score[label != 0][:, None] == score[label == 0]
    slow = math.nan if ties.all() else (2 * int(above.sum()) + int(ties.sum())) / (2 * above.size)
    label.flags.writeable = score.flags.writeable = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        assert metrics.auc(label, score) == pytest.approx(slow, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("score_type", [np.float32, np.float64])
def test_auc_ranks_nan_above_every_number(score_type):
    score = np.array([np.nan, np.inf, 0.2, np.nan], score_type)
    assert metrics.auc(np.array([1, 0, 0, 0]), score) == 2.5 / 3
    assert metrics.auc(np.array([0, 1, 1, 0]), score) == 0


@pytest.mark.parametrize("metric", [metrics.auc, metrics.logloss, metrics.ece])
def test_many_scores_take_little_more_memory_than_they_have(metric, monkeypatch):
    """The scores once more and a byte a row, beside what a chunk needs."""
    monkeypatch.setattr(metrics, "_CHUNK", 1 << 10)
    rng = np.random.default_rng(0)
    label, score = rng.random(1 << 18) < 0.3, rng.random(1 << 18, np.float32)
    metric(label, score)
    tracemalloc.start()
    try:
        metric(label, score)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * (score.nbytes + 2 * label.nbytes)


@given(ROWS, st.integers(1, 7))
@settings(deadline=None)
def test_chunks_change_no_mean(rows, chunk):
    label, p, _ = columns(rows)
    whole = metrics.logloss(label, p), metrics.ece(label, p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        assert (metrics.logloss(label, p), metrics.ece(label, p)) == pytest.approx(whole, rel=1e-12, abs=1e-12)


@given(ROWS)
@settings(deadline=None)
def test_logloss_is_the_mean_surprise(rows):
    label, p, _ = columns(rows)
    slow = 0.0
    for y, forecast in zip(label, p, strict=True):
        q = min(max(forecast, 1e-7), 1 - 1e-7)
        slow -= math.log(q) if y else math.log(1 - q)
    assert metrics.logloss(label, p) == pytest.approx(slow / len(label), rel=1e-9)
    assert math.isfinite(metrics.logloss(label, p))


def test_logloss_of_float32_certainties_is_finite():
    p = np.array([0, 1], np.float32)
    assert metrics.logloss(np.array([0, 1]), p) == pytest.approx(0, abs=1e-6)
    assert metrics.logloss(np.array([1, 0]), p) == pytest.approx(-math.log(1e-7), rel=1e-6)


@given(ROWS, st.integers(1, 16))
@settings(deadline=None)
def test_ece_sums_the_gaps_of_bins(rows, bins):
    label, p, _ = columns(rows)
    p = np.where(p < 1, p + 1 / 200, 1.0)  # off the edges, where rounding would decide the bin
    assert metrics.ece(label, p, bins) == pytest.approx(slow_ece(label, p, bins), abs=1e-12)


def test_ece_of_a_calibrated_and_a_wrong_forecast():
    label = np.array([1, 0, 0, 0] * 5)
    assert metrics.ece(label, np.full(20, 0.25)) == pytest.approx(0)
    assert metrics.ece(label, np.full(20, 1.0)) == pytest.approx(0.75)


def test_relaimpr():
    assert metrics.relaimpr(0.8, 0.75) == pytest.approx(0.2)
    assert metrics.relaimpr(0.7, 0.7) == 0
    assert metrics.relaimpr(0.5, 0.75) == -1
    assert np.isnan([metrics.relaimpr(0.7, 0.5), metrics.relaimpr(0.7, 0.4)]).all()
