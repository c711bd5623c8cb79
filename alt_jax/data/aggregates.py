"""Statistics over an entity's rows, such as an item's average rating: as published, taken again, or left out.

What a publisher took over all rows looks into the test part. Taken again, a value is the statistic over one half of the
training rows, drawn once by row number. The rows of that half, whose labels are in it, have none; all other rows of the
entity, held-out ones included, have the same. This is the holdout target statistic of Prokhorenkova et al. (CatBoost,
NeurIPS 2018, arXiv 1706.09516, section 3.2), except that the counted rows train all the same.

Half of the training rows without a value is what it costs that no value tells labels. How much the alternatives tell,
on items of four rows whose labels are coin flips, so that there is nothing to learn (AUC, training rows;
`test_no_aggregate_tells_a_label` measures it):

| statistic over | less is positive, within an item | more is positive, over all rows |
|---|---|---|
| the entity's other training rows | 1.00: an item's rows differ by what each leaves out | 0.50 |
| those of the other four of five folds | 0.90: of few rows, each has a fold to itself | 0.50 |
| all of the entity's training rows | 0.50: they have the same value | 0.77: their own labels are in it |
| one half, which has none itself | 0.50 | 0.50 |

An id whose embedding knows its training labels by heart can still set the value against them, as with any statistic of
training labels; L2 on embeddings keeps it from that. Protocols whose name ends in `_no_aggregates` have no such column.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from alt_jax.data.protocols import Protocol, Split, mix
from alt_jax.data.sources.original import spread
from alt_jax.data.sources.raw import Aggregate, RawData, as_text
from alt_jax.errors import InputError

_SEED = 1  # of the half that is counted; 0 is that of the protocols, whose splits it must not follow


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
            assert isinstance(table, pa.Table), "own tables have no aggregates"
            at = table.column_names.index(aggregate.column)
            table = table.set_column(at, aggregate.column, _taken_again(aggregate, raw, split.rows["train"]))
    return dataclasses.replace(raw, table=table)


def _taken_again(aggregate: Aggregate, raw: RawData, train: Int[np.ndarray, " T"]) -> pa.DictionaryArray:
    """The statistic of every row's entity over the counted half of the training rows, as text; none for that half."""
    counted = train[mix(train, _SEED) < 2**63]
    column = raw.table[aggregate.of].take(pa.array(counted))
    entities = as_text(raw.table[aggregate.by], aggregate.by, raw.origin)
    entity, number = np.array(entities.indices), len(entities.dictionary)
    mean = aggregate.how == "mean"
    weight = np.asarray(pc.is_valid(column)) if mean else np.ones(len(counted))
    total = np.bincount(entity[counted], np.asarray(pc.fill_null(column, 0)), number)
    rows = np.bincount(entity[counted], weight, number)
    statistic, form = (total / np.maximum(rows, 1), "%.1f") if mean else (total, "%.0f")
    entity[counted] = -1
    return spread([form % value if many else None for value, many in zip(statistic, rows, strict=True)], entity)
