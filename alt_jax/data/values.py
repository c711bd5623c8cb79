"""The values of a dataset: which strings each field has, how they are spelled, and their feature ids."""

from pathlib import Path
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

_CHUNK = 1 << 22  # rows


class Values(NamedTuple):
    """One field's distinct values, those with a feature id of their own first, `known` of them.

    Attributes:
      strings: As in the raw table; of a sequence, the item's.
      spelled: As in the prompt.
      counts: Training rows (for lists: occurrences in training rows).
      known: Values with a feature id of their own; of a numeric field, those seen in training.
      codes: File of int32[U, S], so that one field's at a time is in memory: positions in `strings` of every slot of
        the rows of all splits, one split after the other; -1 for none.
      slots: S.
      feature: Feature ids.
      offset, size: The field's range of feature ids.
      numeric: Bins of a numeric field.
      number: Standardised number of each value.
    """

    strings: list[str]
    spelled: list[str]
    counts: Int[np.ndarray, " V"]
    known: int
    codes: Path
    slots: int
    feature: Int[np.ndarray, " V"]
    offset: int
    size: int
    numeric: Numeric | None
    number: Float[np.ndarray, " V"]


def collect(raw: RawData, split: Split, min_count: int, folder: Path) -> list[Values]:
    """The values of every field. Only training rows decide which are in the vocabulary, and where bins lie.

    Args:
      raw: Raw rows.
      split: Their splits and labels.
      min_count: Training rows that a value of a category must have.
      folder: Takes the codes, a file for each field.

    Raises:
      InputError: A field's column cannot be read as its kind, no value of it is frequent enough, or the data cannot
        fill it.
    """
    remembered = {field.of for field in raw.fields if field.kind == "sequence" and field.past == "all"}
    found: dict[str, Values] = {}
    offset = FIRST_FIELD_ID
    for field in raw.fields:
        if field.kind != "sequence":
            path = folder / f"{len(found)}.npy"
            found[field.column] = _own(raw, field, split, offset, min_count, path, field.column in remembered)
            offset += found[field.column].size
    for field in raw.fields:
        if field.kind == "sequence":
            found[field.column] = _sequence(raw, field, split, found, folder / f"{len(found)}.npy")
    return [found[field.column] for field in raw.fields]


def _own(
    raw: RawData,
    field: FieldConfig,
    split: Split,
    offset: int,
    min_count: int,
    path: Path,
    remembered: bool,
) -> Values:
    """Values of a field whose column the raw table holds; if they are `remembered`, those of all known rows."""
    strings, codes = fields.spell(raw.table[field.column], field, raw.origin)
    kept = _count(codes[split.known], len(strings)) if remembered else 0
    codes = _arranged(codes, split)
    if codes.shape[1] > 1:  # no more slots than the longest list fills
        codes = codes[:, : max(1, int((codes >= 0).sum(axis=1).max(initial=1)))]
    train = codes[: len(split.rows["train"])]
    counts = _count(train, len(strings))
    known = counts >= (min_count if field.kind in ("category", "multi") else 1)
    if not known.any():
        raise InputError(
            f"No value of column {field.column!r} of {raw.origin} occurs {min_count} times in training; "
            "lower data.min_count or leave the column out."
        )
    order = _order(strings, counts, known, kept + _count(codes, len(strings)))
    codes = _recode(codes, order, len(strings))
    np.save(path, codes)
    strings, counts = [strings[i] for i in order], counts[order]
    many = min(int(known.sum()), field.max_ids or len(strings))
    numeric, number = None, np.zeros(len(strings), np.float32)
    if field.kind == "numeric":
        numbers = fields.parse_numbers(strings, field.column, raw.origin)
        numeric = fields.fit_numeric(numbers[codes[: len(train), 0]], field.bins)
        feature, size = offset + fields.bin_of(numeric, numbers), 2 + len(numeric.edges)
        number = fields.standardised(numeric, numbers)
    elif field.kind == "text":
        feature, size = np.full(len(strings), PAD_ID), 0
    else:
        position = np.arange(len(strings))
        feature, size = np.where(position < many, offset + 1 + position, offset), 1 + many
    slots, feature = codes.shape[1], feature.astype(np.int32)
    return Values(strings, strings, counts, many, path, slots, feature, offset, size, numeric, number)


def _sequence(raw: RawData, field: FieldConfig, split: Split, found: dict[str, Values], path: Path) -> Values:
    """The last items of each row's user, as the field declares; they share the feature ids of the item's field."""
    assert raw.user is not None, "protocols.apply refuses it"
    assert raw.timestamp is not None, "protocols.apply refuses it"
    categories = [f.column for f in raw.fields if f.kind == "category"]
    if field.of not in categories:
        raise InputError(
            f"Field {field.column!r} is a sequence of {field.of!r}, which is no category among data.fields; "
            f"{nearest(field.of, categories)}"
        )
    declared = next(other for other in raw.fields if other.column == field.of)
    if declared.hash_buckets and field.spelled:
        raise InputError(
            f"Field {field.column!r} is spelled by column {field.spelled!r}, but its items are hashed, and a bucket "
            "holds several; leave spelled out."
        )
    item, items = found[field.of], _items(raw, declared, found[field.of])
    eligible = {"positive": split.positive, "negative": ~split.positive, "any": split.known}[field.outcome]
    past = split.known
    if field.past == "train":
        past = np.zeros_like(split.known)
        past[split.rows["train"]] = True
    user = np.asarray(as_text(raw.table[raw.user], raw.user, raw.origin).indices)
    time = np.asarray(raw.table[raw.timestamp])
    codes = _arranged(fields.history(user, time, items, eligible & past, field.slots), split)
    none = len(item.strings)
    codes[codes[:, 0] < 0, 0] = none
    strings = [*item.strings, ""]
    spelled = [*_spellings(raw, field, item, items), ""]
    feature = np.append(item.feature, np.int32(PAD_ID))
    counts = _count(codes[: len(split.rows["train"])], len(strings))
    # Every known item, in a history or not, so that `predict` can spell any history of known items
    known = (feature > item.offset) | (counts > 0)
    order = _order(strings, counts, known, np.maximum(known, _count(codes, len(strings))))
    np.save(path, _recode(codes, order, len(strings)))
    return Values(
        strings=[strings[i] for i in order],
        spelled=[spelled[i] for i in order],
        counts=counts[order],
        known=int(known.sum()),
        codes=path,
        slots=field.slots,
        feature=feature[order],
        offset=item.offset,
        size=item.size,
        numeric=None,
        number=np.zeros(len(order), np.float32),
    )


def _items(raw: RawData, field: FieldConfig, item: Values) -> Int[np.ndarray, " N"]:
    """Positions among the item's values of every raw row, in whatever split or none; -1 for what is not among them."""
    strings, codes = fields.spell(raw.table[field.column], field, raw.origin)
    position = pc.index_in(pa.array(strings, pa.string()), value_set=pa.array(item.strings, pa.string()))
    return np.asarray(pc.fill_null(position, -1))[codes[:, 0]]


def _spellings(raw: RawData, field: FieldConfig, item: Values, code: Int[np.ndarray, " N"]) -> list[str]:
    """How the prompt spells each item: what stands beside its first row in the column that the field names."""
    if not field.spelled:
        return item.strings
    if field.spelled not in raw.table.column_names:
        raise InputError(
            f"Field {field.column!r} is spelled by column {field.spelled!r}, which {raw.origin} has not; "
            f"{nearest(field.spelled, raw.table.column_names)}"
        )
    title = as_text(raw.table[field.spelled], field.spelled, raw.origin)
    rows = np.flatnonzero(code >= 0)[::-1]
    first = np.zeros(len(item.strings), np.int64)
    first[code[rows]] = rows  # the last assignment, which is the first row, stays
    return pc.take(title.dictionary, pa.array(np.asarray(title.indices)[first])).to_pylist()


def _arranged(codes: Int[np.ndarray, "N S"], split: Split) -> Int[np.ndarray, "U S"]:
    """Codes of raw rows as those of all splits, one after the other."""
    # `take`, since `codes[rows]` is slower, three times on long tables.
    return np.concatenate([codes.take(rows, axis=0) for rows in split.rows.values()])


def _count(codes: Int[np.ndarray, "N S"], size: int) -> Int[np.ndarray, " V"]:
    counts = np.zeros(size, np.int64)
    for low in range(0, len(codes), _CHUNK):  # since what NumPy counts it first copies as int64
        part = codes[low : low + _CHUNK]
        counts += np.bincount(part[part >= 0], minlength=size)
    return counts


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
