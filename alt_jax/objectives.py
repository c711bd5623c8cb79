"""The losses: pure functions in float32. Each returns what it sums and by how much it weighs, never a mean.

Reporting `(sum, weight)` pairs keeps means exact over microbatches, devices and ragged batches; a weight of zero gives
a loss of zero, not NaN.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class Mean(NamedTuple):
    """A mean that has not been divided yet."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def value(self) -> Float[Array, ""]:
        """Total / weight, 0 where nothing was weighed."""
        return self.total / jnp.maximum(self.weight, 1.0)


def weighted(x: Float[Array, "*n"], weight: Float[Array, "*n"]) -> Mean:
    """The `Mean` of `x` under `weight` (0 or 1 each)."""
    return Mean(jnp.sum(x * weight), jnp.sum(weight))


def binary_cross_entropy(logit: Float[Array, " B"], label: Float[Array, " B"], weight: Float[Array, " B"]) -> Mean:
    """−y log σ(s) − (1−y) log(1−σ(s)), the finetuning loss."""
    return weighted(optax.losses.sigmoid_binary_cross_entropy(logit.astype(jnp.float32), label), weight)


def equal_rows(values: Int[Array, "B F"]) -> Bool[Array, "B B"]:
    """Which rows of a batch are the same in every field. Reflexive, so the diagonal is True."""
    return jnp.all(values[:, None, :] == values[None, :, :], axis=-1)


class Contrast(NamedTuple):
    """InfoNCE and what it retrieves: rows whose most similar partner is their own (or an equal row's), both ways."""

    loss: Mean
    ctr_to_text: Mean
    text_to_ctr: Mean


def instance_contrast(
    ctr: Float[Array, "B D"],
    text: Float[Array, "B D"],
    same: Bool[Array, "B B"],
    *,
    temperature: float,
    duplicates: Literal["positive", "ignore", "negative"],
) -> Contrast:
    """ICL: symmetric InfoNCE over the global batch, ½(CE(S) + CE(Sᵀ)) with S = Z_c Z_tᵀ / τ.

    Equal rows elsewhere in the batch are false negatives. `positive` spreads the target evenly over a row's equals,
    `ignore` takes them out of the softmax, `negative` is the plain loss of the paper (arXiv 2310.19453).

    Args:
      ctr: Z_c, projected CTR representations.
      text: Z_t, projected text representations.
      same: From `equal_rows`.
      temperature: τ.
      duplicates: What an equal row elsewhere in the batch is.
    """
    logits = jnp.matmul(ctr.astype(jnp.float32), text.astype(jnp.float32).T) / temperature
    own = jnp.eye(logits.shape[0], dtype=bool)
    if duplicates == "ignore":
        logits = jnp.where(same & ~own, -jnp.inf, logits)
    target = same if duplicates == "positive" else own
    share = target / jnp.sum(target, axis=1, keepdims=True)

    def one_way(scores: Float[Array, "B B"]) -> Float[Array, " B"]:
        # where= keeps 0 · (−inf) of ignored pairs out of the sum
        log_p = jax.nn.log_softmax(scores, axis=1)
        return -jnp.sum(share * log_p, axis=1, where=target)

    def retrieved(scores: Float[Array, "B B"]) -> Float[Array, " B"]:
        best = jnp.argmax(scores, axis=1)
        return jnp.take_along_axis(same, best[:, None], axis=1)[:, 0].astype(jnp.float32)

    ones = jnp.ones(logits.shape[0])
    loss = 0.5 * (one_way(logits) + one_way(logits.T))  # `same`, so `share`, is symmetric up to row scaling
    return Contrast(weighted(loss, ones), weighted(retrieved(logits), ones), weighted(retrieved(logits.T), ones))


def softmax_cross_entropy(logits: Float[Array, "... C"], target: Int[Array, "..."]) -> Float[Array, "..."]:
    """−log softmax(logits)[target] in float32."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)


def noise_contrastive(
    target: Float[Array, "..."],
    noise: Float[Array, "... K"],
    log_q_target: Float[Array, "..."],
    log_q_noise: Float[Array, "... K"],
) -> Float[Array, "..."]:
    """NCE (Gutmann & Hyvärinen 2010): is an id the data's or one of K draws from the noise distribution q?

    −log σ(s⁺ − log K q⁺) − Σ_k log σ(−(s_k − log K q_k)).

    Args:
      target: Score s⁺ of the true id.
      noise: Scores s_k of the K noise ids.
      log_q_target: log q of the true id.
      log_q_noise: log q of the noise ids.
    """
    log_k = jnp.log(float(noise.shape[-1]))
    positive = jax.nn.log_sigmoid(target.astype(jnp.float32) - log_k - log_q_target)
    negative = jax.nn.log_sigmoid(-(noise.astype(jnp.float32) - log_k - log_q_noise))
    return -positive - jnp.sum(negative, axis=-1)
