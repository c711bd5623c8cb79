"""PNN: product-based neural networks, inner and outer (Qu et al., ICDM 2016, arXiv 1611.00144)."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.interactions.fwfm import inner_products
from alt_jax.models.mlp import MLP


@register("ipnn")
class IPNN(Interaction):
    """l_1 = ReLU(W_z z + W_p p + b), then further ReLU layers; logit = wᵀ h_c + b.

    z joins the embeddings and p is ⟨v_i, v_j⟩ for all pairs i < j. h_c is the last layer.
    """

    first_order: ClassVar[bool] = False

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        z = embeddings.reshape(embeddings.shape[0], -1)
        both = jnp.concatenate([z, inner_products(embeddings)], axis=1)  # one matrix for W_z and W_p
        return MLP(self.config.hidden, self.config.dropout, name="deep")(both, train=train)


@register("opnn")
class OPNN(Interaction):
    """As `ipnn`, with p = f_Σ f_Σᵀ, f_Σ = Σ_i v_i: the outer products of all pairs, superposed."""

    first_order: ClassVar[bool] = False

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        z = embeddings.reshape(embeddings.shape[0], -1)
        total = jnp.sum(embeddings, axis=1)
        outer = jnp.einsum("bi,bj->bij", total, total).reshape(total.shape[0], -1)
        both = jnp.concatenate([z, outer], axis=1)
        return MLP(self.config.hidden, self.config.dropout, name="deep")(both, train=train)
