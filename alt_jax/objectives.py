"""The losses: pure functions in float32. Each returns what it sums and by how much it weighs, never a mean.

Reporting `(sum, weight)` pairs keeps means exact over microbatches, devices and ragged batches; a weight of zero gives
a loss of zero, not NaN.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from alt_jax.microbatches import in_turn


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


def share(some: Bool[Array, "*n"], every: Bool[Array, "*n"]) -> Mean:
    """How many of those there are, out of all of these."""
    return Mean(jnp.sum(some, dtype=jnp.float32), jnp.sum(every, dtype=jnp.float32))


def binary_cross_entropy(logit: Float[Array, " B"], label: Float[Array, " B"], weight: Float[Array, " B"]) -> Mean:
    """−y log σ(s) − (1−y) log(1−σ(s)), the finetuning loss."""
    return weighted(optax.losses.sigmoid_binary_cross_entropy(logit.astype(jnp.float32), label), weight)


class Contrast(NamedTuple):
    """ICL of a batch.

    Attributes:
      loss: The contrastive loss.
      ctr_to_text, text_to_ctr: Rows whose most similar partner is their own (or an equal row's).
      twins: Rows that are equal to another one of the batch.
    """

    loss: Mean
    ctr_to_text: Mean
    text_to_ctr: Mean
    twins: Mean


def instance_contrast(
    ctr: Float[Array, "B D"],
    text: Float[Array, "B D"],
    values: Int[Array, "B S"],
    *,
    scale: float | Float[Array, ""],
    bias: float | Float[Array, ""] = 0.0,
    objective: Literal["infonce", "sigmoid"] = "infonce",
    duplicates: Literal["positive", "ignore", "negative"] = "positive",
    apart: Int[Array, "B G"] | None = None,
    chunk: int = 0,
) -> Contrast:
    """ICL over the global batch, from S = scale · Z_c Z_tᵀ + bias.

    `infonce` is ½(CE(S) + CE(Sᵀ)) (arXiv 2310.19453); `sigmoid` is −1/B Σ_ij log σ(±S_ij), plus where j is i
    (SigLIP, arXiv 2303.15343, eq. 1).

    Equal rows elsewhere in the batch are false negatives. `positive` spreads the target evenly over a row's equals,
    `ignore` takes them out, `negative` is the plain loss of the paper.

    Args:
      ctr: Z_c, projected CTR representations.
      text: Z_t, projected text representations.
      values: What makes two rows equal.
      scale: 1/τ.
      bias: Of `sigmoid`; a softmax would not notice it.
      objective: Softmax over the batch, or every pair by itself.
      duplicates: What an equal row elsewhere in the batch is.
      apart: Different rows that agree in any of these columns are left out of each other's negatives.
      chunk: Rows of S that are in memory at a time, forward and backward; 0: all.
    """
    rows = ctr.shape[0]
    apart = jnp.zeros((rows, 0), jnp.int32) if apart is None else apart
    ctr, text = ctr.astype(jnp.float32), text.astype(jnp.float32)

    def one_way(
        scores: Float[Array, "C B"], target: Bool[Array, "C B"], out: Bool[Array, "C B"], same: Bool[Array, "C B"]
    ) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        scores = scale * scores + bias
        best = jnp.argmax(jnp.where(out & ~same, -jnp.inf, scores), axis=1)
        found = jnp.take_along_axis(same, best[:, None], axis=1)[:, 0].astype(jnp.float32)
        if objective == "sigmoid":
            terms = -jax.nn.log_sigmoid(jnp.where(target, scores, -scores))
            return jnp.sum(terms, axis=1, where=~out), found
        # where= keeps 0 · (−inf) of pairs that are out from the sum
        log_p = jax.nn.log_softmax(jnp.where(out, -jnp.inf, scores), axis=1)
        share = target / jnp.sum(target, axis=1, keepdims=True)
        return -jnp.sum(share * log_p, axis=1, where=target), found

    def part(piece: tuple[Array, ...]) -> tuple[Float[Array, " C"], ...]:
        """Some rows of S and of Sᵀ; a row's relations to the others are the same in both."""
        c, t, own_values, own_apart, number = piece
        own = number[:, None] == jnp.arange(rows)[None, :]
        same = jnp.all(own_values[:, None, :] == values[None, :, :], axis=-1)
        out = jnp.any(own_apart[:, None, :] == apart[None, :, :], axis=-1)
        out = (out | same if duplicates == "ignore" else out) & ~own
        target = own
        if duplicates == "positive":
            target, out = same, out & ~same
        there, found = one_way(c @ text.T, target, out, same)
        back, found_back = one_way(t @ ctr.T, target, out, same)
        twin = (jnp.sum(same, axis=1) > 1).astype(jnp.float32)
        return 0.5 * (there + back), found, found_back, twin

    if chunk and rows % chunk:
        raise ValueError(f"{rows} rows cannot be split into chunks of {chunk}")
    parts = in_turn(part, (ctr, text, values, apart, jnp.arange(rows)), rows // chunk if chunk else 1)
    return Contrast(*(weighted(x, jnp.ones_like(x)) for x in parts))


def softmax_cross_entropy(logits: Float[Array, "... C"], target: Int[Array, "..."]) -> Float[Array, "..."]:
    """−log softmax(logits)[target] in float32."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)


def sampled_softmax(
    target: Float[Array, "..."],
    noise: Float[Array, "... K"],
    log_q_noise: Float[Array, "... K"],
    hit: Bool[Array, "... K"],
) -> Float[Array, "..."]:
    """Softmax over the true id and K draws from q, whose scores are corrected by log K q (arXiv 1907.10747, eq. 5).

    −s⁺ + log(exp s⁺ + Σ_k exp(s_k − log K q_k)) over the draws that are not the true id: in expectation the sum is that
    over all other ids, so with K the loss tends to the full softmax, whatever q is.

    Args:
      target: Score s⁺ of the true id.
      noise: Scores s_k of the K noise ids.
      log_q_noise: log q of the noise ids.
      hit: Noise ids that are the true id.
    """
    positive = target.astype(jnp.float32)
    corrected = noise.astype(jnp.float32) - jnp.log(float(noise.shape[-1])) - log_q_noise
    scores = jnp.concatenate([positive[..., None], jnp.where(hit, -jnp.inf, corrected)], axis=-1)
    return jax.nn.logsumexp(scores, axis=-1) - positive


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
