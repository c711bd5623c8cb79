"""The CTR tower: one embedding table for all fields, an interaction model, and the logit on top."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alt_jax.config import CTRConfig
from alt_jax.models import interactions
from alt_jax.models.table import Table
from alt_jax.schema import PAD_ID, Field


class TargetAttention(nn.Module):
    """DIN's activation unit (Zhou et al., KDD 2018, arXiv 1706.06978, eq. 3): v = Σ_j a(e_j, q) e_j.

    a is a small network on concat(e_j, q, e_j − q, e_j ⊙ q), q the embedding of the row's item; its outputs are not
    normalised, so that v also tells how strong the interest is.

    Attributes:
      hidden: Width of the network.
    """

    hidden: int = 36

    @nn.compact
    def __call__(
        self, items: Float[Array, "B S D"], real: Float[Array, "B S"], query: Float[Array, "B D"]
    ) -> Float[Array, "B D"]:
        """Pools a history with respect to an item."""
        q = jnp.broadcast_to(query[:, None, :], items.shape)
        hidden = nn.relu(nn.Dense(self.hidden, name="hidden")(jnp.concatenate([items, q, items - q, items * q], -1)))
        weights = nn.Dense(1, name="weight")(hidden)[..., 0] * real
        return jnp.einsum("bs,bsd->bd", weights, items)


def mean_pool(
    slots: Float[Array, "B S D"], ids: Int[Array, "B S"], fields: tuple[Field, ...]
) -> list[Float[Array, "B D"]]:
    """One vector per tabular field: its own, or the mean over what its list holds (0 for an empty one)."""
    pooled, first = [], 0
    for field in fields:
        part, real = slots[:, first : first + field.slots], (ids[:, first : first + field.slots] != PAD_ID)
        first += field.slots
        if field.kind in ("multi", "sequence"):
            count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
            pooled.append(jnp.sum(part * real[..., None], axis=1) / count)
        elif field.kind != "text":
            pooled.append(part[:, 0])
    return pooled


class CTRTower(nn.Module):
    """Feature ids to representation h_c.

    Attributes:
      config: Sizes, the name of the interaction model, and its options.
      num_ids: Rows of the shared embedding table (`Schema.num_ids`).
      fields: What the columns of ids belong to; empty: each column is a category of its own.
    """

    config: CTRConfig
    num_ids: int
    fields: tuple[Field, ...] = ()

    def setup(self) -> None:
        """The published init, N(0, init_std²), for the table; the interaction model brings its own."""
        self.interaction = interactions.build(self.config)
        self.embedding = Table(self.num_ids, self.interaction.embedding_width(), self.config.init_std)
        if self.config.history == "din":
            self.attention = TargetAttention()

    def __call__(
        self, ids: Int[Array, "B S"], numbers: Float[Array, "B M"] | None = None, *, train: bool
    ) -> Float[Array, "B C"]:
        """Computes h_c.

        Args:
          ids: Feature ids of every slot; the padding id where a list is shorter.
          numbers: Standardised numbers of the numeric fields, for towers that take them beside the bins.
          train: Whether dropout is on.
        """
        inputs: tuple[Array, ...] = (self.embed(ids),)
        if numbers is not None and numbers.shape[1] and self.interaction.takes_numbers:
            inputs += (numbers,)
        tower: Callable[..., Array] = self.interaction
        return tower(*inputs, train=train)

    def embed(self, ids: Int[Array, "B S"]) -> Float[Array, "B F D"]:
        """One vector per tabular field."""
        slots = self.embedding(ids)
        if not self.fields:
            return slots
        pooled = mean_pool(slots, ids, self.fields)
        if self.config.history == "din":
            tabular = [field for field in self.fields if field.kind != "text"]
            item = {field.offset: f for f, field in enumerate(tabular) if field.kind == "category"}
            first = dict(zip(self.fields, _first_slots(self.fields), strict=True))
            for f, field in enumerate(tabular):
                if field.kind == "sequence":
                    own = slice(first[field], first[field] + field.slots)
                    real = (ids[:, own] != PAD_ID).astype(slots.dtype)
                    pooled[f] = self.attention(slots[:, own], real, pooled[item[field.offset]])
        return jnp.stack(pooled, axis=1)


def _first_slots(fields: tuple[Field, ...]) -> list[int]:
    return [sum(field.slots for field in fields[:f]) for f in range(len(fields))]


class CTRLogit(nn.Module):
    """logit_c = readout(h_c), plus Σ_f w[x_f] where the tower has a linear part.

    Pretraining does not train it, so finetuning starts it fresh.

    Attributes:
      config: Names the interaction model, which knows its readout.
      num_ids: Rows of the table of first-order weights.
      fields: As of the tower; a list contributes the mean of its weights.
    """

    config: CTRConfig
    num_ids: int
    fields: tuple[Field, ...] = ()

    @nn.compact
    def __call__(self, ids: Int[Array, "B S"], representation: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The click logit."""
        interaction = interactions.build(self.config)
        logit = interaction.readout()(representation)
        if interaction.first_order:
            weights = Table(self.num_ids, 1, 1e-4, name="linear")(ids)
            if self.fields:
                weights = jnp.stack(mean_pool(weights, ids, self.fields), axis=1)
            logit += jnp.sum(weights[..., 0], axis=-1)
        return logit
