"""What stands on the towers: projections for ICL, the MLM and MTM heads of pretraining, the logits of finetuning."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alt_jax.schema import Schema


class Projection(nn.Module):
    """P(h): Linear → GELU → Linear → dropout, plus the first Linear's output, then LayerNorm.

    Attributes:
      dim: Width of the shared space.
      dropout: Dropout before the residual sum.
      normalize: Scale to unit length.
    """

    dim: int
    dropout: float
    normalize: bool

    @nn.compact
    def __call__(self, h: Float[Array, "B D"], *, train: bool) -> Float[Array, "B E"]:
        """Projects one view of the rows."""
        first = nn.Dense(self.dim, name="first")(h.astype(jnp.float32))
        second = nn.Dense(self.dim, name="second")(nn.gelu(first, approximate=False))
        z = nn.LayerNorm(name="norm")(first + nn.Dropout(self.dropout, deterministic=not train)(second))
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True) if self.normalize else z


class MLMHead(nn.Module):
    """Token logits from a masked position's state beside the whole row's CTR representation (arXiv 2310.19453).

    concat(state, h_c) → Linear → tanh → dropout → Linear(V), untied from the embeddings.

    Attributes:
      vocab_size: V.
      dropout: Dropout before the output layer.
    """

    vocab_size: int
    dropout: float

    @nn.compact
    def __call__(
        self, states: Float[Array, "K D"], representation: Float[Array, "K C"], *, train: bool
    ) -> Float[Array, "K V"]:
        """Logits at K masked positions, each with the representation of its row."""
        x = jnp.concatenate([states.astype(jnp.float32), representation], axis=-1)
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(nn.Dense(states.shape[-1], name="hidden")(x)))
        return nn.Dense(self.vocab_size, name="output")(x)


class MTMHead(nn.Module):
    """One vector per field from the masked row's representation, helped by the unmasked prompt.

    A query LN(Linear(h̃_c)) attends to the token states (scaled by √D, padding left out; the released code does
    neither); concat(h̃_c, attended) → Linear(F·dim), cut into one vector per field. The score of a feature id is the dot
    product with its row of an output table plus a bias.

    Attributes:
      schema: Gives the fields' id ranges.
      dim: Width of the output table.
    """

    schema: Schema
    dim: int

    @nn.compact
    def __call__(
        self, representation: Float[Array, "B C"], states: Float[Array, "B L D"], mask: Bool[Array, "B L"]
    ) -> tuple[Float[Array, "B F E"], Float[Array, "N E"], Float[Array, " N"]]:
        """Computes the fields' vectors.

        Args:
          representation: h̃_c of the rows with masked ids.
          states: Token states of the unmasked prompts.
          mask: Which tokens are real.

        Returns:
          A vector per tabular field, the output table over all N feature ids, and its bias.
        """
        states = states.astype(jnp.float32)
        query = nn.LayerNorm(name="norm")(nn.Dense(states.shape[-1], name="query")(representation))
        scores = jnp.einsum("bd,bld->bl", query, states) / math.sqrt(states.shape[-1])
        attention = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        attended = jnp.einsum("bl,bld->bd", attention, states)
        fields = len(self.schema.tabular)
        vectors = nn.Dense(fields * self.dim, name="output")(jnp.concatenate([representation, attended], axis=-1))
        table = self.param("table", nn.initializers.normal(0.02), (self.schema.num_ids, self.dim))
        bias = self.param("bias", nn.initializers.zeros, (self.schema.num_ids,))
        return vectors.reshape(-1, fields, self.dim), table, bias


class TextLogit(nn.Module):
    """logit_t = Linear(h_t), h_t the state of [CLS]."""

    @nn.compact
    def __call__(self, states: Float[Array, "B L D"]) -> Float[Array, " B"]:
        """The click logit."""
        return nn.Dense(1, name="dense")(states[:, 0].astype(jnp.float32))[:, 0]


class Fusion(nn.Module):
    """The joint logit α · logit_c + (1 − α) · logit_t.

    Attributes:
      kind: `free`: α is a learned scalar, as in the released code; `sigmoid`: α = σ(a); `gated`:
        α = σ(w·[h_c, h_t] + b) for every row; `average`: α = ½.
      alpha: Where α starts. At 0, as in the released code, the CTR tower gets no joint gradient at first.
    """

    kind: Literal["free", "sigmoid", "gated", "average"]
    alpha: float

    @nn.compact
    def __call__(
        self,
        ctr: Float[Array, " B"],
        text: Float[Array, " B"],
        representation: Float[Array, "B C"],
        states: Float[Array, "B L D"],
    ) -> Float[Array, " B"]:
        """Mixes the two logits; h_c and h_t, the state of [CLS], decide in `gated` only."""
        alpha: Array | float = 0.5
        if self.kind == "free":
            alpha = self.param("alpha", nn.initializers.constant(self.alpha), ())
        elif self.kind == "sigmoid":
            alpha = jax.nn.sigmoid(self.param("logit", nn.initializers.constant(_logit(self.alpha)), ()))
        elif self.kind == "gated":
            views = jnp.concatenate([representation, states[:, 0].astype(jnp.float32)], axis=1)
            start = nn.initializers.constant(_logit(self.alpha))
            gate = nn.Dense(1, kernel_init=nn.initializers.zeros, bias_init=start, name="gate")
            alpha = jax.nn.sigmoid(gate(views)[:, 0])
        return alpha * ctr + (1 - alpha) * text


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
