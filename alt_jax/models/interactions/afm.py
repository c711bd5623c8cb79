"""AFM: attentional factorization machine (Xiao et al., IJCAI 2017, arXiv 1708.04617)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.dropout import Dropout
from alt_jax.models.interactions import Interaction, register


@register("afm")
class AFM(Interaction):
    """logit = b + Σ_f w[x_f] + pᵀ h_c, h_c = Σ_{i<j} a_ij (v_i ⊙ v_j).

    a = softmax over pairs of hᵀ ReLU(W (v_i ⊙ v_j) + b). `ctr.dropout` acts on h_c.

    Attributes:
      attention: Width of the attention network.
    """

    only_pairs: ClassVar[bool] = True
    attention: PositiveInt = 32

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B D"]:
        """Computes h_c."""
        first, second = np.triu_indices(embeddings.shape[1], k=1)
        products = embeddings[:, first] * embeddings[:, second]
        hidden = nn.relu(nn.Dense(self.attention, name="attention")(products))
        weights = jax.nn.softmax(nn.Dense(1, use_bias=False, name="score")(hidden)[..., 0], axis=1)
        pooled = jnp.einsum("bp,bpd->bd", weights, products)
        return Dropout(self.config.dropout)(pooled, train=train)
