"""The paired bootstrap against one written out, resample by resample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alt_jax import bootstrap, metrics


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_weighted_areas_are_those_of_repeated_rows(seed, levels):
    random = np.random.default_rng(seed)
    label, score = random.random(30) < 0.4, random.integers(0, levels + 1, 30) / levels
    weight = random.integers(0, 3, (4, 30))
    found = bootstrap._Ranked(label, score).areas(weight.astype(float))
    for area, times in zip(found, weight, strict=True):
        rows = np.repeat(np.arange(30), times)
        both = 0 < label[rows].sum() < len(rows)
        positives, negatives = score[rows][label[rows]], score[rows][~label[rows]]
        order = np.sign(positives[:, None] - negatives[None, :]) if both else np.array([np.nan])
        np.testing.assert_allclose(area, ((order + 1) / 2).mean())


def test_the_interval_is_that_of_users_drawn_again():
    random = np.random.default_rng(0)
    user, label = np.repeat(np.arange(40), 6), random.random(240) < 0.5
    good = [label + random.normal(0, 1.5, 240) for _ in range(2)]
    poor = [label + random.normal(0, 3.0, 240) for _ in range(3)]
    low, high = bootstrap.auc_difference(label, user, good, poor, resamples=400, seed=3)
    draws = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=400)
    differences = []
    for times in draws:
        rows = np.repeat(np.arange(240), times[user])
        ours, theirs = (np.mean([metrics.auc(label[rows], s[rows]) for s in side]) for side in (good, poor))
        differences.append(ours - theirs)
    assert (low, high) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))))
    assert low > 0
    same = bootstrap.auc_difference(label, user, good, good)
    assert same == (0, 0)


def test_rows_of_one_user_together_say_less_than_as_many_users():
    random = np.random.default_rng(0)
    of_user = random.random(50) < 0.5
    label = np.repeat(of_user, 20)
    score = [np.repeat(of_user + random.normal(0, 1, 50), 20)]
    chance = [random.random(1000)]
    together = bootstrap.auc_difference(label, np.repeat(np.arange(50), 20), score, chance)
    apart = bootstrap.auc_difference(label, None, score, chance)
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_undefined_where_one_class_is_nearly_always_missing():
    label = np.arange(20) == 0
    one = [np.arange(20.0)]
    found = bootstrap.auc_difference(label[:1], None, [one[0][:1]], [one[0][:1]])
    assert np.isnan(found).all()
    assert np.isnan(bootstrap.auc_difference(label[:0], None, [one[0][:0]], [one[0][:0]])).all()
