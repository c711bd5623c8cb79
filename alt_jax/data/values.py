"""The values of a dataset: which strings each field has, how they are spelled, and their feature ids.

What is decided here depends on counts alone, so that whoever counts, on one machine or on many, gets the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from alt_jax.config import FieldConfig
from alt_jax.data import fields, spelling
from alt_jax.data.sources.raw import RawData
from alt_jax.data.spelling import Spelled
from alt_jax.errors import InputError, nearest
from alt_jax.schema import PAD_ID, Numeric

_CHUNK = 1 << 22  # rows


class Tally(NamedTuple):
    """What rows have of a field.

    Attributes:
      strings: Distinct ones, in any order.
      counts: Training rows (for lists: occurrences in training rows) of each.
      kept: More than 0 if the dataset needs the string: some split has it, or a history may.
      slots: Longest list of any split.
      cut: Training rows whose list was longer than the field's slots.
      type: What the values are; empty where the column does not say.
    """

    strings: list[str]
    counts: Int[np.ndarray, " V"]
    kept: Int[np.ndarray, " V"]
    slots: int
    cut: int = 0
    type: spelling.Type | Literal[""] = ""


class Values(NamedTuple):
    """One field's distinct values, those with a feature id of their own first, `known` of them.

    Attributes:
      strings: As in the raw table; of a sequence, the item's.
      spelled: As in the prompt.
      counts: Training rows (for lists: occurrences in training rows).
      known: Values with a feature id of their own; of a numeric field, those seen in training.
      slots: S.
      feature: Feature ids.
      offset, size: The field's range of feature ids.
      numeric: Bins of a numeric field.
      number: Standardised number of each value.
      type: What the values are, see `alt_jax.data.spelling`.
      cut: Training rows whose list was longer than the field's slots.
    """

    strings: list[str]
    spelled: list[str]
    counts: Int[np.ndarray, " V"]
    known: int
    slots: int
    feature: Int[np.ndarray, " V"]
    offset: int
    size: int
    numeric: Numeric | None
    number: Float[np.ndarray, " V"]
    type: spelling.Type
    cut: int = 0


def check_sequences(raw: RawData) -> None:
    """Refuses a sequence whose items or their spelling are not there.

    Raises:
      InputError: As the sentence says.
    """
    categories = {field.column: field for field in raw.fields if field.kind == "category"}
    for field in raw.fields:
        if field.kind != "sequence":
            continue
        if field.of not in categories:
            raise InputError(
                f"Field {field.column!r} is a sequence of {field.of!r}, which is no category among data.fields; "
                f"{nearest(field.of, list(categories))}"
            )
        if field.spelled and field.spelled not in raw.table.column_names:
            raise InputError(
                f"Field {field.column!r} is spelled by column {field.spelled!r}, which {raw.origin} has not; "
                f"{nearest(field.spelled, raw.table.column_names)}"
            )
        if field.spelled and categories[field.of].hash_buckets:
            raise InputError(
                f"Field {field.column!r} is spelled by column {field.spelled!r}, but its items are hashed, and a "
                "bucket holds several; leave spelled out."
            )


def remembered(fields: Iterable[FieldConfig]) -> set[str]:
    """Columns of items whose histories hold rows of any split, or of none where the protocol skips a user's first."""
    return {field.of for field in fields if field.kind == "sequence" and field.past == "all"}


def tally(spelled: Spelled, train: list[np.ndarray], kept: list[np.ndarray]) -> Tally:
    """Counts strings in rows.

    Args:
      spelled: A column.
      train: Numbers of its training rows, in one or several arrays.
      kept: Those of the rows whose strings the dataset needs.
    """
    strings, codes, longer = spelled
    cut = 0 if longer is None else sum(int(longer[rows].sum()) for rows in train)
    counts = count(codes, train, len(strings)), count(codes, kept, len(strings))
    return Tally(strings, *counts, _longest(codes, kept), cut)


def read_as(field: FieldConfig, column: pa.DataType) -> FieldConfig:
    """The field as its column is read: of the type that the column's says, where the field does not say any."""
    if field.type or field.kind == "numeric":
        return field
    return replace(field, type=spelling.type_of_column(column))


def of_column(field: FieldConfig, tally: Tally, offset: int, min_count: int, origin: str) -> Values:
    """Values of a field whose column the raw table holds. Only training rows decide which have ids, and where bins lie.

    Args:
      field: Not a sequence.
      tally: What its column holds.
      offset: Its first feature id.
      min_count: Training rows that a value of a category must have.
      origin: Of the raw rows, for messages.

    Raises:
      InputError: A number is none, or no value is frequent enough.
    """
    tally, kind = _typed(field, tally)
    known = tally.counts >= (min_count if field.kind in ("category", "multi") else 1)
    if not known.any():
        raise InputError(
            f"No value of column {field.column!r} of {origin} occurs {min_count} times in training; "
            "lower data.min_count or leave the column out."
        )
    order = _order(tally.strings, tally.counts, known, tally.kept)
    strings, counts = [tally.strings[i] for i in order], tally.counts[order]
    many = min(int(known.sum()), field.max_ids or len(strings))
    numeric, number = None, np.zeros(len(strings), np.float32)
    if field.kind == "numeric":
        numbers = fields.parse_numbers(strings, field.column, origin)
        numeric = fields.fit_numeric(numbers, counts, field.bins)
        feature, size = offset + fields.bin_of(numeric, numbers), 2 + len(numeric.edges)
        number = fields.scaled(numeric, numbers, strings, field.column, origin)
    elif field.kind == "text":
        feature, size = np.full(len(strings), PAD_ID), 0
    else:
        position = np.arange(len(strings))
        feature, size = np.where(position < many, offset + 1 + position, offset), 1 + many
    feature = feature.astype(np.int32)
    return Values(strings, strings, counts, many, tally.slots, feature, offset, size, numeric, number, kind, tally.cut)


def _typed(field: FieldConfig, tally: Tally) -> tuple[Tally, spelling.Type]:
    """The tally in the spelling of what its values are, and what that is."""
    if field.kind == "numeric":
        return tally, "number"
    declared = field.type or tally.type
    if field.hash_buckets:  # whose strings are numbers of buckets by now
        return tally, declared or "string"
    own = np.flatnonzero(tally.kept > 0)
    kind = declared or spelling.type_of([tally.strings[i] for i in own])
    merged = spelling.as_type(Spelled(tally.strings, np.arange(len(tally.strings))[:, None]), kind)
    if merged.strings is not tally.strings:
        counts, kept = (
            np.bincount(merged.codes[:, 0], part, len(merged.strings)).astype(np.int64)
            for part in (tally.counts, tally.kept)
        )
        tally = tally._replace(strings=merged.strings, counts=counts, kept=kept)
    return tally, kind


def of_sequence(
    field: FieldConfig,
    item: Values,
    titles: list[str],
    counts: Int[np.ndarray, " V"],
    kept: Int[np.ndarray, " V"],
) -> tuple[Values, Int[np.ndarray, " V"]]:
    """Values of a sequence; they share the feature ids of the item's field.

    Args:
      field: The sequence.
      item: The values of its items.
      titles: How the prompt spells each of them.
      counts: Occurrences in training rows of each item's value, then of the empty history.
      kept: Occurrences in all splits.

    Returns:
      The values, and where among them each of those counted stands: -1 for none.
    """
    strings, spelled = [*item.strings, ""], [*titles, ""]
    feature = np.append(item.feature, np.int32(PAD_ID))
    # Every known item, in a history or not, so that `predict` can spell any history of known items
    missing = np.array([*(not string for string in item.strings), False])  # of whom no history knows
    known = ((feature > item.offset) | (counts > 0)) & ~missing
    order = _order(strings, counts, known, np.maximum(known, kept))
    place = np.full(len(strings), -1, np.int32)
    place[order] = np.arange(len(order))
    found = Values(
        strings=[strings[i] for i in order],
        spelled=[spelled[i] for i in order],
        counts=counts[order],
        known=int(known.sum()),
        slots=field.slots,
        feature=feature[order],
        offset=item.offset,
        size=item.size,
        numeric=None,
        number=np.zeros(len(order), np.float32),
        type=item.type,
    )
    return found, place


def positions(spelled: Spelled, strings: pa.StringArray) -> Int[np.ndarray, "N S"]:
    """Where among a field's values each row's strings stand; -1 for none, and for what is not among them."""
    found = pc.fill_null(pc.index_in(pa.array(spelled.strings, pa.string()), value_set=strings), -1)
    return np.append(np.asarray(found, np.int32), np.int32(-1))[spelled.codes]


def somebody(users: list[str], codes: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The user of every row, -1 where it is missing: two rows without a user are not of the same one."""
    return np.where(np.array([not user for user in users], bool)[codes], np.int32(-1), codes)


def histories(
    field: FieldConfig,
    user: Int[np.ndarray, " N"],
    time: np.ndarray,
    item: Int[np.ndarray, " N"],
    positive: Bool[np.ndarray, " N"],
    known: Bool[np.ndarray, " N"],
    train: Bool[np.ndarray, " N"],
    missing: Bool[np.ndarray, " V"],
) -> Int[np.ndarray, "N S"]:
    """What a sequence holds in every row: which of the item's values; -1 behind the last.

    Args:
      field: The sequence.
      user: User of every row; -1 where it is missing.
      time: What rows are ordered by; of simultaneous ones, the later in these arrays is the newer.
      item: Which of the item's values every row has.
      positive: Labels.
      known: `alt_jax.data.protocols.Split.known`.
      train: Rows of the training part.
      missing: Which of the item's values is that of a missing one, which no history holds. An empty history holds how
        many values there are, a number that stands for the empty string.
    """
    outcome = {"positive": positive, "negative": ~positive, "any": known}[field.outcome]
    there = (user >= 0) & (item >= 0) & ~np.append(missing, True)[item]
    eligible = outcome & known & (train if field.past == "train" else True) & there
    found = fields.history(user, time, item, eligible, field.slots)
    found[found[:, 0] < 0, 0] = len(missing)
    return found


def count(codes: Int[np.ndarray, "N S"], rows: list[np.ndarray], size: int) -> Int[np.ndarray, " V"]:
    """How often each of `size` codes stands in these rows."""
    counts = np.zeros(size, np.int64)
    for part in _parts(codes, rows):
        counts += np.bincount(part[part >= 0], minlength=size)
    return counts


def _longest(codes: Int[np.ndarray, "N S"], rows: list[np.ndarray]) -> int:
    """Slots that the longest list in these rows fills; at least one."""
    if codes.shape[1] == 1:
        return 1
    return max((int((part >= 0).sum(axis=1).max(initial=1)) for part in _parts(codes, rows)), default=1)


def _parts(codes: Int[np.ndarray, "N S"], rows: list[np.ndarray]) -> Iterator[Int[np.ndarray, "n S"]]:
    """The codes of these rows, some at a time, since what NumPy counts it first copies as int64."""
    for numbers in rows:
        for low in range(0, len(numbers), _CHUNK):
            # `take`, since `codes[rows]` is slower, three times on long tables.
            yield codes.take(numbers[low : low + _CHUNK], axis=0)


def _order(
    strings: list[str], counts: Int[np.ndarray, " V"], known: Bool[np.ndarray, " V"], kept: Int[np.ndarray, " V"]
) -> Int[np.ndarray, " W"]:
    """Values that some split or history has: known ones first, the frequent before the rare, then by code point."""
    rank = np.empty(len(strings), np.int64)
    rank[np.asarray(pc.sort_indices(pa.array(strings, pa.string())))] = np.arange(len(strings))
    order = np.lexsort((rank, -counts, ~known))
    return order[kept[order] > 0]
