"""FiBiNET: field importance and bilinear products (Huang et al., RecSys 2019, arXiv 1905.09433)."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


class Bilinear(nn.Module):
    """p_ij = (v_i W) ⊙ v_j for all pairs i < j.

    Attributes:
      matrices: One W for `all`, one for `each` first field, or one for each pair (`interaction`).
    """

    matrices: Literal["all", "each", "interaction"]

    @nn.compact
    def __call__(self, v: Float[Array, "B F D"]) -> Float[Array, "B P D"]:
        """All pairs' products."""
        fields, width = v.shape[1:]
        first, second = np.triu_indices(fields, k=1)
        init = nn.initializers.xavier_normal(batch_axis=(0,))
        if self.matrices == "interaction":
            W = self.param("W", init, (len(first), width, width))
            return jnp.einsum("bpd,pde->bpe", v[:, first], W) * v[:, second]
        W = self.param("W", init, (1 if self.matrices == "all" else fields, width, width))
        turned = jnp.einsum("bfd,fde->bfe", v, jnp.broadcast_to(W, (fields, width, width)))
        return turned[:, first] * v[:, second]


@register("fibinet")
class FiBiNET(Interaction):
    """logit = Σ_f w[x_f] + wᵀ h_c + b, h_c a deep part over bilinear products of the embeddings.

    Joined are the products of the embeddings E and of the weighed V = a ⊙ E, where a = ReLU(W_2 ReLU(W_1 z)) and z_f
    is the mean of v_f.

    Attributes:
      reduction: The excitation's hidden layer has max(1, F / reduction) units.
      bilinear: Which pairs share a matrix.
    """

    only_pairs: ClassVar[bool] = True
    reduction: PositiveInt = 3
    bilinear: Literal["all", "each", "interaction"] = "interaction"

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        rows, fields = embeddings.shape[:2]
        squeezed = jnp.mean(embeddings, axis=2)
        hidden = nn.relu(nn.Dense(max(1, fields // self.reduction), use_bias=False, name="squeeze")(squeezed))
        importance = nn.relu(nn.Dense(fields, use_bias=False, name="excite")(hidden))
        weighed = embeddings * importance[..., None]
        products = [
            Bilinear(self.bilinear, name="products")(embeddings),
            Bilinear(self.bilinear, name="weighed_products")(weighed),
        ]
        joined = jnp.concatenate(products, axis=1).reshape(rows, -1)
        return MLP(self.config.hidden, self.config.dropout, name="deep")(joined, train=train)
