"""The values of a dataset: which strings each field has, how they are spelled, and their feature ids."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from alt_jax.config import FieldConfig
from alt_jax.data import fields
from alt_jax.data.protocols import Split
from alt_jax.data.sources.raw import RawData, as_text
from alt_jax.errors import InputError, nearest
from alt_jax.schema import FIRST_FIELD_ID, PAD_ID, Numeric


class Values(NamedTuple):
    """One field's distinct values, those with a feature id of their own first, `known` of them.

    Attributes:
      strings: As in the raw table; of a sequence, the item's.
      spelled: As in the prompt.
      counts: Training rows (for lists: occurrences in training rows).
      known: Values with a feature id of their own; of a numeric field, those seen in training.
      codes: Positions in `strings` of every raw row and slot; -1 for none, and in rows that no split or history has.
      feature: Feature ids.
      offset, size: The field's range of feature ids.
      numeric: Bins of a numeric field.
      number: Standardised number of each value.
    """

    strings: list[str]
    spelled: list[str]
    counts: Int[np.ndarray, " V"]
    known: int
    codes: Int[np.ndarray, "N S"]
    feature: Int[np.ndarray, " V"]
    offset: int
    size: int
    numeric: Numeric | None
    number: Float[np.ndarray, " V"]


def collect(raw: RawData, split: Split, min_count: int) -> list[Values]:
    """The values of every field. Only training rows decide which are in the vocabulary, and where bins lie.

    Raises:
      InputError: A field's column cannot be read as its kind, no value of it is frequent enough, or the data cannot
        fill it.
    """
    used = np.concatenate(list(split.rows.values()))
    remembered = {field.of for field in raw.fields if field.kind == "sequence" and field.past == "all"}
    found: dict[str, Values] = {}
    offset = FIRST_FIELD_ID
    for field in raw.fields:
        if field.kind != "sequence":
            needed = split.known if field.column in remembered else used
            found[field.column] = _own(raw, field, split.rows["train"], needed, offset, min_count)
            offset += found[field.column].size
    for field in raw.fields:
        if field.kind == "sequence":
            found[field.column] = _sequence(raw, field, split, used, found)
    return [found[field.column] for field in raw.fields]


def _own(
    raw: RawData,
    field: FieldConfig,
    train: Int[np.ndarray, " T"],
    used: Int[np.ndarray, " U"],
    offset: int,
    min_count: int,
) -> Values:
    """Values of a field whose column the raw table holds."""
    strings, codes = fields.spell(raw.table[field.column], field, raw.origin)
    codes = codes[:, : max(1, int((codes[used] >= 0).sum(axis=1).max(initial=1)))]
    counts = _count(codes[train], len(strings))
    known = counts >= (min_count if field.kind in ("category", "multi") else 1)
    if not known.any():
        raise InputError(
            f"No value of column {field.column!r} of {raw.origin} occurs {min_count} times in training; "
            "lower data.min_count or leave the column out."
        )
    order = _order(strings, counts, known, _count(codes[used], len(strings)))
    strings, counts, codes = [strings[i] for i in order], counts[order], _recode(codes, order, len(strings))
    many = int(known.sum())
    numeric, number = None, np.zeros(len(strings), np.float32)
    if field.kind == "numeric":
        numbers = fields.parse_numbers(strings, field.column, raw.origin)
        numeric = fields.fit_numeric(numbers[codes[train, 0]], field.bins)
        feature, size = offset + fields.bin_of(numeric, numbers), 2 + len(numeric.edges)
        number = fields.standardised(numeric, numbers)
    elif field.kind == "text":
        feature, size = np.full(len(strings), PAD_ID), 0
    else:
        position = np.arange(len(strings))
        feature, size = np.where(position < many, offset + 1 + position, offset), 1 + many
    return Values(strings, strings, counts, many, codes, feature.astype(np.int32), offset, size, numeric, number)


def _sequence(
    raw: RawData, field: FieldConfig, split: Split, used: Int[np.ndarray, " U"], found: dict[str, Values]
) -> Values:
    """The last items of each row's user, as the field declares; they share the feature ids of the item's field."""
    assert raw.user is not None, "protocols.apply refuses it"
    assert raw.timestamp is not None, "protocols.apply refuses it"
    categories = [f.column for f in raw.fields if f.kind == "category"]
    if field.of not in categories:
        raise InputError(
            f"Field {field.column!r} is a sequence of {field.of!r}, which is no category among data.fields; "
            f"{nearest(field.of, categories)}"
        )
    item = found[field.of]
    past = split.rows["train"] if field.past == "train" else split.known
    outcome = {"positive": split.positive, "negative": ~split.positive, "any": np.ones_like(split.positive)}
    eligible = np.zeros(raw.table.num_rows, bool)
    eligible[past] = outcome[field.outcome][past]
    user = np.asarray(as_text(raw.table[raw.user], raw.user, raw.origin).indices)
    time = np.asarray(raw.table[raw.timestamp])
    codes = fields.history(user, time, item.codes[:, 0], eligible, field.slots)
    none = len(item.strings)
    codes[codes[:, 0] < 0, 0] = none
    strings = [*item.strings, ""]
    spelled = [*_spellings(raw, field, item), ""]
    feature = np.append(item.feature, np.int32(PAD_ID))
    counts = _count(codes[split.rows["train"]], len(strings))
    # Every known item, in a history or not, so that `predict` can spell any history of known items
    known = (feature > item.offset) | (counts > 0)
    order = _order(strings, counts, known, np.maximum(known, _count(codes[used], len(strings))))
    return Values(
        strings=[strings[i] for i in order],
        spelled=[spelled[i] for i in order],
        counts=counts[order],
        known=int(known.sum()),
        codes=_recode(codes, order, len(strings)),
        feature=feature[order],
        offset=item.offset,
        size=item.size,
        numeric=None,
        number=np.zeros(len(order), np.float32),
    )


def _spellings(raw: RawData, field: FieldConfig, item: Values) -> list[str]:
    """How the prompt spells each item: what stands beside its first row in the column that the field names."""
    if not field.spelled:
        return item.strings
    if field.spelled not in raw.table.column_names:
        raise InputError(
            f"Field {field.column!r} is spelled by column {field.spelled!r}, which {raw.origin} has not; "
            f"{nearest(field.spelled, raw.table.column_names)}"
        )
    title = as_text(raw.table[field.spelled], field.spelled, raw.origin)
    code = item.codes[:, 0]
    rows = np.flatnonzero(code >= 0)[::-1]
    first = np.zeros(len(item.strings), np.int64)
    first[code[rows]] = rows  # the last assignment, which is the first row, stays
    return pc.take(title.dictionary, pa.array(np.asarray(title.indices)[first])).to_pylist()


def _count(codes: Int[np.ndarray, "N S"], size: int) -> Int[np.ndarray, " V"]:
    return np.bincount(codes[codes >= 0], minlength=size)


def _order(
    strings: list[str], counts: Int[np.ndarray, " V"], known: Bool[np.ndarray, " V"], kept: Int[np.ndarray, " V"]
) -> Int[np.ndarray, " W"]:
    """Values that some split or history has: known ones first, the frequent before the rare, then by code point."""
    rank = np.empty(len(strings), np.int64)
    rank[np.asarray(pc.sort_indices(pa.array(strings, pa.string())))] = np.arange(len(strings))
    order = np.lexsort((rank, -counts, ~known))
    return order[kept[order] > 0]


def _recode(codes: Int[np.ndarray, "N S"], order: Int[np.ndarray, " W"], size: int) -> Int[np.ndarray, "N S"]:
    remap = np.full(size + 1, -1, np.int32)  # the last entry serves code -1
    remap[order] = np.arange(len(order))
    return remap[codes]
