"""What stands on the towers: projections for ICL, the MLM and MTM heads of pretraining, the logits of finetuning."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from alt_jax.models.dropout import Dropout
from alt_jax.models.encoder import rowwise
from alt_jax.models.norm import layer_norm
from alt_jax.models.table import table_rows
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
        z = layer_norm("norm")(first + Dropout(self.dropout)(second, train=train))
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True) if self.normalize else z


class MLMHead(nn.Module):
    """Token logits from a masked position's state beside the row's CTR representation (arXiv 2310.19453).

    concat(state, h_c) → Linear → tanh → dropout → Linear(V), untied from the embeddings.

    Attributes:
      vocab_size: V.
      dropout: Dropout before the output layer.
    """

    vocab_size: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "K D"],
        representation: Float[Array, "K C"] | None,
        number: UInt32[Array, " K"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "K V"]:
        """Logits at K masked positions, each with the representation of its row, or without help from the table.

        Args:
          states: At the positions.
          representation: Of their rows, or None.
          number: Of each position in the batch, so that dropout does not depend on how they are gathered.
          train: Whether dropout is on.
        """
        x = states.astype(jnp.float32)
        x = x if representation is None else jnp.concatenate([x, representation], axis=-1)
        x = jnp.tanh(rowwise(nn.Dense(states.shape[-1], name="hidden"))(x))
        x = Dropout(self.dropout)(x, train=train, number=number)
        return rowwise(nn.Dense(self.vocab_size, name="output"))(x)


class Similarity(nn.Module):
    """What similarities are multiplied by, 1/τ, and what is added to them.

    Attributes:
      temperature: τ, or where it starts.
      learned: Whether 1/τ is learned, as exp of a parameter, clamped at 100 (CLIP, arXiv 2103.00020, sec. 2.5).
      biased: Whether a bias is learned, from −10 on (SigLIP, arXiv 2303.15343, sec. 3.2): at first all pairs are taken
        for different, which all but one in B are.
    """

    temperature: float
    learned: bool
    biased: bool

    @nn.compact
    def __call__(self) -> tuple[float | Float[Array, ""], float | Float[Array, ""]]:
        """Scale and bias."""
        scale: float | Array = 1 / self.temperature
        if self.learned:
            start = nn.initializers.constant(-math.log(self.temperature))
            scale = _at_most_100(jnp.exp(self.param("log_scale", start, ())))
        bias = self.param("bias", nn.initializers.constant(-10.0), ()) if self.biased else 0.0
        return scale, bias


@jax.custom_vjp
def _at_most_100(scale: Float[Array, ""]) -> Float[Array, ""]:
    """min(scale, 100). Beyond it the gradient that would lead back still passes, so nothing gets stuck there."""
    return jnp.minimum(scale, 100.0)


_at_most_100.defvjp(
    lambda scale: (jnp.minimum(scale, 100.0), scale),
    lambda scale, g: (jnp.where((scale > 100.0) & (g < 0), 0.0, g),),
)


class TextHelp(nn.Module):
    """The masked row's representation beside what it asks of the prompt: concat(h̃_c, Σ_l a_l H_l).

    a = softmax(⟨LN(Linear(h̃_c)), H_l⟩ / √D) over the real tokens.

    Attributes:
      attention: `scaled`; or as `released`: not divided by √D, and over padding as well.
    """

    attention: Literal["scaled", "released"]

    @nn.compact
    def __call__(
        self, representation: Float[Array, "B C"], states: Float[Array, "B L D"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B C+D"]:
        """Attends from the rows to their prompts' tokens."""
        states = states.astype(jnp.float32)
        query = layer_norm("norm")(nn.Dense(states.shape[-1], name="query")(representation))
        scores = jnp.einsum("bd,bld->bl", query, states)
        if self.attention == "scaled":
            scores = jnp.where(mask, scores / math.sqrt(states.shape[-1]), -jnp.inf)
        attended = jnp.einsum("bl,bld->bd", jax.nn.softmax(scores, axis=-1), states)
        return jnp.concatenate([representation, attended], axis=-1)


def _helped(
    attention: Literal["scaled", "released"],
    representation: Float[Array, "B C"],
    states: Float[Array, "B L D"] | None,
    mask: Bool[Array, "B L"] | None,
) -> Float[Array, "B N"]:
    """Inside a head: `TextHelp` where there are states."""
    if states is None or mask is None:
        return representation
    return TextHelp(attention, name="help")(representation, states, mask)


class MTMHead(nn.Module):
    """One vector per field from the masked row's representation, helped by the prompt (arXiv 2310.19453).

    Linear(concat(h̃_c, attended)) → one vector of width `dim` per field. The score of a feature id is the dot product
    with its row of an output table plus a bias.

    Attributes:
      schema: Gives the fields' id ranges.
      dim: Width of the output table.
      attention: Of `TextHelp`.
    """

    schema: Schema
    dim: int
    attention: Literal["scaled", "released"] = "scaled"

    @nn.compact
    def __call__(
        self, representation: Float[Array, "B C"], states: Float[Array, "B L D"] | None, mask: Bool[Array, "B L"] | None
    ) -> tuple[Float[Array, "B F E"], Float[Array, "N E"], Float[Array, " N"]]:
        """Computes the fields' vectors.

        Args:
          representation: h̃_c of the rows with masked ids.
          states: Token states of the prompts, or None: no help from the text.
          mask: Which tokens are real.

        Returns:
          A vector per tabular field, the output table over all feature ids (`table_rows` of them), and its bias.
        """
        fields = len(self.schema.tabular)
        helped = _helped(self.attention, representation, states, mask)
        vectors = nn.Dense(fields * self.dim, name="output")(helped)
        rows = table_rows(self.schema.num_ids)
        # As the released code starts it; its bias, too, starts elsewhere than at 0: see `Pretrain.init`.
        table = self.param("table", _uniform(1 / math.sqrt(self.dim)), (rows, self.dim))
        bias = self.param("bias", nn.initializers.zeros, (rows,))
        return vectors.reshape(-1, fields, self.dim), table, bias


def _uniform(most: float) -> nn.initializers.Initializer:
    """U(−most, most)."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -most, most)

    return init


class RFDHead(nn.Module):
    """Replaced-feature detection: Linear(concat(h̃_c, attended)), a logit per field (MAP, arXiv 2308.01737).

    Attributes:
      schema: Gives the fields.
      attention: Of `TextHelp`.
    """

    schema: Schema
    attention: Literal["scaled", "released"] = "scaled"

    @nn.compact
    def __call__(
        self, representation: Float[Array, "B C"], states: Float[Array, "B L D"] | None, mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B F"]:
        """The logit of "this field was replaced", for every tabular field; arguments as of `MTMHead`."""
        helped = _helped(self.attention, representation, states, mask)
        return nn.Dense(len(self.schema.tabular), name="output")(helped)


def pool(
    states: Float[Array, "B W D"], mask: Bool[Array, "B L"], pooling: Literal["cls", "mean"]
) -> Float[Array, "B D"]:
    """h_t of prompts, in float32: the state of their first token, [CLS]; or the mean of those of their real tokens.

    Args:
      states: Of all tokens, W = L; for `cls`, of the first at least.
      mask: Which tokens are real; not looked at for `cls`.
      pooling: `text.pooling`.
    """
    if pooling == "cls":
        return states[:, 0].astype(jnp.float32)
    real = mask[:, :, None].astype(jnp.float32)
    return jnp.sum(states * real, axis=1) / jnp.sum(real, axis=1)


class TextLogit(nn.Module):
    """logit_t = Linear(h_t)."""

    @nn.compact
    def __call__(self, text: Float[Array, "B D"]) -> Float[Array, " B"]:
        """The click logit."""
        return nn.Dense(1, name="dense")(text)[:, 0]


class TwoTextLogit(nn.Module):
    """logit_t of two prompts: concat(h_t, h'_t) → Linear → ReLU → Linear (CTR-BERT's late fusion)."""

    @nn.compact
    def __call__(self, first: Float[Array, "B D"], second: Float[Array, "B D"]) -> Float[Array, " B"]:
        """The click logit."""
        views = jnp.concatenate([first, second], axis=1)
        return nn.Dense(1, name="dense")(nn.relu(nn.Dense(first.shape[-1], name="hidden")(views)))[:, 0]


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
        text_representation: Float[Array, "B D"],
    ) -> Float[Array, " B"]:
        """Mixes the two logits; h_c and h_t decide in `gated` only."""
        alpha: Array | float = 0.5
        if self.kind == "free":
            alpha = self.param("alpha", nn.initializers.constant(self.alpha), ())
        elif self.kind == "sigmoid":
            alpha = jax.nn.sigmoid(self.param("logit", nn.initializers.constant(_logit(self.alpha)), ()))
        elif self.kind == "gated":
            views = jnp.concatenate([representation, text_representation], axis=1)
            start = nn.initializers.constant(_logit(self.alpha))
            gate = nn.Dense(1, kernel_init=nn.initializers.zeros, bias_init=start, name="gate")
            alpha = jax.nn.sigmoid(gate(views)[:, 0])
        return alpha * ctr + (1 - alpha) * text


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
