"""Which fields of a row are hidden, and which token positions that hides."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alt_jax.bounds import log_mean_exp, sum_bound
from alt_jax.config import MaskConfig
from alt_jax.errors import InputError
from alt_jax.schema import Schema


def mask_units(
    schema: Schema, config: MaskConfig, of: Literal["row", "table", "prompt"] = "row"
) -> tuple[tuple[int, ...], ...]:
    """What is masked as one: every field by itself, or linked fields together.

    Args:
      schema: Fields and links.
      config: Chooses the unit.
      of: Which fields: all inputs, those that the table has (all but kind `text`), or those that the prompt spells.
    """
    units = schema.groups if config.unit == "group" else tuple((i,) for i in range(len(schema.fields)))
    there = [
        {"row": field.is_input, "table": field.kind != "text", "prompt": field.in_prompt}[of] for field in schema.fields
    ]
    found = (tuple(i for i in unit if there[i]) for unit in units)
    return tuple(unit for unit in found if unit)


def side_units(schema: Schema, config: MaskConfig, side: Literal["table", "prompt"]) -> tuple[tuple[int, ...], ...]:
    """The units that a side's masks are drawn from: its own where they are independent, and else the whole row's."""
    return mask_units(schema, config, side if config.pairing == "independent" else "row")


def num_masked_units(units: tuple[tuple[int, ...], ...], rate: float) -> int:
    """Units masked in a row, max(1, ⌊U · rate⌋) (arXiv 2310.19453, MLM and MTM)."""
    return max(1, math.floor(len(units) * rate))


class Masks(NamedTuple):
    """Fields that a row hides from each tower."""

    text: Bool[Array, "B F"]
    table: Bool[Array, "B F"]


def check_masks(schema: Schema, config: MaskConfig) -> None:
    """Refuses complementary masks where there are not enough units for both sides.

    Raises:
      InputError: There are not.
    """
    units = mask_units(schema, config)
    hidden = num_masked_units(units, config.rate)
    if config.pairing == "complementary" and 2 * hidden > len(units):
        raise InputError(
            f"mask.pairing 'complementary' hides {hidden} units on each side, {2 * hidden} in all, but there are "
            f"{len(units)}; lower mask.rate or choose another pairing."
        )


def choose_masks(keys: tuple[jax.Array, jax.Array], batch: int, schema: Schema, config: MaskConfig) -> Masks:
    """Draws the fields that MLM hides in the prompt and those that MTM hides in the table.

    A row of `same` or `complementary` masks may draw fields that a side has not, texts for the table or what is not in
    the prompt: nothing is then recovered of it there.

    Args:
      keys: One for each side; paired masks need the first only.
      batch: Rows.
      schema: Fields and links.
      config: Rate, units and pairing.
    """
    fields = len(schema.fields)
    text_key, table_key = keys
    if config.pairing == "independent":
        prompt, table = (mask_units(schema, config, side) for side in ("prompt", "table"))
        none = jnp.zeros((batch, fields), bool)
        text = choose_fields(text_key, batch, prompt, config.rate, fields) if prompt else none
        return Masks(text, choose_fields(table_key, batch, table, config.rate, fields) if table else none)
    units = mask_units(schema, config)
    n = num_masked_units(units, config.rate)
    spelled = np.array([field.in_prompt for field in schema.fields])[None, :]
    has_ids = np.array([field.kind != "text" for field in schema.fields])[None, :]
    if config.pairing == "same":
        chosen = _spread(_draw(text_key, batch, len(units), n), units, fields)
        return Masks(chosen & spelled, chosen & has_ids)
    drawn = _draw(text_key, batch, len(units), 2 * n)
    return Masks(_spread(drawn[:, :n], units, fields) & spelled, _spread(drawn[:, n:], units, fields) & has_ids)


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
    drawn = _draw(key, batch, len(units), num_masked_units(units, rate))
    return _spread(drawn, units, sum(map(len, units)) if fields is None else fields)


def _draw(key: jax.Array, batch: int, count: int, n: int) -> Int[Array, "B n"]:
    """The n largest of `count` independent uniforms: a uniform n-subset, in random order."""
    return jax.lax.top_k(jax.random.uniform(key, (batch, count)), n)[1]


def _spread(chosen: Int[Array, "B n"], units: tuple[tuple[int, ...], ...], fields: int) -> Bool[Array, "B F"]:
    """Units to their fields."""
    hit = jnp.any(chosen[:, :, None] == jnp.arange(len(units))[None, None, :], axis=1)
    unit_of_field = np.full(fields, len(units), np.int32)
    for unit, members in enumerate(units):
        unit_of_field[list(members)] = unit
    return jnp.pad(hit, ((0, 0), (0, 1)))[:, unit_of_field]  # the column behind the last unit: never chosen


def max_masked_fields(units: tuple[tuple[int, ...], ...], rate: float) -> int:
    """Most fields that `choose_fields` can mask in one row."""
    return sum(sorted(map(len, units), reverse=True)[: num_masked_units(units, rate)])


def token_capacity(tokens: Int[np.ndarray, "N F"], rows: int, units: tuple[tuple[int, ...], ...], rate: float) -> int:
    """A static bound on the masked tokens of some rows, so that vocabulary logits are computed only where needed.

    Rows mask far fewer tokens than their number times the longest value. The bound fails with a chance of 1e-12
    (`alt_jax.bounds`), as far as the sample tells; the step reports the share of dropped tokens as `mlm/dropped`.

    Args:
      tokens: Maskable tokens of each field in a sample of rows.
      rows: Of a batch, or of one device's part of it.
      units: From `mask_units`.
      rate: Masking rate.

    Returns:
      The bound, rounded up to a multiple of 8.
    """
    per_unit = np.stack([tokens[:, list(unit)].sum(axis=1) for unit in units], axis=1)
    per_unit, count = np.unique(np.sort(per_unit, axis=1), axis=0, return_counts=True)
    n = num_masked_units(units, rate)

    def log_moment(s: float) -> float:
        # A row masks n of its units without replacement; with replacement the moment would be this, which is more.
        top = per_unit.max(axis=1)
        of_unit = s * top + np.log(np.exp(s * (per_unit - top[:, None])).mean(axis=1))
        return log_mean_exp(n * of_unit, count)

    largest = float(per_unit[:, max(0, len(units) - n) :].sum(axis=1).max())
    return max(8, 8 * math.ceil(sum_bound(log_moment, rows, largest) / 8))


def row_capacity(batch: int, units: tuple[tuple[int, ...], ...], rate: float) -> int:
    """The same bound on the rows of a batch that hide one given field: a binomial.

    Args:
      batch: Rows in a batch.
      units: From `mask_units`.
      rate: Masking rate.
    """
    chance = num_masked_units(units, rate) / len(units)
    return min(batch, 8 * math.ceil(sum_bound(lambda s: math.log1p(chance * math.expm1(s)), batch, 1) / 8))


def single_token_capacity(tokens: Int[np.ndarray, "N F"], rows: int, rate: float) -> int:
    """The same bound where every maskable token is hidden by itself: a sum of binomials.

    Args:
      tokens: Maskable tokens of each field in a sample of rows.
      rows: Of a batch, or of one device's part of it.
      rate: Chance of each token.
    """
    n, count = np.unique(tokens.sum(axis=1), return_counts=True)
    bound = sum_bound(lambda s: log_mean_exp(n * math.log1p(rate * math.expm1(s)), count), rows, float(n.max()))
    return max(8, 8 * math.ceil(bound / 8))


def gather_positions(
    hidden: Bool[Array | np.ndarray, "*n"], capacity: int
) -> tuple[Int[Array, " K"], Float[Array, " K"]]:
    """The first `capacity` hidden positions of a batch, or rows that hide something, in row order.

    Returns:
      Indices into the flattened positions, and a weight of 1 where an index is real.
    """
    (index,) = jnp.nonzero(jnp.asarray(hidden).reshape(-1), size=capacity, fill_value=0)
    return index, (jnp.arange(capacity) < hidden.sum()).astype(jnp.float32)
