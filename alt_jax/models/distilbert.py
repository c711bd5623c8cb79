"""DistilBERT encoder in Flax Linen: half of BERT's layers, without token types (Sanh et al. 2019, arXiv 1910.01108)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from alt_jax.models.dropout import Dropout
from alt_jax.models.encoder import ACTIVATIONS, EncoderConfig, TextTower, attend, layer_norm

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


def _dense(config: DistilBertConfig, features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(config.initializer_range), name=name)


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
    def __call__(self, tokens: Int[Array, "B L"], *, train: bool = False) -> Float[Array, "B L D"]:
        """Embeds the tokens; see `TextTower`."""
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        at = _sinusoids if config.sinusoidal_pos_embds else normal
        words = nn.Embed(config.vocab_size, config.hidden_size, embedding_init=normal, name="word_embeddings")
        positions = nn.Embed(
            config.max_position_embeddings, config.hidden_size, embedding_init=at, name="position_embeddings"
        )
        states = words(tokens) + positions(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None])
        states = layer_norm(_EPSILON, "LayerNorm")(states).astype(self.dtype)
        return Dropout(config.dropout, name="dropout")(states, train=train)


class Attention(nn.Module):
    """Multi-head attention over the real tokens of each row, with its output projection."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, wanted: int, train: bool = False
    ) -> Float[Array, "B W D"]:
        """Mixes the states of each row for its first tokens; padding is never attended to."""
        config = self.config
        heads = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        query, key, value = (
            _dense(config, config.hidden_size, self.dtype, name)(x).reshape((*x.shape[:2], *heads))
            for name, x in zip(("q_lin", "k_lin", "v_lin"), (states[:, :wanted], states, states), strict=True)
        )
        rate = config.attention_dropout
        dropout = Dropout(rate, name="dropout") if train and rate > 0 else None
        mixed = attend(query, key, value, mask[:, None, None, :], dropout)
        return _dense(config, config.hidden_size, self.dtype, "out_lin")(mixed)


class FeedForward(nn.Module):
    """Wide layer, narrow layer, dropout."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "B L D"], *, train: bool = False) -> Float[Array, "B L D"]:
        """dropout(W₂ act(W₁ states))."""
        config = self.config
        wide = ACTIVATIONS[config.hidden_act](_dense(config, config.intermediate_size, self.dtype, "lin1")(states))
        narrow = _dense(config, config.hidden_size, self.dtype, "lin2")(wide)
        return Dropout(config.dropout, name="dropout")(narrow, train=train)


class Layer(nn.Module):
    """One transformer layer, layer norms behind the residuals."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, wanted: int, train: bool = False
    ) -> Float[Array, "B W D"]:
        """Attention, then the feed-forward half. Unlike BERT's, attention's output is not dropped from."""
        mixed = Attention(self.config, self.dtype, name="attention")(states, mask, wanted=wanted, train=train)
        states = layer_norm(_EPSILON, "sa_layer_norm")(mixed + states[:, :wanted]).astype(self.dtype)
        wide = FeedForward(self.config, self.dtype, name="ffn")(states, train=train)
        return layer_norm(_EPSILON, "output_layer_norm")(wide + states).astype(self.dtype)


class Layers(nn.Module):
    """The stack; a module of its own only for the name `layer` in the parameter tree."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, wanted: int, train: bool = False
    ) -> Float[Array, "B W D"]:
        """All layers in order."""
        last = self.config.num_hidden_layers - 1
        for number in range(last + 1):
            layer = Layer(self.config, self.dtype, name=str(number))
            states = layer(states, mask, wanted=wanted if number == last else states.shape[1], train=train)
        return states


class Transformer(nn.Module):
    """Holds the stack under the name `transformer`."""

    config: DistilBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, wanted: int, train: bool = False
    ) -> Float[Array, "B W D"]:
        """All layers in order."""
        return Layers(self.config, self.dtype, name="layer")(states, mask, wanted=wanted, train=train)


class DistilBert(TextTower):
    """The encoder of DistilBERT."""

    config: DistilBertConfig

    @nn.compact
    def encode(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"], *, train: bool, wanted: int
    ) -> Float[Array, "B W D"]:
        """Embeds, then mixes; see `TextTower`."""
        states = Embeddings(self.config, self.dtype, name="embeddings")(tokens, train=train)
        return Transformer(self.config, self.dtype, name="transformer")(states, mask, wanted=wanted, train=train)
