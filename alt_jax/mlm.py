"""Masked language modelling: what of a prompt is hidden, and how well it is recovered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alt_jax import masking, objectives
from alt_jax.config import Config
from alt_jax.data.prompt import Prompt, mask_fields
from alt_jax.microbatches import in_batch
from alt_jax.models.packing import Wanted, side_by_side
from alt_jax.objectives import Mean
from alt_jax.schema import Schema
from alt_jax.sharding import shards


class Hidden(NamedTuple):
    """A batch of prompts with some tokens hidden.

    Attributes:
      tokens, mask: What the text tower reads.
      where: The hidden tokens, by their positions in the whole prompts.
      place: Where each position of a whole prompt is found in `tokens`.
    """

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    where: Bool[Array, "B L"]
    place: Int[Array, "B L"]


def choose(chosen: Bool[Array, "B F"], length: int, key: jax.Array, config: Config) -> Bool[Array, "B n"]:
    """What to hide in prompts of a length: the chosen fields, or by unit `token` any positions, drawn one by one."""
    if config.mlm.unit == "token":
        return jax.random.bernoulli(key, config.mask.rate, (len(chosen), length))
    return chosen


def hide(prompt: Prompt, chosen: Bool[Array, "B n"], config: Config, schema: Schema) -> Hidden:
    """Hides what `mlm.unit` says.

    Args:
      prompt: Whole prompts.
      chosen: From `choose`.
      config: Unit.
      schema: Mask and padding tokens.
    """
    text = schema.text
    same = jnp.broadcast_to(jnp.arange(prompt.tokens.shape[1])[None, :], prompt.tokens.shape)
    if config.mlm.unit == "token":
        where = (prompt.field >= 0) & chosen
        return Hidden(jnp.where(where, text.mask_id, prompt.tokens), prompt.mask, where, same)
    tokens, where = (jnp.asarray(x) for x in mask_fields(prompt, chosen, text.mask_id))
    if config.mlm.unit == "field":
        return Hidden(tokens, prompt.mask, where, same)
    # Of a run of hidden tokens of one value the first stays, and what follows moves up, so that neither the number of
    # masks nor the positions behind them tell how long the value was.
    before = jnp.pad(prompt.field[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    kept = prompt.mask & (~where | (prompt.field != before))
    place = jnp.cumsum(kept, axis=1) - 1
    target = jnp.where(kept, place, prompt.tokens.shape[1])  # what is not kept falls off the end
    rows = jnp.arange(prompt.tokens.shape[0])[:, None]
    moved = jnp.full_like(tokens, text.pad_id).at[rows, target].set(tokens, mode="drop")
    return Hidden(moved, same < jnp.sum(kept, axis=1, keepdims=True), where, place)


def capacity(maskable: Int[np.ndarray, "N F"], rows: int, config: Config, schema: Schema) -> int:
    """Static bound on the hidden tokens of so many rows.

    Args:
      maskable: Maskable tokens of every field in a sample of rows.
      rows: Of a batch, or of one device's part of it.
      config: Unit and rate.
      schema: Fields and links.
    """
    if config.mlm.unit == "token":
        return masking.single_token_capacity(maskable, rows, config.mask.rate)
    return masking.token_capacity(maskable, rows, masking.side_units(schema, config.mask, "prompt"), config.mask.rate)


def unigram_scores(counts: Int[np.ndarray, "F V"]) -> Float[np.ndarray, "F V"]:
    """Log q of every token in the values of every field: scores that know how common tokens are, and no row.

    A token that no training value of the field has counts as half a one.

    Args:
      counts: Of the tokens, in the training part (`Dataset.token_counts`).
    """
    smoothed = np.maximum(counts, 0.5)
    return np.log(smoothed / smoothed.sum(axis=1, keepdims=True)).astype(np.float32)


def masks(hidden: Hidden, capacity: int, config: Config, schema: Schema) -> Wanted:
    """The masks of a batch: all tokens whose states this loss looks at.

    Args:
      hidden: The batch.
      capacity: Of one device's rows.
      config: Unit and rate.
      schema: Fields, their longest values, and the mask token.
    """
    slots = hidden.tokens.shape[1]
    if config.mlm.unit != "token":
        units = masking.side_units(schema, config.mask, "prompt")
        longest = [sum(schema.fields[f].max_tokens * schema.fields[f].slots for f in unit) for unit in units]
        longest.sort(reverse=True)
        slots = min(slots, sum(longest[: masking.num_masked_units(units, config.mask.rate)]))
    # Spans have moved up; no prompt has a mask token of its own (see `alt_jax.data.prompt`).
    where = hidden.tokens == schema.text.mask_id if config.mlm.unit == "span" else hidden.where
    return Wanted(hidden.mask & where, slots, capacity)


def loss(
    call: Callable[..., Any],
    prompt: Prompt,
    hidden: Hidden,
    states: Float[Array, "B W D"],
    wanted: Wanted | None,
    representation: Float[Array, "B C"] | None,
    capacity: int,
    common: Float[np.ndarray, "F V"],
    schema: Schema,
) -> dict[str, Mean]:
    """Every hidden token, recovered from the state at its mask and, where that helps, the row's representation.

    Tokens that share a mask are predicted from the same logits, each with the same weight.

    Args:
      call: Applies a method of the model in training mode.
      prompt: Whole prompts: the targets.
      hidden: What the tower read.
      states: The tower's states of it.
      wanted: Whose states those are; None: of all tokens.
      representation: Of the rows, or None.
      capacity: Of one device's rows.
      common: `unigram_scores`.
      schema: Names the fields.

    Returns:
      Metrics: the loss (`mlm`), the share of tokens beyond the capacity, and by field accuracy and how far the loss is
      below that of `unigram_scores`, in nats (`mlm/gain`; 0: nothing was learned of the row).
    """
    (rows, slots), groups = states.shape[:2], shards(len(states))
    held, move = side_by_side(hidden.where, groups, capacity)
    place = hidden.place
    if wanted is not None:  # their states stand at the front of each row
        place = jnp.take_along_axis(jnp.cumsum(wanted.where, axis=1) - 1, place, axis=1)
    row = jnp.broadcast_to((jnp.arange(rows) % (rows // groups))[:, None], place.shape)  # its number in the group
    chosen = prompt.tokens, prompt.field, held.astype(jnp.int32), row, row * slots + place
    target, field, real, row, at = (move.ids(x.reshape(groups, -1)) for x in chosen)
    at_mask = _gather(states.reshape(groups, -1, states.shape[2]), at)
    helper = None if representation is None else _gather(representation.reshape(groups, rows // groups, -1), row)
    number = in_batch(move.number, held.shape[1])
    logits = call("recover_tokens", at_mask, helper, number.reshape(-1))
    target, field, real = target.reshape(-1), field.reshape(-1), real.reshape(-1).astype(jnp.float32)
    cost = objectives.softmax_cross_entropy(logits, target)
    mean = objectives.weighted(cost, real)
    gained = -jnp.asarray(common)[jnp.maximum(field, 0), target] - cost
    right = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    metrics = {"mlm": mean, "mlm/dropped": objectives.share(hidden.where & ~held, hidden.where)}
    for f, name in enumerate(schema.names):
        metrics[f"mlm/accuracy/{name}"] = objectives.weighted(right, real * (field == f))
        metrics[f"mlm/gain/{name}"] = objectives.weighted(gained, real * (field == f))
    return metrics


def _gather(x: Float[Array, "G N d"], index: Int[Array, "G T"]) -> Float[Array, "K d"]:
    """Some vectors of each group; no group looks at another's, which another device has."""
    return jax.vmap(lambda x, i: x[i])(x, index).reshape(-1, x.shape[-1])
