"""Protocols: filters, labels, order, split."""

import dataclasses
import hashlib
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_jax.data import protocols
from alt_jax.data.protocols import PROTOCOLS, Protocol
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError

MOVIELENS = ("time", "random", "time_drop3", "random_drop3", "time_skip5")
RNG = np.random.default_rng(1)
RATINGS = RNG.integers(1, 6, 200)
TIMES = RNG.integers(0, 40, 200)  # many ties
USERS = RNG.integers(0, 10, 200)


def raw(labels: np.ndarray = RATINGS, timestamp: bool = True, user: bool = True, source: str = "table") -> RawData:
    table = pa.table({"label": labels.astype(float), "time": TIMES[: len(labels)], "who": USERS[: len(labels)]})
    return RawData(
        source=source,
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


@pytest.mark.parametrize("name", MOVIELENS)
def test_splits_are_disjoint_complete_and_sized_8_1_1(name: str):
    split = protocols.apply(PROTOCOLS[name], raw())
    rows = all_rows(split)
    assert len(set(rows.tolist())) == len(rows) == 200 - sum(split.dropped.values())
    for part, share in zip(protocols.SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(split.rows[part]) - share * len(rows)) <= 1
    assert ((split.label == 1) == (RATINGS > 3)).all()


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
    assert ((split.label == 1) == (clicks == 1)).all()
    assert (protocols.apply(PROTOCOLS["random"], raw(), positive_above=4).label == (RATINGS > 4)).all()
    with pytest.raises(InputError, match=r"drops ratings, but the labels of rows\.csv are only 0 and 1; use 'time'"):
        protocols.apply(PROTOCOLS["time_drop3"], raw(clicks))


def test_what_is_refused():
    with pytest.raises(InputError, match=r"Unknown data\.protocol 'time_drop_3'; did you mean 'time_drop3'"):
        protocols.get("time_drop_3")
    with pytest.raises(InputError, match="has no timestamp column declared"):
        protocols.apply(PROTOCOLS["time"], raw(timestamp=False))
    with pytest.raises(InputError, match="has no user column"):
        protocols.apply(PROTOCOLS["time_skip5"], raw(user=False))
    with pytest.raises(InputError, match=r"All training labels of rows.csv are on one side of 5.*from 1 to 5"):
        protocols.apply(PROTOCOLS["random"], raw(), positive_above=5)
    with pytest.raises(InputError, match=r"The (valid|test) split of rows\.csv is empty"):
        protocols.apply(PROTOCOLS["random"], raw(RATINGS[:3]))
    with pytest.raises(InputError, match=r"'time' sorts by time, but rows\.csv has no timestamps; use 'random'"):
        protocols.apply(PROTOCOLS["time"], raw(timestamp=False, source="bookcrossing"))
    with pytest.raises(InputError, match=r"'random_drop0' drops ratings of 0, but rows\.csv has none; use 'random'"):
        protocols.apply(PROTOCOLS["random_drop0"], raw())
    zeros = np.where(RATINGS == 1, 0, RATINGS)
    with pytest.raises(InputError, match=r"about published averages.*rows\.csv has none; use 'random_drop0'"):
        protocols.apply(PROTOCOLS["random_drop0_all_time"], raw(zeros))
    for name, what in (("cold_items", "item"), ("cold_users", "user")):
        with pytest.raises(InputError, match=f"'{name}' has no {what} column; set data.{what} or use another"):
            protocols.apply(PROTOCOLS[name], raw(user=False))
        with pytest.raises(InputError, match=f"'{name}' has no {what} column; name its {what} among data.fields"):
            protocols.apply(PROTOCOLS[name], raw(user=False, source="movielens_1m"))


def test_dropped_zeros_and_a_scale_of_its_own():
    ratings = (RATINGS - 1) * 2
    data = dataclasses.replace(raw(ratings), positive_above=4.0)
    split = protocols.apply(PROTOCOLS["random_drop0"], data)
    assert split.dropped == {"label is 0": int((ratings == 0).sum())}
    assert sorted(all_rows(split)) == np.flatnonzero(ratings).tolist()
    assert split.threshold == 4
    assert ((split.label == 1) == (ratings >= 5)).all()


# --- cold start ---


def log(users: list[str], items: list[str]) -> RawData:
    table = pa.table({"who": users, "what": items, "label": [float(n % 2) for n in range(len(users))]})
    return RawData("table", "rows.csv", table, (), "label", None, None, "who", "what", ())


ENTITIES = {"cold_users": "who", "cold_items": "what"}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(ENTITIES)),
    pairs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_cold_start_holds_whole_entities_out_wherever_they_stand(name, pairs, order):
    pairs = [*pairs, *((n, n) for n in range(60))]  # enough entities for each split
    users, items = [f"u{u}" for u, _ in pairs], [f"é{i}" for _, i in pairs]
    data = log(users, items)
    split = protocols.apply(PROTOCOLS[name], data)
    assert sorted(all_rows(split).tolist()) == list(range(len(pairs)))  # no row is lost or there twice
    entity = data.table[ENTITIES[name]].to_pylist()
    parts = [{entity[row] for row in split.rows[part]} for part in protocols.SPLITS]
    assert sum(map(len, parts)) == len(set(entity))  # hence disjoint

    permuted = list(range(len(pairs)))
    order.shuffle(permuted)
    other = protocols.apply(PROTOCOLS[name], log([users[p] for p in permuted], [items[p] for p in permuted]))
    for part in protocols.SPLITS:  # neither the order of rows nor the labels have a say
        assert {permuted[row] for row in other.rows[part]} == set(split.rows[part].tolist())


def test_cold_start_is_8_1_1_of_the_entities_and_portable():
    items = [str(i) for i in range(20_000)]
    split = protocols.apply(PROTOCOLS["cold_items"], log(["u"] * len(items), items))
    for part, share in zip(protocols.SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(split.rows[part]) - share * len(items)) < 5 * np.sqrt(share * (1 - share) * len(items))
    # Written down, so that no change of library or code moves an item unseen.
    assert split.rows["valid"][:5].tolist() == [12, 15, 23, 29, 39]
    assert split.rows["test"][:5].tolist() == [8, 20, 24, 33, 35]


def test_a_split_without_entities_is_refused():
    with pytest.raises(InputError, match=r"The (valid|test) split of rows\.csv is empty"):
        protocols.apply(PROTOCOLS["cold_users"], log(["a", "b"] * 20, ["x"] * 40))


# --- hashes ---


def test_a_split_hash_says_which_rows_and_nothing_else():
    data = raw()
    rows = protocols.apply(PROTOCOLS["random"], data).rows["test"]
    first = protocols.split_hash(data, rows)
    assert protocols.split_hash(data, rows[::-1]) == first
    assert protocols.split_hash(data, rows[1:]) != first
    moved = np.append(rows[1:], np.setdiff1d(np.arange(200), rows)[0])
    assert protocols.split_hash(data, moved) != first
    labels = RATINGS.copy()
    labels[rows[0]] = labels[rows[0]] % 5 + 1
    assert protocols.split_hash(raw(labels), rows) != first  # another file of the same length
    expected = hashlib.sha256()
    for row in sorted(rows.tolist()):
        expected.update(struct.pack("<q", row))
    for row in sorted(rows.tolist()):
        expected.update(struct.pack("<d", RATINGS[row]))
    assert first == expected.hexdigest()
