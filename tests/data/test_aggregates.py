"""Statistics over an entity's rows do not tell labels where there is nothing else to learn."""

import numpy as np
import pyarrow as pa
import pytest

from alt_jax.config import FieldConfig
from alt_jax.data import aggregates
from alt_jax.data.protocols import PROTOCOLS, Split
from alt_jax.data.sources.raw import Aggregate, RawData
from alt_jax.metrics import auc

ITEMS, EACH = 5000, 4


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Coin flips of items that are all alike."""
    return np.random.default_rng(0).integers(0, 2, (ITEMS, EACH))


def taken_again(labels: np.ndarray, how: str) -> np.ndarray:
    """What `resolve` gives every row; NaN where that is nothing."""
    items = np.repeat(np.arange(ITEMS), EACH)
    table = pa.table({"item": items, "label": labels.ravel().astype(float), "value": np.zeros(ITEMS * EACH)})
    raw = RawData(
        **{"source": "made", "origin": "made", "table": table, "fields": (FieldConfig("item"), FieldConfig("value"))},
        **{"label": "label", "timestamp": None, "timestamp_quality": None, "user": None, "item": "item", "linked": ()},
        aggregates=(Aggregate("value", of="label", by="item", how=how),),
    )
    rows = np.arange(ITEMS * EACH)
    split = Split({"train": rows, "valid": rows[:0], "test": rows[:0]}, labels.ravel() > 0, 0.5, {}, rows)
    values = aggregates.resolve(PROTOCOLS["random"], raw, split).table["value"].to_pylist()
    return np.array([np.nan if value is None else float(value) for value in values]).reshape(ITEMS, EACH)


def others(labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Mean over the item's rows in other folds."""
    other = folds[:, :, None] != folds[:, None, :]
    return np.where(other.any(2), (other * labels[:, None, :]).sum(2) / np.maximum(other.sum(2), 1), np.nan).round(1)


def within(labels: np.ndarray, values: np.ndarray) -> float:
    """How often, of a click and a non-click of one item, the click has the smaller value."""
    both = ~np.isnan(values)
    pairs = ((labels == 1) & both)[:, :, None] & ((labels == 0) & both)[:, None, :]
    more = (values[:, None, :] - values[:, :, None])[pairs]
    return float(np.mean((more > 0) + 0.5 * (more == 0)))


def overall(labels: np.ndarray, values: np.ndarray) -> float:
    there = ~np.isnan(values)
    return auc(labels[there], values[there])


def test_no_aggregate_tells_a_label(labels: np.ndarray):
    """Nor does having none; the alternatives that the module names do, as much as it says."""
    for how in ("mean", "sum"):
        values = taken_again(labels, how)
        assert within(labels, values) == pytest.approx(0.5, abs=0.02)
        assert overall(labels, values) == pytest.approx(0.5, abs=0.02)
        missing = np.isnan(values)
        assert 0.5 < missing.mean() < 0.6
        assert within(labels, missing.astype(float)) == pytest.approx(0.5, abs=0.02)
        assert auc(labels.ravel(), missing.ravel().astype(float)) == pytest.approx(0.5, abs=0.02)
    one_out = others(labels, np.tile(np.arange(EACH), (ITEMS, 1)))
    folds = others(labels, np.random.default_rng(1).integers(0, 5, labels.shape))
    whole = np.repeat(labels.mean(1, keepdims=True), EACH, axis=1)
    table = [(within(labels, values), overall(labels, values)) for values in (one_out, folds, whole)]
    np.testing.assert_allclose(table, [(1.0, 0.5), (0.9, 0.5), (0.5, 0.77)], atol=0.015)
