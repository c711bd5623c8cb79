"""AutoInt: self-attention between fields (Song et al., CIKM 2019, arXiv 1810.11921)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


class InteractingLayer(nn.Module):
    """e'_m = ReLU(concat_h Σ_k α^h_mk W_V^h e_k + W_res e_m), with α^h_m = softmax_k ⟨W_Q^h e_m, W_K^h e_k⟩.

    The products are not scaled, as in the paper.

    Attributes:
      heads: Attention heads h.
      width: Of each head.
    """

    heads: int
    width: int

    @nn.compact
    def __call__(self, e: Float[Array, "B F N"]) -> Float[Array, "B F M"]:
        """One layer over the fields' vectors."""
        projections = (nn.DenseGeneral((self.heads, self.width), use_bias=False, name=n) for n in "QKV")
        query, key, value = (project(e) for project in projections)
        attention = jax.nn.softmax(jnp.einsum("bmhd,bkhd->bhmk", query, key), axis=-1)
        mixed = jnp.einsum("bhmk,bkhd->bmhd", attention, value).reshape(*e.shape[:2], -1)
        return nn.relu(mixed + nn.Dense(mixed.shape[-1], use_bias=False, name="residual")(e))


@register("autoint")
class AutoInt(Interaction):
    """logit = wᵀ h_c + b, h_c the fields' vectors after the last interacting layer, joined.

    Attributes:
      layers: Interacting layers.
      heads: Attention heads.
      width: Of each head.
    """

    first_order: ClassVar[bool] = False
    layers: PositiveInt = 3
    heads: PositiveInt = 2
    width: PositiveInt = 16

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        e = embeddings
        for layer in range(self.layers):
            e = InteractingLayer(self.heads, self.width, name=f"layer_{layer}")(e)
        return e.reshape(e.shape[0], -1)


@register("autoint_plus")
class AutoIntPlus(AutoInt):
    """AutoInt+: h_c = concat(AutoInt's, a deep part over all embeddings)."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        attended = AutoInt(self.config, self.layers, self.heads, self.width, name="attention")(embeddings, train=train)
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        deep = MLP(self.config.hidden, self.config.dropout, name="deep")(x0, train=train)
        return jnp.concatenate([attended, deep], axis=1)
