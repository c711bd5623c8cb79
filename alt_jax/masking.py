"""Which fields of a row are hidden, and which token positions that hides."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alt_jax.config import MaskConfig
from alt_jax.schema import Schema


def mask_units(schema: Schema, config: MaskConfig, *, tabular: bool = False) -> tuple[tuple[int, ...], ...]:
    """What is masked as one: every field by itself, or linked fields together.

    Args:
      schema: Fields and links.
      config: Chooses the unit.
      tabular: Leave out the fields that the table does not have (kind `text`), which MTM cannot recover.
    """
    units = schema.groups if config.unit == "group" else tuple((i,) for i in range(len(schema.fields)))
    if not tabular:
        return units
    ids = [tuple(i for i in unit if schema.fields[i].kind != "text") for unit in units]
    return tuple(unit for unit in ids if unit)


def num_masked_units(units: tuple[tuple[int, ...], ...], rate: float) -> int:
    """Units masked in a row, max(1, ⌊U · rate⌋) (METHOD.md, MLM and MTM)."""
    return max(1, math.floor(len(units) * rate))


def choose_fields(
    key: jax.Array, batch: int, units: tuple[tuple[int, ...], ...], rate: float, fields: int | None = None
) -> Bool[Array, "{batch} F"]:
    """Draws the masked fields of every row: `num_masked_units` units, uniformly, without replacement.

    Args:
      key: Random key.
      batch: Rows.
      units: From `mask_units`.
      rate: Share of the units.
      fields: F, where units do not hold every field.
    """
    n = num_masked_units(units, rate)
    noise = jax.random.uniform(key, (batch, len(units)))
    _, chosen = jax.lax.top_k(noise, n)  # the n largest of U independent uniforms: a uniform n-subset
    hit = jnp.any(chosen[:, :, None] == jnp.arange(len(units))[None, None, :], axis=1)
    unit_of_field = np.full(sum(map(len, units)) if fields is None else fields, len(units), np.int32)
    for unit, members in enumerate(units):
        unit_of_field[list(members)] = unit
    return jnp.pad(hit, ((0, 0), (0, 1)))[:, unit_of_field]  # the column behind the last unit: never chosen


def max_masked_fields(units: tuple[tuple[int, ...], ...], rate: float) -> int:
    """Most fields that `choose_fields` can mask in one row."""
    return sum(sorted(map(len, units), reverse=True)[: num_masked_units(units, rate)])


def token_capacity(tokens: Int[np.ndarray, "N F"], batch: int, units: tuple[tuple[int, ...], ...], rate: float) -> int:
    """A static bound on the masked tokens of a batch, so that vocabulary logits are computed only where needed.

    A batch masks far fewer tokens than `batch` times the longest value. The bound is the mean plus eight standard
    deviations of a sum of `batch` independent rows, or the true maximum where that is smaller. An overflow's chance is
    below 1e-14 under the normal approximation; the step counts dropped tokens and reports them as `mlm/dropped`.

    Args:
      tokens: Maskable tokens of each field in a sample of rows.
      batch: Rows in a batch.
      units: From `mask_units`.
      rate: Masking rate.

    Returns:
      The bound, rounded up to a multiple of 8.
    """
    per_unit = np.stack([tokens[:, list(unit)].sum(axis=1) for unit in units], axis=1).astype(np.float64)
    count, n = len(units), num_masked_units(units, rate)
    mean = n * per_unit.mean()
    # A row masks n of its U units: the variance over rows and over the draw, with sampling without replacement bounded
    # by sampling with replacement.
    within = n * per_unit.var(axis=1).mean()
    between = (n * per_unit.mean(axis=1)).var()
    typical = batch * mean + 8 * math.sqrt(batch * (within + between))
    largest = batch * np.sort(per_unit.max(axis=0))[max(0, count - n) :].sum()
    return max(8, 8 * math.ceil(min(typical, largest) / 8))


def gather_positions(
    hidden: Bool[Array | np.ndarray, "B L"], capacity: int
) -> tuple[Int[Array, " K"], Float[Array, " K"]]:
    """The first `capacity` hidden positions of a batch, in row order.

    Returns:
      Indices into the flattened `[B·L]` positions, and a weight of 1 where an index is real.
    """
    (index,) = jnp.nonzero(jnp.asarray(hidden).reshape(-1), size=capacity, fill_value=0)
    return index, (jnp.arange(capacity) < hidden.sum()).astype(jnp.float32)
