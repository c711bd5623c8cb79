"""Masked tabular modelling: what of a row the CTR tower does not see, and how well it is recovered."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alt_jax import objectives
from alt_jax.config import Config, MTMConfig
from alt_jax.objectives import Mean
from alt_jax.schema import MASK_ID, PAD_ID, Schema

Scorer = tuple[Float[Array, "B F E"], Float[Array, "N E"], Float[Array, " N"]]


class Shown(NamedTuple):
    """What the CTR tower sees of a batch."""

    ids: Int[Array, "B S"]
    numbers: Float[Array, "B M"]


def hide(
    ids: Int[Array, "B S"],
    numbers: Float[Array, "B M"],
    chosen: Bool[Array, "B F"],
    key: jax.Array,
    config: Config,
    schema: Schema,
) -> Shown:
    """Masks the chosen fields, or (`rfd`) replaces each by that of another row of the batch, drawn at random.

    A row of the batch is a draw from the field's own unigram distribution, and brings a number with its bin.

    Args:
      ids: Feature ids.
      numbers: Of the numeric fields.
      chosen: Fields to hide.
      key: Draws the rows that replacements come from.
      config: Method.
      schema: Fields.
    """
    of_slot = np.asarray(schema.field_of_slot)
    numeric = np.asarray([f for f, field in enumerate(schema.fields) if field.kind == "numeric"], int)
    if config.mtm.method == "rfd":
        donor = jax.random.randint(key, chosen.shape, 0, ids.shape[0])
        return Shown(
            jnp.where(chosen[:, of_slot], jnp.take_along_axis(ids, donor[:, of_slot], axis=0), ids),
            jnp.where(chosen[:, numeric], jnp.take_along_axis(numbers, donor[:, numeric], axis=0), numbers),
        )
    return Shown(
        jnp.where(chosen[:, of_slot] & (ids != PAD_ID), MASK_ID, ids), jnp.where(chosen[:, numeric], 0.0, numbers)
    )


def loss(
    output: Any,
    ids: Int[Array, "B S"],
    shown: Shown,
    chosen: Bool[Array, "B F"],
    counts: np.ndarray,
    key: jax.Array,
    config: Config,
    schema: Schema,
) -> tuple[Mean, dict[str, Mean]]:
    """The chosen fields' ids, recovered by the configured method.

    Of a list, every value is a target, and all of them together count as one.

    Args:
      output: What the head made of the shown rows and their prompts: a `Scorer`, or for `rfd` a logit per field.
      ids: Feature ids of the whole rows.
      shown: What the tower saw.
      chosen: Fields that were hidden.
      counts: Training count of every feature id: what noise is drawn by.
      key: Draws noise.
      config: Method and noise.
      schema: Fields.

    Returns:
      The loss, and the accuracy by field.
    """
    if config.mtm.method == "rfd":
        return _detection(output, ids, shown, chosen, schema)
    vectors, table, bias = output
    real = ids != PAD_ID
    share = (chosen[:, np.asarray(schema.field_of_slot)] & real).astype(jnp.float32)
    targets = jnp.where(real, ids, 0)
    losses, weights, metrics, first = [], [], {}, 0
    noise = _Noise(config.mtm, schema, counts, key)
    for f, field in enumerate(schema.fields):
        own, span = slice(first, first + field.slots), slice(field.offset, field.offset + field.size)
        first += field.slots
        if field.kind == "text":
            continue
        vector = vectors[:, schema.tabular.index(f)]
        logits = vector @ table[span].T + bias[span][None, :]
        target = jnp.maximum(targets[:, own] - field.offset, 0)
        found = (jnp.argmax(logits, axis=-1)[:, None] == target) & real[:, own]
        right, masked = (x.astype(jnp.float32) for x in (jnp.any(found, axis=1), jnp.any(share[:, own] > 0, axis=1)))
        metrics[f"mtm/accuracy/{field.name}"] = objectives.weighted(right, masked)
        if config.mtm.method == "softmax":
            every = jnp.broadcast_to(logits[:, None, :], (*target.shape, field.size))
            losses.append(objectives.softmax_cross_entropy(every, target))
        else:
            against = noise.softmax if config.mtm.method == "sampled" else noise.contrast
            losses.append(against(f, vector, table, bias, targets[:, own]))
        weights.append(share[:, own] / jnp.maximum(jnp.sum(real[:, own], axis=1, keepdims=True), 1))
    mean = objectives.weighted(jnp.concatenate(losses, axis=1), jnp.concatenate(weights, axis=1))
    return mean, {"mtm": mean, **metrics}


class _Noise:
    """Noise ids of the fields, and the two losses against them."""

    def __init__(self, config: MTMConfig, schema: Schema, counts: np.ndarray, key: jax.Array) -> None:
        self._config, self._schema, self._counts, self._key = config, schema, counts, key

    def _draw(self, f: int, shape: tuple[int, ...]) -> tuple[Int[Array, "..."], Float[Array, " N"]]:
        """Feature ids for a field, and log q of every feature id (0 for those that q cannot draw)."""
        field = self._schema.fields[f]
        counts = self._counts.astype(np.float64)
        if self._config.noise_from == "field":
            inside = np.zeros_like(counts)
            inside[field.offset : field.offset + field.size] = 1
            counts = counts * inside
        q = counts / counts.sum()
        log_q = np.log(q, out=np.zeros_like(q), where=q > 0)
        key = jax.random.fold_in(self._key, f)
        low = field.offset if self._config.noise_from == "field" else 0
        high = field.offset + field.size if self._config.noise_from == "field" else len(q)
        drawn = low + jax.random.choice(key, high - low, shape, p=jnp.asarray(q[low:high], jnp.float32))
        return drawn, jnp.asarray(log_q, jnp.float32)

    def contrast(
        self,
        f: int,
        vector: Float[Array, "B E"],
        table: Float[Array, "N E"],
        bias: Float[Array, " N"],
        target: Int[Array, "B S"],
    ) -> Float[Array, "B S"]:
        """NCE of every slot against noise of its own."""
        noise, log_q = self._draw(f, (*target.shape, self._config.noise))
        positive = jnp.einsum("be,bse->bs", vector, table[target]) + bias[target]
        negative = jnp.einsum("be,bske->bsk", vector, table[noise]) + bias[noise]
        return objectives.noise_contrastive(positive, negative, log_q[target], log_q[noise])

    def softmax(
        self,
        f: int,
        vector: Float[Array, "B E"],
        table: Float[Array, "N E"],
        bias: Float[Array, " N"],
        target: Int[Array, "B S"],
    ) -> Float[Array, "B S"]:
        """Sampled softmax of every slot against noise that the batch shares, so that scoring it is one product."""
        noise, log_q = self._draw(f, (self._config.noise,))
        positive = jnp.einsum("be,bse->bs", vector, table[target]) + bias[target]
        shape = (*target.shape, self._config.noise)
        negative = jnp.broadcast_to((vector @ table[noise].T + bias[noise][None, :])[:, None, :], shape)
        hit = target[:, :, None] == noise[None, None, :]
        log_q_noise = jnp.broadcast_to(log_q[noise][None, None, :], shape)
        return objectives.sampled_softmax(positive, negative, log_q_noise, hit)


def _detection(
    logits: Float[Array, "B F"], ids: Int[Array, "B S"], shown: Shown, chosen: Bool[Array, "B F"], schema: Schema
) -> tuple[Mean, dict[str, Mean]]:
    """BCE of "was this field replaced?" over all fields; a replacement that equals the original is none."""
    changed = shown.ids != ids
    losses, metrics, first = [], {}, 0
    for f, field in enumerate(schema.fields):
        own = slice(first, first + field.slots)
        first += field.slots
        if field.kind == "text":
            continue
        replaced = jnp.any(changed[:, own], axis=1).astype(jnp.float32)
        logit = logits[:, schema.tabular.index(f)]
        losses.append(objectives.binary_cross_entropy(logit, replaced, jnp.ones_like(replaced)))
        found = (logit > 0).astype(jnp.float32)
        metrics[f"mtm/accuracy/{field.name}"] = objectives.weighted(found, replaced)
        metrics[f"mtm/false_alarm/{field.name}"] = objectives.weighted(found, 1 - replaced)
    mean = Mean(sum((x.total for x in losses), jnp.zeros(())), sum((x.weight for x in losses), jnp.zeros(())))
    return mean, {"mtm": mean, **metrics}
