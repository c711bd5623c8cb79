"""GDCN: cross layers with an information gate (Wang et al., CIKM 2023, arXiv 2311.04635)."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


@register("gdcn")
class GDCN(Interaction):
    """c_{l+1} = c_0 ⊙ (W_c c_l + b) ⊙ σ(W_g c_l) + c_l; logit = wᵀ h_c + b.

    Attributes:
      layers: Gated cross layers.
      structure: `parallel` (GDCN-P): h_c = concat(c_L, deep over c_0); `stacked` (GDCN-S): h_c = deep over c_L.
    """

    first_order: ClassVar[bool] = False
    layers: PositiveInt = 3
    structure: Literal["parallel", "stacked"] = "parallel"

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        c0 = embeddings.reshape(embeddings.shape[0], -1)
        cross = c0
        for layer in range(self.layers):
            gate = nn.sigmoid(nn.Dense(c0.shape[1], use_bias=False, name=f"gate_{layer}")(cross))
            cross = c0 * nn.Dense(c0.shape[1], name=f"cross_{layer}")(cross) * gate + cross
        deep = MLP(self.config.hidden, self.config.dropout, name="deep")
        if self.structure == "stacked":
            return deep(cross, train=train)
        return jnp.concatenate([cross, deep(c0, train=train)], axis=1)
