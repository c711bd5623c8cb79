"""DCN: the deep and cross network with rank-one cross layers (Wang et al., ADKDD 2017, arXiv 1708.05123)."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


@register("dcn")
class DCN(Interaction):
    """x_{l+1} = x_0 (x_lᵀ w_l) + b_l + x_l (equation 3), h_c = concat(x_L, deep), logit = wᵀ h_c + b.

    Attributes:
      layers: Cross layers.
    """

    first_order: ClassVar[bool] = False
    layers: PositiveInt = 3

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        cross = x0
        for layer in range(self.layers):
            weighed = nn.Dense(1, use_bias=False, name=f"cross_{layer}")(cross)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (x0.shape[1],))
            cross = x0 * weighed + bias[None, :] + cross
        deep = MLP(self.config.hidden, self.config.dropout, name="deep")(x0, train=train)
        return jnp.concatenate([cross, deep], axis=1)
