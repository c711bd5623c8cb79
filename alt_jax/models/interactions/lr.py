"""LR: logistic regression on one-hot ids (Richardson et al., WWW 2007)."""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from alt_jax.models.interactions import Interaction, Sum, register


@register("lr")
class LR(Interaction):
    """logit = Σ_f w[x_f] + b.

    The embedding table is one wide and holds w, and h_c is the vector of the F terms, so that pretraining has something
    to align and what it learns is what finetuning uses.
    """

    first_order: ClassVar[bool] = False

    @nn.nowrap
    def embedding_width(self) -> int:
        """One weight for each id, whatever `ctr.dim` says."""
        return 1

    def __call__(self, embeddings: Float[Array, "B F 1"], *, train: bool) -> Float[Array, "B F"]:
        """Computes h_c."""
        return embeddings[..., 0]

    @nn.nowrap
    def readout(self) -> nn.Module:
        """The terms' sum."""
        return Sum(name="readout")
