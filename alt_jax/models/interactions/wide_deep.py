"""Wide & Deep (Cheng et al., DLRS 2016, arXiv 1606.07792)."""

import flax.linen as nn
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, register
from alt_jax.models.mlp import MLP


@register("wide_deep")
class WideDeep(Interaction):
    """logit = w_wideᵀ x + w_deepᵀ h_c + b, h_c the last layer of a ReLU network over all embeddings.

    The wide part is the linear part over ids; the paper's hand-made cross products are left to the raw columns.
    """

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        x0 = embeddings.reshape(embeddings.shape[0], -1)
        return MLP(self.config.hidden, self.config.dropout, name="deep")(x0, train=train)
