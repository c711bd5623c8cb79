"""Masked tabular modelling: what of a row the CTR tower does not see, and how well it is recovered."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from alt_jax import masking, objectives
from alt_jax.config import Config, MTMConfig
from alt_jax.microbatches import in_batch
from alt_jax.objectives import Mean
from alt_jax.schema import MASK_ID, PAD_ID, Field, Schema
from alt_jax.sharding import constrain_rows


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
    numbers: Float[Array, "B M"],
    shown: Shown,
    chosen: Bool[Array, "B F"],
    counts: np.ndarray,
    key: jax.Array,
    config: Config,
    schema: Schema,
) -> dict[str, Mean]:
    """The chosen fields' ids, recovered by the configured method.

    Of a list, every value is a target, and all of them together count as one. Only rows that hide a field are scored
    against its ids, of which there may be very many.

    Args:
      output: What the head made of the shown rows and their prompts: a vector per field, the output table and its
        bias, or for `rfd` a logit per field.
      ids: Feature ids of the whole rows.
      numbers: Of their numeric fields.
      shown: What the tower saw.
      chosen: Fields that were hidden.
      counts: Training count of every feature id: what noise is drawn by.
      key: Draws noise.
      config: Method and noise.
      schema: Fields.

    Returns:
      Metrics: the loss (`mtm`), the share of hidden fields beyond the capacity, and by field how often the true id
      came first, of all ids of the field (`mtm/accuracy`) or among the noise (`mtm/beats_noise`), and how far the loss
      is below that of `unigram_scores`, in nats (`mtm/gain`; 0: nothing was learned of the row).
    """
    if config.mtm.method == "rfd":
        return _detection(output, ids, numbers, shown, _replaced(counts, config, schema), schema)
    vectors, table, bias = output
    common = jnp.asarray(unigram_scores(counts, config.mtm, schema))
    units = masking.side_units(schema, config.mask, "table")
    capacity = masking.row_capacity(ids.shape[0], units, config.mask.rate)
    score = {"softmax": _softmax, "sampled": _sampled, "nce": _contrast}[config.mtm.method]
    logged = "accuracy" if config.mtm.method == "softmax" else "beats_noise"
    losses, weights, metrics, first = [], [], {}, 0
    dropped, hidden = jnp.zeros(()), jnp.zeros(())
    for f, field in enumerate(schema.fields):
        own = slice(first, first + field.slots)
        first += field.slots
        if field.kind == "text":
            continue
        real = ids[:, own] != PAD_ID
        masked = chosen[:, f] & jnp.any(real, axis=1)
        row, there = masking.gather_positions(masked, capacity)
        share = real[row] * there[:, None]
        target = jnp.where(real[row], ids[row, own], field.offset)
        vector = constrain_rows(vectors[row, schema.tabular.index(f)])
        asked = _Asked(in_batch(row.astype(jnp.uint32), 1), vector, target, table, bias, common)
        cost, best, common_cost = score(asked, _Noise(config.mtm, field, counts, jax.random.fold_in(key, f)))
        losses.append(cost)
        weights.append(share / jnp.maximum(jnp.sum(share, axis=1, keepdims=True), 1))
        gained = jnp.sum((common_cost - cost) * weights[-1], axis=1)
        metrics[f"mtm/gain/{field.name}"] = objectives.weighted(gained, there)
        found = jnp.any(best & (share > 0), axis=1).astype(jnp.float32)
        metrics[f"mtm/{logged}/{field.name}"] = objectives.weighted(found, there)
        dropped += masked.sum() - there.sum()
        hidden += masked.sum()
    mean = objectives.weighted(jnp.concatenate(losses, axis=1), jnp.concatenate(weights, axis=1))
    return {"mtm": mean, "mtm/dropped": Mean(dropped, hidden), **metrics}


def unigram_scores(counts: np.ndarray, config: MTMConfig, schema: Schema) -> Float[np.ndarray, " num_ids"]:
    """Log q of every feature id, by its frequency in training: a score that knows how common ids are, and no row.

    What the output bias starts at, as in the released code, so that the first updates need not learn it. An id that
    training never had counts as half a one.

    Args:
      counts: Training count of every feature id.
      config: Whether frequencies are within a `field` or among `all` (`noise_from`).
      schema: Fields.
    """
    scores = np.zeros(len(counts), np.float64)
    smoothed = np.maximum(counts, 0.5)
    for field in schema.fields:
        own = slice(field.offset, field.offset + field.size)
        among = smoothed[own] if config.noise_from == "field" else smoothed
        scores[own] = np.log(smoothed[own] / among.sum()) if field.kind != "text" else 0
    return scores.astype(np.float32)


@dataclass(frozen=True)
class _Noise:
    """What a field's targets are told from: `mtm.noise` ids, drawn independently by their frequency in training."""

    config: MTMConfig
    field: Field
    counts: np.ndarray
    key: jax.Array

    def shared(self) -> Int[Array, " n"]:
        """For all targets the same."""
        return self._draw(self.key, ())

    def of_rows(self, rows: UInt32[Array, " K"], slots: int) -> Int[Array, "K {slots} n"]:
        """For every slot its own, which depend on the number of its row in the batch, wherever that is computed."""
        return jax.vmap(lambda row: self._draw(jax.random.fold_in(self.key, row), (slots,)))(rows)

    def _draw(self, key: jax.Array, shape: tuple[int, ...]) -> Int[Array, "*s n"]:
        low, q = self._distribution()
        return low + jax.random.choice(key, len(q), (*shape, self.config.noise), p=jnp.asarray(q, jnp.float32))

    def log_q(self, ids: Int[Array, "..."]) -> Float[Array, "..."]:
        """Log of the chance to draw an id; 0 for one that training never had, which is neither drawn nor a target."""
        low, q = self._distribution()
        return jnp.asarray(np.log(q, out=np.zeros_like(q), where=q > 0), jnp.float32)[ids - low]

    def _distribution(self) -> tuple[int, np.ndarray]:
        low, high = 0, len(self.counts)
        if self.config.noise_from == "field":
            low, high = self.field.offset, self.field.offset + self.field.size
        counts = self.counts[low:high].astype(np.float64)
        return low, counts / max(counts.sum(), 1)


class _Asked(NamedTuple):
    """What is to be recovered of a field: a vector of every row that hides it, its true ids, and what scores an id.

    Rows have their numbers in the batch. `common` is `unigram_scores`, which scores an id whatever the row is.
    """

    row: UInt32[Array, " K"]
    vector: Float[Array, "K E"]
    target: Int[Array, "K S"]
    table: Float[Array, "N E"]
    bias: Float[Array, " N"]
    common: Float[Array, " num_ids"]

    def positive(self) -> Float[Array, "K S"]:
        """Scores of the true ids."""
        return jnp.einsum("be,bse->bs", self.vector, self.table[self.target]) + self.bias[self.target]


# Each method: loss of every target, whether it scores highest, and the loss of the common scores.
_Scored = tuple[Float[Array, "K S"], Bool[Array, "K S"], Float[Array, "K S"]]


def _softmax(asked: _Asked, noise: _Noise) -> _Scored:
    """Softmax over all ids of the field."""
    field = noise.field
    span = slice(field.offset, field.offset + field.size)
    logits = asked.vector @ asked.table[span].T + asked.bias[span][None, :]
    label = asked.target - field.offset
    every = jnp.broadcast_to(logits[:, None, :], (*label.shape, field.size))
    best = jnp.argmax(logits, axis=-1)[:, None] == label
    common = jax.nn.logsumexp(asked.common[span]) - asked.common[asked.target]
    return objectives.softmax_cross_entropy(every, label), best, common


def _sampled(asked: _Asked, noise: _Noise) -> _Scored:
    """Sampled softmax against noise that the batch shares, so that scoring it is one product."""
    drawn, positive = noise.shared(), asked.positive()
    negative = (asked.vector @ asked.table[drawn].T + asked.bias[drawn][None, :])[:, None, :]
    hit = asked.target[:, :, None] == drawn[None, None, :]
    negative, log_q = (jnp.broadcast_to(x, hit.shape) for x in (negative, noise.log_q(drawn)[None, None, :]))
    common = jnp.broadcast_to(asked.common[drawn][None, None, :], hit.shape)
    common_loss = objectives.sampled_softmax(asked.common[asked.target], common, log_q, hit)
    return objectives.sampled_softmax(positive, negative, log_q, hit), _first(positive, negative, hit), common_loss


def _contrast(asked: _Asked, noise: _Noise) -> _Scored:
    """NCE of every target against noise of its own."""
    drawn, positive = noise.of_rows(asked.row, asked.target.shape[1]), asked.positive()
    negative = jnp.einsum("be,bske->bsk", asked.vector, asked.table[drawn]) + asked.bias[drawn]
    log_q = noise.log_q(asked.target), noise.log_q(drawn)
    loss = objectives.noise_contrastive(positive, negative, *log_q)
    common = objectives.noise_contrastive(asked.common[asked.target], asked.common[drawn], *log_q)
    return loss, _first(positive, negative, asked.target[:, :, None] == drawn), common


def _first(
    positive: Float[Array, "K S"], negative: Float[Array, "K S n"], hit: Bool[Array, "K S n"]
) -> Bool[Array, "K S"]:
    """Whether the true id scores above all noise that is another id."""
    return jnp.all(hit | (positive[:, :, None] > negative), axis=-1)


def _replaced(counts: np.ndarray, config: Config, schema: Schema) -> Float[np.ndarray, " F"]:
    """How often each field is replaced: how often it is hidden, times how often two rows differ in it.

    Of a list, and of a number, two rows are taken to differ.
    """
    units = masking.side_units(schema, config.mask, "table")
    hidden = masking.num_masked_units(units, config.mask.rate) / len(units)
    differ = np.ones(len(schema.fields))
    for f, field in enumerate(schema.fields):
        own = counts[field.offset : field.offset + field.size]
        if field.kind == "category" and own.sum():
            differ[f] = 1 - np.sum((own / own.sum()) ** 2)
    return np.clip(hidden * differ, 1e-3, 1 - 1e-3)


def _detection(
    logits: Float[Array, "B F"],
    ids: Int[Array, "B S"],
    numbers: Float[Array, "B M"],
    shown: Shown,
    rates: Float[np.ndarray, " F"],
    schema: Schema,
) -> dict[str, Mean]:
    """BCE of "was this field replaced?" over all fields; a replacement that equals the original is none.

    `mtm/gain` is how far that is below the BCE of `rates`, by which the fields are replaced.
    """
    changed = shown.ids != ids
    # Another number of the same bin is a replacement too: the tower sees the number itself.
    slots = np.asarray(schema.numeric_slots, int)
    changed = changed.at[:, slots].set(changed[:, slots] | (shown.numbers != numbers))
    losses, metrics, first = [], {}, 0
    for f, field in enumerate(schema.fields):
        own = slice(first, first + field.slots)
        first += field.slots
        if field.kind == "text":
            continue
        replaced = jnp.any(changed[:, own], axis=1).astype(jnp.float32)
        logit = logits[:, schema.tabular.index(f)]
        losses.append(objectives.binary_cross_entropy(logit, replaced, jnp.ones_like(replaced)))
        common = -jnp.sum(jnp.where(replaced > 0, np.log(rates[f]), np.log1p(-rates[f])))
        metrics[f"mtm/gain/{field.name}"] = Mean(common - losses[-1].total, losses[-1].weight)
        found = (logit > 0).astype(jnp.float32)
        metrics[f"mtm/accuracy/{field.name}"] = objectives.weighted(found, replaced)
        metrics[f"mtm/false_alarm/{field.name}"] = objectives.weighted(found, 1 - replaced)
    mean = Mean(sum((x.total for x in losses), jnp.zeros(())), sum((x.weight for x in losses), jnp.zeros(())))
    return {"mtm": mean, **metrics}
