"""BERT and RoBERTa encoders in Flax Linen: tokens in, one state per token out.

Embeddings and encoder only: no pooler and no language-model head, which belong to whoever uses the states. The
parameter tree carries the names of a Hugging Face checkpoint (`encoder/layer/0/attention/self/query/kernel`), so that
import and export (`alt_jax.models.huggingface`) are a renaming and nothing else.

BERT: Devlin et al. 2019 (arXiv 1810.04805). RoBERTa: Liu et al. 2019 (arXiv 1907.11692).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from alt_jax.errors import InputError

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
# The architecture's name in a Hugging Face config, and the padding id that transformers takes when none is written.
ARCHITECTURES = {"bert": "BertModel", "roberta": "RobertaModel"}
_PAD_TOKEN_ID = {"bert": 0, "roberta": 1}
_WHOLE_NUMBERS = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 1,
    "type_vocab_size": 1,
    "pad_token_id": 0,
}
_REQUIRED = frozenset(_WHOLE_NUMBERS) - {"type_vocab_size", "pad_token_id"}
_KINDS: dict[Any, str] = {str: "a name", int: "a whole number", float: "a number"}
_FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")


@dataclass(frozen=True)
class EncoderConfig:
    """The part of a Hugging Face `config.json` that decides what the encoder computes; the names are theirs.

    Raises:
        InputError: A value that no encoder can have (a width that the heads do not divide, a negative count, ...).
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise InputError(f"model_type is {self.model_type!r}; use {' or '.join(ARCHITECTURES)}.")
        if self.hidden_act not in _ACTIVATIONS:
            raise InputError(f"hidden_act {self.hidden_act!r} is not supported; known are {', '.join(_ACTIVATIONS)}.")
        for name, least in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} is {value}; it must be at least {least}.")
        for name in _FRACTIONS:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"{name} is {value}; it must be at least 0 and under 1.")
        if self.layer_norm_eps == 0:
            raise InputError("layer_norm_eps is 0; it must be above 0, such as 1e-12.")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}."
            )
        if self.pad_token_id >= self.vocab_size:
            raise InputError(f"pad_token_id {self.pad_token_id} is outside vocab_size {self.vocab_size}.")
        if self.max_length < 1:
            raise InputError(f"max_position_embeddings {self.max_position_embeddings} leaves no position for a token.")

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], source: str) -> "EncoderConfig":
        """Reads the content of a `config.json`.

        Sizes must be there. For dropout rates, epsilon and the like, a missing key means what it means to
        transformers. Keys that do not touch the encoder are ignored.

        Args:
            values: The parsed JSON object.
            source: What to call it in messages, such as the file's path.

        Returns:
            The configuration.

        Raises:
            InputError: A key is missing or asks for something this encoder does not do.
        """
        model_type = values.get("model_type")
        if model_type not in list(ARCHITECTURES):  # a list, since JSON may hold what cannot be hashed
            raise InputError(
                f"{source}: model_type {model_type!r} is not supported; use a checkpoint of type "
                f"{' or '.join(ARCHITECTURES)}."
            )
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise InputError(
                f"{source}: position_embedding_type {values['position_embedding_type']!r} is not supported; "
                "only absolute positions are."
            )
        for flag in ("is_decoder", "add_cross_attention"):
            if values.get(flag):
                raise InputError(f"{source}: {flag} is true, but the text tower is an encoder; use an encoder.")
        fields: dict[str, Any] = {"pad_token_id": _PAD_TOKEN_ID[model_type]}
        for name, field in cls.__dataclass_fields__.items():
            if name in values:
                value = values[name]
                # JSON writes a rate of 0.0 as 0 at times; and True is no number here, though Python has it as an int.
                value = float(value) if field.type is float and type(value) is int else value
                if type(value) is not field.type:
                    raise InputError(f"{source}: {name} is {value!r}; it must be {_KINDS[field.type]}.")
                fields[name] = value
            elif name in _REQUIRED:
                raise InputError(f"{source}: the key {name!r} is missing; is this the config.json of a BERT model?")
        try:
            return cls(**fields)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers reads as a BertConfig or RobertaConfig."""
        return {"architectures": [ARCHITECTURES[self.model_type]]} | {
            name: getattr(self, name) for name in self.__dataclass_fields__
        }

    @property
    def max_length(self) -> int:
        """The longest prompt, in tokens. RoBERTa's positions start behind the padding id, which costs it some."""
        first = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - first


def _dense(config: EncoderConfig, features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(config.initializer_range), name=name)


def _layer_norm(config: EncoderConfig) -> nn.LayerNorm:
    # float32 whatever the tower's dtype; the two-pass variance, since E[x²] - E[x]² cancels and goldens see it.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name="LayerNorm")


class Embeddings(nn.Module):
    """Word + position + token type, then layer norm and dropout."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """Embeds the tokens; see `TextTower`."""
        config = self.config

        def table(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(config.initializer_range)
            return nn.Embed(rows, config.hidden_size, embedding_init=init, name=name)

        words = table(config.vocab_size, "word_embeddings")(tokens)
        positions = table(config.max_position_embeddings, "position_embeddings")(self._positions(mask))
        # All our tokens are of one sentence, so the type is 0 throughout; the table is kept whole for the round trip.
        types = table(config.type_vocab_size, "token_type_embeddings")(jnp.zeros((1, 1), jnp.int32))
        states = _layer_norm(config)(words + positions + types).astype(self.dtype)
        return nn.Dropout(config.hidden_dropout_prob, name="dropout")(states, deterministic=not train)

    def _positions(self, mask: Bool[Array, "B L"]) -> Int[Array, "b L"]:
        """BERT counts columns. RoBERTa counts real tokens from `pad_token_id + 1`; padding stands at `pad_token_id`."""
        if self.config.model_type == "bert":
            return jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
        real = mask.astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.config.pad_token_id


class SelfAttention(nn.Module):
    """Multi-head attention over the real tokens of each row, without the output projection."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """Mixes the states of each row; padding is never attended to."""
        config = self.config
        heads = (*states.shape[:2], config.num_attention_heads, config.hidden_size // config.num_attention_heads)
        query, key, value = (
            _dense(config, config.hidden_size, self.dtype, name)(states).reshape(heads)
            for name in ("query", "key", "value")
        )
        keys = mask[:, None, None, :]
        if train and config.attention_probs_dropout_prob > 0.0:
            # The fused kernels cannot drop single probabilities, so this one case is written out.
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
            scores = jnp.where(keys, scores * heads[-1] ** -0.5, jnp.finfo(jnp.float32).min)
            weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
            weights = nn.Dropout(config.attention_probs_dropout_prob, name="dropout")(weights, deterministic=False)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        else:
            mixed = jax.nn.dot_product_attention(query, key, value, mask=keys)
        return mixed.reshape(states.shape)


class ResidualOutput(nn.Module):
    """Projection, dropout, the residual, layer norm: the end of both halves of a layer."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B L H"], residual: Float[Array, "B L D"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """LayerNorm(residual + dropout(W hidden))."""
        hidden = _dense(self.config, self.config.hidden_size, self.dtype, "dense")(hidden)
        hidden = nn.Dropout(self.config.hidden_dropout_prob, name="dropout")(hidden, deterministic=not train)
        return _layer_norm(self.config)(hidden + residual).astype(self.dtype)


class Attention(nn.Module):
    """Self-attention and its residual output."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """The first half of a layer."""
        mixed = SelfAttention(self.config, self.dtype, name="self")(states, mask, train=train)
        return ResidualOutput(self.config, self.dtype, name="output")(mixed, states, train=train)


class Intermediate(nn.Module):
    """The wide layer of the feed-forward half."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "B L D"]) -> Float[Array, "B L H"]:
        """act(W states)."""
        wide = _dense(self.config, self.config.intermediate_size, self.dtype, "dense")(states)
        return _ACTIVATIONS[self.config.hidden_act](wide)


class Layer(nn.Module):
    """One transformer layer, layer norms behind the residuals as in the original."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """Attention, then the feed-forward half."""
        states = Attention(self.config, self.dtype, name="attention")(states, mask, train=train)
        wide = Intermediate(self.config, self.dtype, name="intermediate")(states)
        return ResidualOutput(self.config, self.dtype, name="output")(wide, states, train=train)


class Layers(nn.Module):
    """The stack; a module of its own only for the name `layer` in the parameter tree."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """All layers in order."""
        for number in range(self.config.num_hidden_layers):
            states = Layer(self.config, self.dtype, name=str(number))(states, mask, train=train)
        return states


class Encoder(nn.Module):
    """Holds the stack under the name `encoder`."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """All layers in order."""
        return Layers(self.config, self.dtype, name="layer")(states, mask, train=train)


class TextTower(nn.Module):
    """The text encoder: token ids to contextual token states.

    Attributes:
        config: Sizes, dropout rates and the family (BERT or RoBERTa).
        dtype: The type of activations and matrix products. Parameters, softmax and layer norms stay float32.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B L D"]:
        """Encodes a batch of prompts.

        Args:
            tokens: Token ids. What stands in padding does not matter, as long as it is a valid id.
            mask: True for real tokens, False for padding. RoBERTa's positions are counted from it.
            train: Whether dropout is on; if so, `apply` needs an rng named "dropout".

        Returns:
            The last layer's states in `dtype`; those of padding are finite and mean nothing.

        Raises:
            InputError: The prompts are longer than the model has positions for.
        """
        if tokens.shape[1] > self.config.max_length:
            raise InputError(
                f"A prompt of {tokens.shape[1]} tokens does not fit the text tower, which has positions for "
                f"{self.config.max_length}; use fewer fields, shorter values or a model with more positions."
            )
        states = Embeddings(self.config, self.dtype, name="embeddings")(tokens, mask, train=train)
        return Encoder(self.config, self.dtype, name="encoder")(states, mask, train=train)
