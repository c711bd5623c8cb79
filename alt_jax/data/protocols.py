"""Named protocols: how rows are filtered, labelled, ordered and split.

The protocol moves AUC far more than any method does, so results are comparable within one protocol only and every
result names its protocol. A split depends on the protocol alone, never on the run's seed, and is recorded by hash.
"""

import dataclasses
import hashlib
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from alt_jax.config import FieldConfig
from alt_jax.data import fields, spelling
from alt_jax.data.protocol_presets import PROTOCOLS, Protocol, get
from alt_jax.data.sources.raw import RawData
from alt_jax.errors import InputError
from alt_jax.schema import SPLITS

UNLABELLED = 2  # the label of a row that has none

__all__ = ["PROTOCOLS", "SPLITS", "UNLABELLED", "Protocol", "Split", "apply", "get", "mix", "split_hash"]


class Split(NamedTuple):
    """What a protocol makes of raw rows.

    Attributes:
      rows: Row numbers of the raw table, by split, in the protocol's order.
      label: Of every row of the raw table: 1 or 0, or `UNLABELLED`.
      threshold: Labels above it are positive.
      dropped: Reasons for which rows were left out, and how many.
      known: Whether a history of all splits may hold a row: those of `rows` that have a label, and those that
        `skip_first` left out.
    """

    rows: dict[str, Int[np.ndarray, " _"]]
    label: UInt8[np.ndarray, " N"]
    threshold: float
    dropped: dict[str, int]
    known: Bool[np.ndarray, " N"]


def apply(protocol: Protocol, raw: RawData, positive_above: float | None = None) -> Split:
    """Filters, labels, orders and splits.

    Args:
      protocol: The preset.
      raw: Raw rows.
      positive_above: Replaces the preset's threshold. Without it, labels that are only 0 and 1 are split at 0.5.

    Returns:
      Row numbers by split, and labels.

    Raises:
      InputError: The data lacks the time, the users, the items, the labels or the aggregates that the preset is about;
        the preset cannot fill a field of its kind; labels are neither 0 and 1 nor on a scale that is known; a split is
        empty; or training has only one class.
    """
    every = np.asarray(raw.table[raw.label], np.float64)  # as many as there are, whatever a file says of itself
    labels = every[: len(every) - raw.unlabelled]
    _check(protocol, raw, labels)
    _check_sequences(protocol, raw)
    above = threshold(raw, labels, positive_above)
    positive = labels > above
    rows, known, dropped = _filter(protocol, raw, labels)
    split = _divide(protocol, raw, rows)
    for name, part in split.items():
        if not len(part):
            raise InputError(
                f"The {name} split of {raw.origin} is empty, since the protocol leaves {len(rows)} rows; add rows."
            )
    if len(set(positive[split["train"]].tolist())) < 2:
        raise InputError(
            f"All training labels of {raw.origin} are on one side of {above:g}; set data.positive_above so that "
            f"both classes occur (labels run from {labels.min():g} to {labels.max():g})."
        )
    label = np.full(len(every), UNLABELLED, np.uint8)
    label[: len(labels)] = positive
    if raw.unlabelled:
        more = _unlabelled(protocol, raw, np.arange(len(labels), len(every), dtype=np.int64), split)
        if len(more) < raw.unlabelled:
            held_out = "newer than training" if protocol.needs_time else "of what is held out"
            dropped[f"without a label, {held_out}"] = raw.unlabelled - len(more)
        split["train"] = np.concatenate([split["train"], more])
    return Split(split, label, above, dropped, np.pad(known, (0, raw.unlabelled)))


def threshold(raw: RawData, labels: Float[np.ndarray, " N"], positive_above: float | None) -> float:
    """What labels are positive above: as told, else ½ where all are 0 or 1, else as the data's scale has it.

    Raises:
      InputError: Nobody knows; names the first label that is neither 0 nor 1.
    """
    clicks = np.isin(labels, (0.0, 1.0))
    found = positive_above if positive_above is not None else 0.5 if clicks.all() else raw.positive_above
    if found is None:
        row = int((~clicks).argmax())
        raise InputError(
            f"The label {labels[row]:g} in data row {row + 1} of {raw.origin} is neither 0 nor 1; correct it, or set "
            "data.positive_above: labels above it are positive."
        )
    return found


def _unlabelled(
    protocol: Protocol, raw: RawData, rows: Int[np.ndarray, " _n"], split: dict[str, np.ndarray]
) -> Int[np.ndarray, " _"]:
    """Those of the rows without a label that training may see: what is held out is held out of them, too."""
    if protocol.order in ("items", "users"):
        return rows[_parts(protocol, raw, "item" if protocol.order == "items" else "user")[rows] == 0]
    if protocol.needs_time:
        assert raw.timestamp is not None, "_check refuses it"
        time = np.asarray(raw.table[raw.timestamp])
        return rows[time[rows] <= time[split["train"]].max()]
    return rows


def split_hash(raw: RawData, rows: Int[np.ndarray, " _"]) -> str:
    """SHA-256 over which raw rows these are, in any order: their numbers (int64) and labels (float64), little-endian.

    Two people whose splits have the same hash trained or tested on the same rows, whatever fields, vocabulary and
    tokenizer they chose; the labels are in it so that another file of the same length does not pass for the same.
    """
    labels = np.asarray(raw.table[raw.label], np.float64)
    member = np.zeros(len(labels), bool)
    member[rows] = True
    digest = hashlib.sha256(np.flatnonzero(member).astype("<i8", copy=False).data)
    digest.update(labels[member].astype("<f8", copy=False).data)
    return digest.hexdigest()


def mix(rows: Int[np.ndarray, " N"], seed: int) -> UInt64[np.ndarray, " N"]:
    """SplitMix64 of the row number, uniform over 64 bits: sorting by it shuffles the same under any NumPy, forever."""
    golden = 0x9E3779B97F4A7C15
    z = rows.astype(np.uint64)
    z += np.uint64(1)
    z *= np.uint64(golden)
    z += np.uint64((seed * 0xD1342543DE82EF95) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def _check(protocol: Protocol, raw: RawData, labels: Float[np.ndarray, " N"]) -> None:
    """A preset about something that the data has not would be a protocol in name only."""
    plain = "time" if protocol.order == "time" else "random"
    if protocol.drop_labels and np.isin(labels, (0.0, 1.0)).all():
        raise InputError(
            f"Protocol {protocol.name!r} drops ratings, but the labels of {raw.origin} are only 0 and 1; use {plain!r}."
        )
    for label in protocol.drop_labels:
        if not (labels == label).any():
            raise InputError(
                f"Protocol {protocol.name!r} drops ratings of {label:g}, but {raw.origin} has none; use {plain!r}."
            )
    if protocol.aggregates != "train" and not raw.aggregates:
        raise InputError(
            f"Protocol {protocol.name!r} is about published averages and counts, but {raw.origin} has none; use "
            f"{protocol.name.removesuffix(f'_{protocol.aggregates}')!r}."
        )
    if protocol.order == "given" and raw.split is None:
        raise InputError(
            f"Protocol {protocol.name!r} goes by a split of your own, but none is declared; set data.split, or "
            f"data.valid and data.test, or use {plain!r}."
        )
    if protocol.order != "given" and raw.split is not None:
        raise InputError(
            f"Protocol {protocol.name!r} divides the rows, but data.split (or data.valid and data.test) does, too; set "
            "data.protocol given, or leave that out."
        )
    if protocol.needs_time and raw.timestamp is None:
        declared = "no timestamp column declared; set data.timestamp or" if raw.source == "table" else "no timestamps;"
        raise InputError(f"Protocol {protocol.name!r} sorts by time, but {raw.origin} has {declared} use 'random'.")


def _check_sequences(protocol: Protocol, raw: RawData) -> None:
    """A history that the preset leaves empty would be a field in name only."""
    for field in raw.fields:
        if field.kind != "sequence":
            continue
        missing = "user" if raw.user is None else "timestamp" if raw.timestamp is None else None
        if missing is not None:
            raise InputError(
                f"Field {field.column!r} is a sequence, which needs data.user and data.timestamp; protocol "
                f"{protocol.name!r} cannot fill it, since {raw.origin} has no {missing} declared."
            )
        if protocol.order == "users" and field.past == "train":
            raise InputError(
                f"Protocol {protocol.name!r} cannot fill field {field.column!r}, a sequence of training rows, since it "
                "holds users out of training; set the field's past to 'all', or use another protocol."
            )
        if protocol.order in ("random", "items", "given") and field.past == "all":
            raise InputError(
                f"Protocol {protocol.name!r} is not in order of time, so past 'all' of field {field.column!r} would "
                "show training rows what is held out for validation and test; set past to 'train'."
            )


def _filter(
    protocol: Protocol, raw: RawData, labels: Float[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " _"], Bool[np.ndarray, " N"], dict[str, int]]:
    """Rows that the protocol keeps, in its order; which ones a history may hold; and what was left out."""
    rows = np.arange(len(labels), dtype=np.int64)
    dropped: dict[str, int] = {}
    if protocol.needs_time and raw.timestamp_quality is not None:
        guessed = np.asarray(raw.table[raw.timestamp_quality]) == 2
        dropped["timestamp is a guess (quality 2)"] = int(guessed.sum())
        rows = rows[~guessed]
    if protocol.drop_labels:
        unwanted = np.isin(labels[rows], protocol.drop_labels)
        dropped[f"label is {' or '.join(f'{label:g}' for label in protocol.drop_labels)}"] = int(unwanted.sum())
        rows = rows[~unwanted]
    if protocol.needs_time:
        assert raw.timestamp is not None, "_check refuses it"
        rows = rows[np.argsort(np.asarray(raw.table[raw.timestamp])[rows], kind="stable")]
    known = np.zeros(len(labels), bool)
    known[rows] = True
    if protocol.skip_first:
        users, codes = _entities(protocol, raw, "user")
        nobody = np.array([not user for user in users], bool)[codes][rows]
        early = _rank_within(codes[rows]) < protocol.skip_first
        dropped[f"among its user's first {protocol.skip_first}"] = int((early & ~nobody).sum())
        if nobody.any():
            dropped["without a user, of whom nothing earlier is known"] = int(nobody.sum())
        rows = rows[~(early | nobody)]
    return rows, known, dropped


def _divide(protocol: Protocol, raw: RawData, rows: Int[np.ndarray, " _"]) -> dict[str, Int[np.ndarray, " _"]]:
    """The rows of every split, in the protocol's order."""
    if protocol.order in ("items", "users"):
        part = _parts(protocol, raw, "item" if protocol.order == "items" else "user")[rows]
        return {name: rows[part == number] for number, name in enumerate(SPLITS)}
    if protocol.order == "given":
        assert raw.split is not None, "_check refuses it"
        column = raw.table[raw.split]
        return {name: rows[np.asarray(pc.equal(column, name))[rows]] for name in SPLITS}
    if protocol.order == "random":
        rows = rows[np.argsort(mix(rows, protocol.seed), kind="stable")]
    bounds = np.rint(np.cumsum(protocol.fractions)[:2] * len(rows)).astype(int)
    return dict(zip(SPLITS, np.split(rows, bounds), strict=True))


def _entities(
    protocol: Protocol, raw: RawData, what: Literal["user", "item"]
) -> tuple[list[str], Int[np.ndarray, " N"]]:
    """Distinct users or items as text, and which of them every row has."""
    column = raw.user if what == "user" else raw.item
    if column is None:
        advice = f"set data.{what}" if raw.source == "table" else f"name its {what} among data.fields"
        raise InputError(f"Protocol {protocol.name!r} has no {what} column; {advice} or use another protocol.")
    field = next((field for field in raw.fields if field.column == column), FieldConfig(column))
    declared = dataclasses.replace(field, hash_buckets=0)  # two users that share a bucket are two
    found = fields.spell(raw.table[column], declared, raw.origin)
    found = spelling.as_type(found, declared.type or spelling.type_of(found.strings))
    return found.strings, found.codes[:, 0]


def _parts(protocol: Protocol, raw: RawData, what: Literal["user", "item"]) -> Int[np.ndarray, " N"]:
    """Number of the split of every row, which its item (or user) alone decides, whatever else is in the data.

    An id's BLAKE2b hash is a number u in [0, 1); its split is the interval between the cumulated fractions around u.
    Rows without an id are nobody's: each has a u of its own.
    """
    strings, codes = _entities(protocol, raw, what)
    u = (spelling.hashes(strings, protocol.seed) / 2.0**64)[codes]
    nobody = np.flatnonzero(np.array([not string for string in strings], bool)[codes])
    u[nobody] = mix(nobody, protocol.seed) / 2.0**64
    return np.searchsorted(np.cumsum(protocol.fractions)[:2], u, side="right")


def _rank_within(groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Position of each row among the rows of its group, in the given order."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    result = np.empty_like(rank)
    result[order] = rank
    return result
