"""Protocols: filters, labels, order, split."""

import numpy as np
import pyarrow as pa
import pytest

from alt_jax.data import protocols
from alt_jax.data.protocols import PROTOCOLS, Protocol
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError

RNG = np.random.default_rng(1)
RATINGS = RNG.integers(1, 6, 200)
TIMES = RNG.integers(0, 40, 200)  # many ties
USERS = RNG.integers(0, 10, 200)


def raw(labels: np.ndarray = RATINGS, timestamp: bool = True, user: bool = True) -> RawData:
    table = pa.table({"label": labels.astype(float), "time": TIMES[: len(labels)], "who": USERS[: len(labels)]})
    return RawData(
        source="table",
        origin="rows.csv",
        table=table,
        fields=(),
        label="label",
        timestamp="time" if timestamp else None,
        timestamp_quality=None,
        user="who" if user else None,
        item=None,
        linked=(),
    )


def all_rows(split: protocols.Split) -> np.ndarray:
    return np.concatenate([split.rows[name] for name in protocols.SPLITS])


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_splits_are_disjoint_complete_and_sized_8_1_1(name: str):
    split = protocols.apply(PROTOCOLS[name], raw())
    rows = all_rows(split)
    assert len(set(rows.tolist())) == len(rows) == 200 - sum(split.dropped.values())
    for part, share in zip(protocols.SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(split.rows[part]) - share * len(rows)) <= 1
    assert (split.positive == (RATINGS > 3)).all()


def test_time_is_ordered_and_ties_keep_the_order_of_the_file():
    rows = all_rows(protocols.apply(PROTOCOLS["time"], raw()))
    assert rows.tolist() == sorted(range(200), key=lambda row: TIMES[row])  # Python's sort is stable


@pytest.mark.parametrize("name", ["random_drop3", "time_drop3"])
def test_drop3(name: str):
    split = protocols.apply(PROTOCOLS[name], raw())
    assert sorted(all_rows(split)) == np.flatnonzero(RATINGS != 3).tolist()
    assert split.dropped == {"label is 3": int((RATINGS == 3).sum())}


def test_time_skip5_leaves_out_each_users_first_five():
    kept = set(all_rows(protocols.apply(PROTOCOLS["time_skip5"], raw())).tolist())
    for user in range(10):
        mine = sorted(np.flatnonzero(user == USERS).tolist(), key=lambda row: TIMES[row])
        assert [row in kept for row in mine] == [False] * 5 + [True] * (len(mine) - 5)


def test_random_depends_on_the_protocols_seed_only():
    first = all_rows(protocols.apply(PROTOCOLS["random"], raw()))
    assert first.tolist() == all_rows(protocols.apply(PROTOCOLS["random"], raw())).tolist()
    other = all_rows(protocols.apply(Protocol("other", "random", seed=1), raw()))
    assert first.tolist() != other.tolist()
    # Written down, so that a change of NumPy or of this code that moves the split does not pass unseen.
    assert first[:6].tolist() == [53, 33, 94, 2, 42, 147]


def test_the_shuffle_is_uniform():
    firsts = [all_rows(protocols.apply(Protocol("p", "random", seed=seed), raw()))[0] for seed in range(300)]
    assert abs(np.mean(firsts) - 99.5) < 12  # 3.6 standard errors
    assert len(set(firsts)) > 130


def test_thresholds():
    clicks = (RATINGS > 4).astype(int)
    split = protocols.apply(PROTOCOLS["random"], raw(clicks))
    assert split.threshold == 0.5
    assert (split.positive == (clicks == 1)).all()
    assert (protocols.apply(PROTOCOLS["random"], raw(), positive_above=4).positive == (RATINGS > 4)).all()
    with pytest.raises(InputError, match=r"drops ratings, but the labels of rows\.csv are only 0 and 1; use 'time'"):
        protocols.apply(PROTOCOLS["time_drop3"], raw(clicks))


def test_what_is_refused():
    with pytest.raises(InputError, match=r"Unknown data\.protocol 'time_drop_3'; did you mean 'time_drop3'"):
        protocols.get("time_drop_3")
    with pytest.raises(InputError, match="has no timestamp column declared"):
        protocols.apply(PROTOCOLS["time"], raw(timestamp=False))
    with pytest.raises(InputError, match="needs a user column"):
        protocols.apply(PROTOCOLS["time_skip5"], raw(user=False))
    with pytest.raises(InputError, match=r"All training labels of rows.csv are on one side of 5.*from 1 to 5"):
        protocols.apply(PROTOCOLS["random"], raw(), positive_above=5)
    with pytest.raises(InputError, match=r"The (valid|test) split of rows\.csv is empty"):
        protocols.apply(PROTOCOLS["random"], raw(RATINGS[:3]))
