"""DCN-V2 with full matrices (Wang et al., WWW 2021, arXiv 2008.13535); `dcn_mix` has low-rank experts instead."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


@register("dcnv2")
class DCNV2(Interaction):
    """x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l (equation 1); logit = wᵀ h_c + b.

    Attributes:
      layers: Cross layers.
      structure: `parallel`: h_c = concat(x_L, deep over x_0); `stacked`: h_c = deep over x_L.
    """

    first_order: ClassVar[bool] = False
    layers: PositiveInt = 3
    structure: Literal["parallel", "stacked"] = "parallel"

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        cross = x0
        for layer in range(self.layers):
            cross = x0 * nn.Dense(x0.shape[1], name=f"cross_{layer}")(cross) + cross
        deep = MLP(self.config.hidden, self.config.dropout, name="deep")
        if self.structure == "stacked":
            return deep(cross, train=train)
        return jnp.concatenate([cross, deep(x0, train=train)], axis=1)
