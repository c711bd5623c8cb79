"""DistilBERT encoder in Flax Linen: half of BERT's layers, without token types (Sanh et al. 2019, arXiv 1910.01108)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from alt_jax.models.dropout import Dropout
from alt_jax.models.encoder import ACTIVATIONS, EncoderConfig, Layers, TextTower, attend, layer_norm, rowwise
from alt_jax.models.packing import Layout

_EPSILON = 1e-12  # fixed in transformers


@dataclass(frozen=True, kw_only=True)
class DistilBertConfig(EncoderConfig):
    """DistilBERT's `config.json`, whose sizes have names of their own."""

    model_type: ClassVar[str] = "distilbert"
    architecture: ClassVar[str] = "DistilBertModel"
    keys: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    rates: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout", "initializer_range")
    prefixes: ClassVar[tuple[str, ...]] = ("distilbert.",)
    heads: ClassVar[tuple[str, ...]] = (
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
        "pre_classifier",
        "classifier",
        "qa_outputs",
    )

    dropout: float = 0.1
    attention_dropout: float = 0.1
    sinusoidal_pos_embds: bool = False


def _dense(config: DistilBertConfig, features: int, dtype: DTypeLike, name: str) -> Callable[[Array], Array]:
    return rowwise(
        nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(config.initializer_range), name=name)
    )


def _sinusoids(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "P D"]:
    """What `sinusoidal_pos_embds` starts the table of positions from: sines in even columns, cosines in odd ones."""
    column = np.arange(shape[1])
    angle = np.arange(shape[0])[:, None] / np.power(10000, 2 * (column // 2) / shape[1])[None]
    return jnp.asarray(np.where(column[None] % 2 == 0, np.sin(angle), np.cos(angle)), dtype)


class Embeddings(nn.Module):
    """Word + position, then layer norm and dropout."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], layout: Layout, *, train: bool = False) -> Float[Array, "G T D"]:
        """Embeds the tokens; see `TextTower`."""
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        at = _sinusoids if config.sinusoidal_pos_embds else normal
        words = rowwise(nn.Embed(config.vocab_size, config.hidden_size, embedding_init=normal, name="word_embeddings"))
        positions = rowwise(
            nn.Embed(config.max_position_embeddings, config.hidden_size, embedding_init=at, name="position_embeddings")
        )
        states = words(layout.pack_ids(tokens)) + positions(layout.pack_ids(layout.position))
        states = layer_norm(_EPSILON, "LayerNorm")(states).astype(self.dtype)
        return Dropout(config.dropout, name="dropout")(states, train=train, number=layout.number)


class Attention(nn.Module):
    """Multi-head attention over the real tokens of each row, with its output projection."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """Mixes the states of each row for `queries`; padding is never attended to."""
        config = self.config
        heads = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        asked = queries.pick(states)
        query, key, value = (
            layout.unpack(_dense(config, config.hidden_size, self.dtype, name)(x))
            for name, x, layout in (("q_lin", asked, queries), ("k_lin", states, keys), ("v_lin", states, keys))
        )
        query, key, value = (x.reshape((*x.shape[:2], *heads)) for x in (query, key, value))
        rate = config.attention_dropout
        dropout = Dropout(rate, name="dropout") if train and rate > 0 else None
        mixed = queries.pack(attend(query, key, value, keys.mask[:, None, None, :], dropout))
        return _dense(config, config.hidden_size, self.dtype, "out_lin")(mixed)


class FeedForward(nn.Module):
    """Wide layer, narrow layer, dropout."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "G T D"], layout: Layout, *, train: bool = False) -> Float[Array, "G T D"]:
        """dropout(W₂ act(W₁ states))."""
        config = self.config
        wide = ACTIVATIONS[config.hidden_act](_dense(config, config.intermediate_size, self.dtype, "lin1")(states))
        narrow = _dense(config, config.hidden_size, self.dtype, "lin2")(wide)
        return Dropout(config.dropout, name="dropout")(narrow, train=train, number=layout.number)


class Layer(nn.Module):
    """One transformer layer, layer norms behind the residuals."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """Attention, then the feed-forward half. Unlike BERT's, attention's output is not dropped from."""
        mixed = Attention(self.config, self.dtype, name="attention")(states, keys, queries, train=train)
        states = layer_norm(_EPSILON, "sa_layer_norm")(mixed + queries.pick(states)).astype(self.dtype)
        wide = FeedForward(self.config, self.dtype, name="ffn")(states, queries, train=train)
        return layer_norm(_EPSILON, "output_layer_norm")(wide + states).astype(self.dtype)


class Transformer(nn.Module):
    """Holds the stack under the name `transformer`."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """All layers in order."""
        layers = Layers(
            lambda number: Layer(self.config, self.dtype, name=str(number)),
            self.config.num_hidden_layers,
            self.remat,
            name="layer",
        )
        return layers(states, keys, queries, train=train)


class DistilBert(TextTower):
    """The encoder of DistilBERT."""

    config: DistilBertConfig

    @nn.compact
    def encode(self, tokens: Int[Array, "B L"], keys: Layout, queries: Layout, *, train: bool) -> Float[Array, "G U D"]:
        """Embeds, then mixes; see `TextTower`."""
        states = Embeddings(self.config, self.dtype, name="embeddings")(tokens, keys, train=train)
        return Transformer(self.config, self.dtype, self.remat, name="transformer")(states, keys, queries, train=train)
