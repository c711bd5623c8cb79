"""Histories of rows that are to be scored, from a log of earlier rows, by the code that `prepare` makes them with."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data import fields, protocols, sources, values
from alt_jax.data.sources.raw import RawData
from alt_jax.data.sources.table import times
from alt_jax.data.spelling import Spelled
from alt_jax.errors import InputError
from alt_jax.schema import Field, Schema


def load(path: str, config: DataConfig) -> RawData:
    """The log: a table like the one that a dataset was prepared from, or `dataset`, that very one.

    Raises:
      InputError: It cannot be read, or has no users, items or times.
    """
    data = replace(config, raw=config.raw if path == "dataset" else path, unlabelled="", split=None, valid="", test="")
    log = sources.load(data)
    if log.user is None or log.item is None or log.timestamp is None:
        raise InputError(f"{log.origin} declares no user, item or time, so it has no histories; leave --history out.")
    return log


def columns(config: DataConfig, schema: Schema) -> list[str]:
    """The columns of rows that their histories are made by: user and time."""
    user = [schema.fields[schema.index(schema.user)].column] if schema.user else []
    return [*user, config.timestamp or "timestamp"]


def fill(rows: pa.Table, log: RawData, config: DataConfig, schema: Schema, origin: str) -> pa.Table:
    """Rows with a column of items for every sequence: those of the log whose user is theirs, and which are earlier.

    All rows of the log that have a label count, whatever part they were of.

    Args:
      rows: Have the `columns`.
      log: What `load` gave.
      config: Of the dataset.
      schema: Likewise.
      origin: Of the rows, for messages.

    Raises:
      InputError: The rows' users or times cannot be read.
    """
    user_column, time_column = columns(config, schema)
    labels = np.asarray(log.table[log.label], np.float64)
    label = labels > protocols.threshold(log, labels, config.positive_above)
    early = np.asarray(log.table[str(log.timestamp)])
    late = np.asarray(times(rows[time_column], time_column, origin))
    time = np.concatenate([early, late])
    more = len(late)
    known = np.pad(np.ones(len(labels), bool), (0, more))
    user = _users(log, rows, schema.fields[schema.index(str(schema.user))], user_column, origin)
    for field in schema.fields:
        if field.kind != "sequence":
            continue
        of = next(other for other in schema.fields if other.column == field.of)
        items = fields.spell(log.table[of.column], replace(of, hash_buckets=0), log.origin)
        item = np.pad(items.codes[:, 0], (0, more))
        declared = FieldConfig(
            field.column, kind="sequence", of=field.of, slots=field.slots, past="all", outcome=field.outcome
        )
        strings = items.strings
        missing = np.array([not string for string in strings])
        found = values.histories(declared, user, time, item, np.pad(label, (0, more)), known, known, missing)
        rows = _with(rows, field, found[-more:] if more else found[:0], strings)
    return rows


def _users(log: RawData, rows: pa.Table, field: Field, column: str, origin: str) -> Int[np.ndarray, " N"]:
    """Users of the log's rows and of those to be scored, by one numbering; -1 for nobody."""
    number: dict[str, int] = {"": -1}
    codes = []
    for spelled in (
        fields.spell(log.table[str(log.user)], replace(field, hash_buckets=0), log.origin),
        fields.spell(rows[column], replace(field, hash_buckets=0), origin),
    ):
        own: Spelled = spelled
        numbers: Any = [number.setdefault(string, len(number)) for string in own.strings]
        codes.append(np.array(numbers, np.int32)[own.codes[:, 0]])
    return np.concatenate(codes)


def _with(rows: pa.Table, field: Field, found: Int[np.ndarray, "n S"], items: list[str]) -> pa.Table:
    """The rows with a sequence's column: lists of items, newest first."""
    there = (found >= 0) & (found < len(items))
    offsets = np.append(0, np.cumsum(there.sum(axis=1)))
    flat = pa.array(items, pa.string()).take(pa.array(found[there]))
    column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    if field.column in rows.column_names:
        rows = rows.drop_columns(field.column)
    return rows.append_column(field.column, column)
