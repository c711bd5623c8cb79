"""xDeepFM: the compressed interaction network beside a deep part (Lian et al., KDD 2018, arXiv 1803.05170)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import PositiveInt

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


@register("xdeepfm")
class XDeepFM(Interaction):
    """logit = Σ_f w[x_f] + wᵀ concat(p⁺, deep) + b, h_c = concat(p⁺, deep).

    Layer k of the network has H feature maps X^k_h = Σ_{i,j} W^{k,h}_ij (X^{k-1}_i ⊙ X^0_j), X^0 the embeddings
    (equation 6); p⁺ joins every map's sum over the embedding's dimensions, layer after layer.

    Attributes:
      layers: Layers of the network.
      maps: Feature maps H in each.
    """

    layers: PositiveInt = 2
    maps: PositiveInt = 64

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        maps, pooled = embeddings, []
        for layer in range(self.layers):
            shape = (maps.shape[1], embeddings.shape[1], self.maps)
            W = self.param(f"cin_{layer}", nn.initializers.xavier_uniform(in_axis=(0, 1)), shape)
            # Never holds all products of two layers: [B, F, H', D] rather than [B, F · F', D] times H.
            maps = jnp.einsum("bjd,bjhd->bhd", embeddings, jnp.einsum("bid,ijh->bjhd", maps, W))
            pooled.append(jnp.sum(maps, axis=2))
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        deep = MLP(self.config.hidden, self.config.dropout, name="deep")(x0, train=train)
        return jnp.concatenate([*pooled, deep], axis=1)
