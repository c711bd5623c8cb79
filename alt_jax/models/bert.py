"""BERT, RoBERTa and ELECTRA encoders in Flax Linen: tokens in, one state per token out.

BERT: Devlin et al. 2019 (arXiv 1810.04805). RoBERTa: Liu et al. 2019 (arXiv 1907.11692). ELECTRA: Clark et al. 2020
(arXiv 2003.10555), whose encoder is BERT's with embeddings of a width of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from alt_jax.errors import InputError
from alt_jax.models.dropout import Dropout
from alt_jax.models.encoder import ACTIVATIONS, EncoderConfig, Layers, TextTower, attend, layer_norm, rowwise
from alt_jax.models.packing import Layout


@dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """BERT's `config.json`."""

    model_type: ClassVar[str] = "bert"
    architecture: ClassVar[str] = "BertModel"
    least: ClassVar[Mapping[str, int]] = {**EncoderConfig.least, "type_vocab_size": 1}
    rates: ClassVar[tuple[str, ...]] = (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
        "layer_norm_eps",
    )
    positive: ClassVar[tuple[str, ...]] = ("layer_norm_eps",)
    prefixes: ClassVar[tuple[str, ...]] = ("bert.", "roberta.")
    heads: ClassVar[tuple[str, ...]] = ("pooler", "cls", "lm_head", "classifier", "qa_outputs")

    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def translate(cls, values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
        """Refuses relative positions."""
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise InputError(
                f"{source}: position_embedding_type {values['position_embedding_type']!r} is not supported; "
                "only absolute positions are; use another model."
            )
        return values

    @property
    def embedding_width(self) -> int:
        """Columns of the embedding tables."""
        return self.hidden_size


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """RoBERTa's `config.json`."""

    model_type: ClassVar[str] = "roberta"
    architecture: ClassVar[str] = "RobertaModel"

    pad_token_id: int = 1

    @property
    def max_length(self) -> int:
        """The longest prompt, in tokens. Positions start behind the padding id, which costs some."""
        return self.max_position_embeddings - self.pad_token_id - 1


@dataclass(frozen=True, kw_only=True)
class ElectraConfig(BertConfig):
    """ELECTRA's `config.json`, that of the discriminator or of the generator."""

    model_type: ClassVar[str] = "electra"
    architecture: ClassVar[str] = "ElectraModel"
    least: ClassVar[Mapping[str, int]] = {**BertConfig.least, "embedding_size": 1}
    prefixes: ClassVar[tuple[str, ...]] = ("electra.",)
    heads: ClassVar[tuple[str, ...]] = (
        "discriminator_predictions",
        "generator_predictions",
        "generator_lm_head",
        "classifier",
        "qa_outputs",
        "sequence_summary",
    )

    embedding_size: int

    @property
    def embedding_width(self) -> int:
        """Columns of the embedding tables."""
        return self.embedding_size


def _dense(config: BertConfig, features: int, dtype: DTypeLike, name: str) -> Callable[[Array], Array]:
    return rowwise(
        nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(config.initializer_range), name=name)
    )


class Embeddings(nn.Module):
    """Word + position + token type, then layer norm and dropout; E columns, which only ELECTRA has other than D."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], layout: Layout, *, train: bool = False) -> Float[Array, "G T E"]:
        """Embeds the tokens; see `TextTower`."""
        config = self.config

        def table(rows: int, name: str) -> Callable[[Array], Array]:
            init = nn.initializers.normal(config.initializer_range)
            return rowwise(nn.Embed(rows, config.embedding_width, embedding_init=init, name=name))

        words = table(config.vocab_size, "word_embeddings")(layout.pack_ids(tokens))
        positions = table(config.max_position_embeddings, "position_embeddings")(
            layout.pack_ids(self._positions(layout))
        )
        # All our tokens are of one sentence, so the type is 0 throughout; the table is kept whole for the round trip.
        types = table(config.type_vocab_size, "token_type_embeddings")(jnp.zeros((1, 1), jnp.int32))
        states = layer_norm(config.layer_norm_eps, "LayerNorm")(words + positions + types).astype(self.dtype)
        return Dropout(config.hidden_dropout_prob, name="dropout")(states, train=train, number=layout.number)

    def _positions(self, layout: Layout) -> Int[Array, "b L"]:
        """BERT counts columns. RoBERTa counts real tokens from `pad_token_id + 1`; padding stands at `pad_token_id`."""
        if not isinstance(self.config, RobertaConfig):
            return layout.position
        real = layout.mask.astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.config.pad_token_id


class SelfAttention(nn.Module):
    """Multi-head attention over the real tokens of each row, without the output projection."""

    config: BertConfig
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
            for name, x, layout in (("query", asked, queries), ("key", states, keys), ("value", states, keys))
        )
        query, key, value = (x.reshape((*x.shape[:2], *heads)) for x in (query, key, value))
        rate = config.attention_probs_dropout_prob
        dropout = Dropout(rate, name="dropout") if train and rate > 0 else None
        return queries.pack(attend(query, key, value, keys.mask[:, None, None, :], dropout))


class ResidualOutput(nn.Module):
    """Projection, dropout, the residual, layer norm: the end of both halves of a layer."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "G T H"], residual: Float[Array, "G T D"], layout: Layout, *, train: bool = False
    ) -> Float[Array, "G T D"]:
        """LayerNorm(residual + dropout(W hidden))."""
        hidden = _dense(self.config, self.config.hidden_size, self.dtype, "dense")(hidden)
        dropout = Dropout(self.config.hidden_dropout_prob, name="dropout")
        hidden = dropout(hidden, train=train, number=layout.number)
        return layer_norm(self.config.layer_norm_eps, "LayerNorm")(hidden + residual).astype(self.dtype)


class Attention(nn.Module):
    """Self-attention and its residual output."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """The first half of a layer."""
        mixed = SelfAttention(self.config, self.dtype, name="self")(states, keys, queries, train=train)
        output = ResidualOutput(self.config, self.dtype, name="output")
        return output(mixed, queries.pick(states), queries, train=train)


class Intermediate(nn.Module):
    """The wide layer of the feed-forward half."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "G T D"]) -> Float[Array, "G T H"]:
        """act(W states)."""
        wide = _dense(self.config, self.config.intermediate_size, self.dtype, "dense")(states)
        return ACTIVATIONS[self.config.hidden_act](wide)


class Layer(nn.Module):
    """One transformer layer, layer norms behind the residuals as in the original."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """Attention, then the feed-forward half."""
        states = Attention(self.config, self.dtype, name="attention")(states, keys, queries, train=train)
        wide = Intermediate(self.config, self.dtype, name="intermediate")(states)
        return ResidualOutput(self.config, self.dtype, name="output")(wide, states, queries, train=train)


class Encoder(nn.Module):
    """Holds the stack under the name `encoder`."""

    config: BertConfig
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


class Bert(TextTower):
    """The encoder of BERT, RoBERTa and ELECTRA."""

    config: BertConfig

    @nn.compact
    def encode(self, tokens: Int[Array, "B L"], keys: Layout, queries: Layout, *, train: bool) -> Float[Array, "G U D"]:
        """Embeds, then mixes; see `TextTower`."""
        config = self.config
        states = Embeddings(config, self.dtype, name="embeddings")(tokens, keys, train=train)
        if config.embedding_width != config.hidden_size:
            states = _dense(config, config.hidden_size, self.dtype, "embeddings_project")(states)
        return Encoder(self.config, self.dtype, self.remat, name="encoder")(states, keys, queries, train=train)
