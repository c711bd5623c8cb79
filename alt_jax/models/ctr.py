"""The CTR tower: one embedding table for all fields, an interaction model, and the logit on top."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alt_jax.config import CTRConfig
from alt_jax.models import interactions


class CTRTower(nn.Module):
    """Feature ids to representation h_c.

    Attributes:
      config: Sizes, the name of the interaction model, and its options.
      num_ids: Rows of the shared embedding table (`Schema.num_ids`).
    """

    config: CTRConfig
    num_ids: int

    def setup(self) -> None:
        """The published init, N(0, init_std²), for the table; the interaction model brings its own."""
        self.interaction = interactions.build(self.config)
        self.embedding = nn.Embed(
            self.num_ids,
            self.interaction.embedding_width(),
            embedding_init=nn.initializers.normal(self.config.init_std),
        )

    def __call__(self, ids: Int[Array, "B F"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        return self.interaction(self.embedding(ids), train=train)


class CTRLogit(nn.Module):
    """logit_c = readout(h_c), plus Σ_f w[x_f] where the tower has a linear part.

    Pretraining does not train it, so finetuning starts it fresh.

    Attributes:
      config: Names the interaction model, which knows its readout.
      num_ids: Rows of the table of first-order weights.
    """

    config: CTRConfig
    num_ids: int

    @nn.compact
    def __call__(self, ids: Int[Array, "B F"], representation: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The click logit."""
        interaction = interactions.build(self.config)
        logit = interaction.readout()(representation)
        if interaction.first_order:
            weights = nn.Embed(self.num_ids, 1, embedding_init=nn.initializers.normal(1e-4), name="linear")(ids)
            logit += jnp.sum(weights[..., 0], axis=-1)
        return logit
