"""Named protocols: how rows are filtered, labelled, ordered and split.

The protocol moves AUC far more than any method does, so results are comparable within one protocol only and every
result names its protocol. A split depends on the protocol alone, never on the run's seed.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from alt_jax.data.sources.raw import RawData, nearest
from alt_jax.errors import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Protocol:
    """A preset.

    Attributes:
      name: As in `data.protocol`.
      order: `time`: sorted by time, ties by the order of the file; `random`: shuffled.
      drop_labels: Rows with these labels are left out.
      positive_above: Labels above this are positive.
      skip_first: Each user's first so many rows, by time, are left out.
      fractions: Shares of train, valid and test.
      seed: Of the shuffle.
    """

    name: str
    order: Literal["time", "random"]
    drop_labels: tuple[float, ...] = ()
    positive_above: float = 3.0
    skip_first: int = 0
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0


_PRESETS = (
    Protocol("time", "time"),
    Protocol("random", "random"),
    Protocol("time_drop3", "time", drop_labels=(3.0,)),
    Protocol("random_drop3", "random", drop_labels=(3.0,)),
    # ReLLa and its siblings report 970,009 rows of ML-1M. That the missing ones are each user's first 5 is inferred
    # from the count, 1,000,209 - 5 * 6,040 = 970,009; nothing published says so.
    Protocol("time_skip5", "time", skip_first=5),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PRESETS}


class Split(NamedTuple):
    """What a protocol makes of raw rows.

    Attributes:
      rows: Row numbers of the raw table, by split, in the protocol's order.
      positive: Label of every row of the raw table.
      threshold: Labels above it are positive.
      dropped: Reasons for which rows were left out, and how many.
    """

    rows: dict[str, Int[np.ndarray, " _"]]
    positive: Bool[np.ndarray, " N"]
    threshold: float
    dropped: dict[str, int]


def get(name: str) -> Protocol:
    """The preset of that name.

    Raises:
      InputError: There is none; names the nearest.
    """
    if name not in PROTOCOLS:
        raise InputError(f"Unknown data.protocol {name!r}; {nearest(name, list(PROTOCOLS))}")
    return PROTOCOLS[name]


def apply(protocol: Protocol, raw: RawData, positive_above: float | None = None) -> Split:
    """Filters, labels, orders and splits.

    Args:
      protocol: The preset.
      raw: Raw rows.
      positive_above: Replaces the preset's threshold. Without it, labels that are only 0 and 1 are split at 0.5.

    Returns:
      Row numbers by split, and labels.

    Raises:
      InputError: The table lacks the time or user column that the preset needs, a split is empty, or training has
        only one class.
    """
    labels = np.asarray(raw.table[raw.label], np.float64)
    binary = bool(np.isin(labels, (0.0, 1.0)).all())
    if binary and protocol.drop_labels:
        raise InputError(
            f"Protocol {protocol.name!r} drops ratings, but the labels of {raw.origin} are only 0 and 1; "
            f"use {protocol.order!r}."
        )
    threshold = positive_above
    if threshold is None:
        threshold = 0.5 if binary else protocol.positive_above
    positive = labels > threshold

    rows = np.arange(len(labels), dtype=np.int64)
    dropped: dict[str, int] = {}
    needs_time = protocol.order == "time" or protocol.skip_first > 0
    if needs_time and raw.timestamp is None:
        raise InputError(
            f"Protocol {protocol.name!r} sorts by time, but {raw.origin} has no timestamp column declared; "
            "set data.timestamp or use 'random'."
        )
    if needs_time and raw.timestamp_quality is not None:
        guessed = np.asarray(raw.table[raw.timestamp_quality]) == 2
        dropped["timestamp is a guess (quality 2)"] = int(guessed.sum())
        rows = rows[~guessed]
    if protocol.drop_labels:
        unwanted = np.isin(labels[rows], protocol.drop_labels)
        dropped[f"label is {' or '.join(f'{label:g}' for label in protocol.drop_labels)}"] = int(unwanted.sum())
        rows = rows[~unwanted]
    if needs_time:
        rows = rows[np.argsort(np.asarray(raw.table[raw.timestamp])[rows], kind="stable")]
    if protocol.skip_first:
        early = _rank_within(_user_codes(protocol, raw)[rows]) < protocol.skip_first
        dropped[f"among its user's first {protocol.skip_first}"] = int(early.sum())
        rows = rows[~early]
    if protocol.order == "random":
        rows = rows[np.argsort(_mix(rows, protocol.seed), kind="stable")]

    bounds = np.rint(np.cumsum(protocol.fractions)[:2] * len(rows)).astype(int)
    split = dict(zip(SPLITS, np.split(rows, bounds), strict=True))
    for name, part in split.items():
        if not len(part):
            raise InputError(
                f"The {name} split of {raw.origin} is empty, since the protocol leaves {len(rows)} rows; add rows."
            )
    if len(set(positive[split["train"]].tolist())) < 2:
        raise InputError(
            f"All training labels of {raw.origin} are on one side of {threshold:g}; set data.positive_above so that "
            f"both classes occur (labels run from {labels.min():g} to {labels.max():g})."
        )
    return Split(split, positive, threshold, dropped)


def _user_codes(protocol: Protocol, raw: RawData) -> Int[np.ndarray, " N"]:
    if raw.user is None:
        raise InputError(f"Protocol {protocol.name!r} needs a user column; set data.user or use another protocol.")
    column = raw.table[raw.user].combine_chunks()
    return np.asarray((column if hasattr(column, "indices") else column.dictionary_encode()).indices.fill_null(-1))


def _rank_within(groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Position of each row among the rows of its group, in the given order."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    result = np.empty_like(rank)
    result[order] = rank
    return result


def _mix(rows: Int[np.ndarray, " N"], seed: int) -> UInt64[np.ndarray, " N"]:
    """SplitMix64 of the row number: sorting by it shuffles in the same way under any NumPy, forever."""
    golden = 0x9E3779B97F4A7C15
    z = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(golden) + np.uint64((seed * 0xD1342543DE82EF95) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
