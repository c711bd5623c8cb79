"""Statistics over an entity's rows, such as an item's average rating: as published, taken again, or left out.

What a publisher took over all rows looks into the test part. Taken again, a value counts other training rows only: a
row never sees itself or its label, and an entity without another training row has none. Even so, the rows of an
item with few of them tell each other's labels, since their averages differ by what each leaves out; one decimal hides
that only where there are many. Protocols whose name ends in `_no_aggregates` have no such column at all.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from alt_jax.data.protocols import Protocol, Split
from alt_jax.data.sources.raw import Aggregate, RawData, as_text
from alt_jax.errors import InputError


def resolve(protocol: Protocol, raw: RawData, split: Split, named: Sequence[str] = ()) -> RawData:
    """The raw data with its aggregates as the protocol wants them.

    Args:
      protocol: Says how it wants them.
      raw: Raw data with aggregates as published.
      split: Which rows train.
      named: Columns that the config asks for by name.

    Raises:
      InputError: The protocol leaves out what the config asks for.
    """
    if protocol.aggregates == "all_time":
        return raw
    if protocol.aggregates == "no_aggregates":
        gone = {aggregate.column for aggregate in raw.aggregates}
        for column in named:
            if column in gone:
                raise InputError(
                    f"Protocol {protocol.name!r} leaves out published averages and counts, but data.fields names "
                    f"{column!r}; leave it out there too, or use {protocol.name.removesuffix('_no_aggregates')!r}."
                )
        return dataclasses.replace(
            raw,
            fields=tuple(f for f in raw.fields if f.column not in gone),
            linked=tuple(group for group in raw.linked if not gone.intersection(group)),
        )
    table, used = raw.table, {f.column for f in raw.fields}
    for aggregate in raw.aggregates:
        if aggregate.column in used:
            at = table.column_names.index(aggregate.column)
            table = table.set_column(at, aggregate.column, _taken_again(aggregate, raw, split.rows["train"]))
    return dataclasses.replace(raw, table=table)


def _taken_again(aggregate: Aggregate, raw: RawData, train: Int[np.ndarray, " T"]) -> pa.DictionaryArray:
    """The statistic of every row's entity over the training rows other than the row itself, as text."""
    column = raw.table[aggregate.of]
    counts = np.asarray(pc.is_valid(column))
    values = np.asarray(pc.fill_null(pc.cast(column, pa.float64()), 0.0))
    entities = as_text(raw.table[aggregate.by], aggregate.by, raw.origin)
    entity, number = np.asarray(entities.indices), len(entities.dictionary)
    inside = np.zeros(len(values), bool)
    inside[train] = True

    def others(weight: np.ndarray) -> np.ndarray:
        own = np.where(inside, weight, 0.0)
        return np.bincount(entity, own, number)[entity] - own

    total = others(np.where(counts, values, 0.0))
    if aggregate.how == "sum":
        there, statistic, form = others(np.ones(len(values))) > 0, total, "%.0f"
    else:
        rows = others(counts.astype(np.float64))
        there, form = rows > 0, "%.1f"
        statistic = total / np.maximum(rows, 1)
    distinct, code = np.unique(np.round(statistic, 0 if aggregate.how == "sum" else 1), return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        pa.array(code.astype(np.int32), mask=~there), pa.array([form % value for value in distinct], pa.string())
    )
