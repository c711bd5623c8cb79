"""The CTR tower: one embedding table for all fields, an interaction model, and the logit on top."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alt_jax.config import CTRConfig
from alt_jax.models import interactions


class CTRTower(nn.Module):
    """Feature ids to representation h_c.

    Attributes:
      config: Sizes and the name of the interaction model.
      num_ids: Rows of the shared embedding table (`Schema.num_ids`).
    """

    config: CTRConfig
    num_ids: int

    def setup(self) -> None:
        """The published init, N(0, init_std²), for the table; the interaction model brings its own."""
        self.embedding = nn.Embed(
            self.num_ids, self.config.dim, embedding_init=nn.initializers.normal(self.config.init_std)
        )
        self.interaction = interactions.get(self.config.tower)(self.config)

    def __call__(self, ids: Int[Array, "B F"], *, train: bool) -> Float[Array, "B C"]:
        """Computes h_c."""
        return self.interaction(self.embedding(ids), train=train)


class CTRLogit(nn.Module):
    """logit_c = Σ_f w[x_f] + Linear(h_c). Pretraining does not train it, so finetuning starts it fresh.

    Attributes:
      num_ids: Rows of the table of first-order weights.
    """

    num_ids: int

    @nn.compact
    def __call__(self, ids: Int[Array, "B F"], representation: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The click logit."""
        first_order = nn.Embed(self.num_ids, 1, embedding_init=nn.initializers.normal(1e-4), name="linear")(ids)
        return jnp.sum(first_order[..., 0], axis=-1) + nn.Dense(1, name="dense")(representation)[:, 0]
