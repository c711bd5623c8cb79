"""DeepFM: factorization machine and deep part share embeddings (Guo et al., IJCAI 2017, arXiv 1703.04247)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, Linear, register
from alt_jax.models.interactions.fm import pooled_products
from alt_jax.models.mlp import MLP


class FirstPlusLinear(nn.Module):
    """h_0 + wᵀ h_{1:} + b: the factorization machine's term is not weighed again."""

    @nn.compact
    def __call__(self, h: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The representation's share of the click logit."""
        return h[:, 0] + Linear(name="deep")(h[:, 1:])


@register("deepfm")
class DeepFM(Interaction):
    """logit = Σ_f w[x_f] + Σ_{i<j} ⟨v_i, v_j⟩ + wᵀ deep + b, h_c = concat(the second term, deep)."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        products = jnp.sum(pooled_products(embeddings), axis=1, keepdims=True)
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        deep = MLP(self.config.hidden, self.config.dropout, name="deep")(x0, train=train)
        return jnp.concatenate([products, deep], axis=1)

    @nn.nowrap
    def readout(self) -> nn.Module:
        """The factorization machine's term as it is, the deep part weighed."""
        return FirstPlusLinear(name="readout")
