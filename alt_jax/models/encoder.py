"""What all families of text towers share: the configuration's reading and checking, the interface, attention.

A family (`alt_jax.models.bert`, …) is a subclass of `EncoderConfig` and one of `TextTower`; `alt_jax.models.text` lists
them. Its parameter tree carries the names of a Hugging Face checkpoint (`encoder/layer/0/attention/self/query/kernel`),
so that import and export (`alt_jax.models.huggingface`) are a renaming and nothing else.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from alt_jax.errors import InputError, shortened
from alt_jax.models.dropout import Dropout
from alt_jax.models.packing import Layout, Wanted, lay_out, select
from alt_jax.sharding import constrain_rows, shards

# The backward pass computes the inside of a GELU, and of a layer norm, again from its input. To write it down and read
# it back would cost three tenths of a tower's memory, and on a CPU time (docs/performance.md).
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": jax.checkpoint(functools.partial(jax.nn.gelu, approximate=False)),
    "gelu_new": jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True)),
    "gelu_pytorch_tanh": jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True)),
    "relu": jax.nn.relu,
}
_MOST_LAYERS, _MOST = 1000, 2**31 - 1
_EXACT = 2**53  # whole numbers up to here are floats as well
_KINDS: dict[Any, str] = {
    str: "a name",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple[str, ...]: "a list of names",
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The part of a Hugging Face `config.json` that decides what an encoder computes; the names are theirs.

    Only subclasses, one for each `model_type`, are made. What a family names otherwise in the file is in `keys`; a
    field without a default must be in the file, any other means there what it means to transformers when it is missing.

    Attributes of the class:
        model_type, architecture: The family's name and its encoder's in a Hugging Face config.
        keys: The file's key of each field that has another name there.
        least: The least value of each field that is a whole number.
        rates, positive: Fields that must be at least 0 and under 1, and those that must be above 0.
        prefixes: What a checkpoint with heads puts in front of the encoder's tensors.
        heads: First words of the names of tensors that belong to heads, which the tower does not have.

    Raises:
        InputError: A value that no encoder can have (a width that the heads do not divide, a negative count, …).
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    keys: ClassVar[Mapping[str, str]] = {}
    least: ClassVar[Mapping[str, int]] = {
        "vocab_size": 1,
        "hidden_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 1,
        "max_position_embeddings": 1,
        "pad_token_id": 0,
    }
    rates: ClassVar[tuple[str, ...]] = ("initializer_range",)
    positive: ClassVar[tuple[str, ...]] = ()
    prefixes: ClassVar[tuple[str, ...]]
    heads: ClassVar[tuple[str, ...]]

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"{self._key('hidden_act')} {shortened(self.hidden_act)!r} is not supported; known are "
                f"{', '.join(ACTIVATIONS)}."
            )
        for name, least in self.least.items():
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{self._key(name)} is {value}; it must be at least {least}.")
            most = _MOST_LAYERS if name == "num_hidden_layers" else _MOST
            if value > most:  # found before anything of that size is made
                raise InputError(f"{self._key(name)} is {shortened(str(value))}; it can be {most} at most.")
        for name in self.rates:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"{self._key(name)} is {value}; it must be at least 0 and under 1.")
        for name in self.positive:
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"{self._key(name)} is {value}; it must be above 0.")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{self._key('hidden_size')} {self.hidden_size} is not divisible by "
                f"{self._key('num_attention_heads')} {self.num_attention_heads}."
            )
        if self.pad_token_id >= self.vocab_size:
            raise InputError(f"pad_token_id {self.pad_token_id} is outside vocab_size {self.vocab_size}.")
        if self.max_length < 1:
            raise InputError(f"max_position_embeddings {self.max_position_embeddings} leaves no position for a token.")

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], source: str) -> "EncoderConfig":
        """Reads the content of a `config.json` of this family; `alt_jax.models.text.read_config` finds the family.

        Keys that do not touch the encoder are ignored.

        Args:
            values: The parsed JSON object.
            source: What to call it in messages, such as the file's path.

        Returns:
            The configuration.

        Raises:
            InputError: A key is missing or asks for something this encoder does not do.
        """
        for flag in ("is_decoder", "add_cross_attention"):
            if values.get(flag):
                raise InputError(f"{source}: {flag} is true, but the text tower is an encoder; use an encoder.")
        values, found = cls.translate(values, source), dict[str, Any]()
        for field in dataclasses.fields(cls):
            key = cls._key(field.name)
            if key in values:
                value = values[key]
                # JSON writes a rate of 0.0 as 0 at times; and True is no number here, though Python has it as an int.
                if field.type is float and type(value) is int and abs(value) <= _EXACT:
                    value = float(value)
                if type(value) is not (typing.get_origin(field.type) or field.type):
                    raise InputError(f"{source}: {key} is {shortened(repr(value))}; it must be {_KINDS[field.type]}.")
                found[field.name] = value
            elif field.default is dataclasses.MISSING:
                raise InputError(f"{source}: the key {key!r} is missing; is this a config.json of {cls.model_type}?")
        try:
            return cls(**found)
        except InputError as error:
            raise InputError(f"{source}: {str(error).rstrip('.')}; mend that file, or use another model.") from None

    @classmethod
    def translate(cls, values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
        """Where a family's file does not say one field by one key: the same content so that it does.

        Raises:
            InputError: The content asks for something this encoder does not do.
        """
        return values

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers reads as a configuration of this family."""
        return {"model_type": self.model_type, "architectures": [self.architecture]} | {
            self._key(field.name): getattr(self, field.name) for field in dataclasses.fields(self)
        }

    @property
    def max_length(self) -> int:
        """The longest prompt, in tokens."""
        return self.max_position_embeddings

    @classmethod
    def _key(cls, name: str) -> str:
        return cls.keys.get(name, name)


class TextTower(nn.Module):
    """A text encoder: token ids to contextual token states. Without pooler and language-model head.

    Attributes:
        config: Sizes and dropout rates.
        dtype: The type of activations and matrix products. Parameters, softmax and layer norms stay float32.
        remat: Whether the backward pass computes each layer again, which keeps only what lies between the layers.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        train: bool = False,
        wanted: Wanted | None = None,
        room: int | None = None,
    ) -> Float[Array, "B W D"]:
        """Encodes a batch of prompts.

        Args:
            tokens: Token ids. What stands in padding does not matter, as long as it is a valid id.
            mask: True for real tokens, False for padding.
            train: Whether dropout is on; if so, `apply` needs an rng named "dropout".
            wanted: Tokens whose states are asked for; None: all. The last layer computes no others, so that a tower of
                which only [CLS] is read costs almost a layer less.
            room: Real tokens that one device's rows have together at most, to be computed without padding (see
                `alt_jax.models.packing`); None: padding is computed too. What is beyond is taken for padding.

        Returns:
            The last layer's states in `dtype`, those of `wanted` at the front of its rows (W = `wanted.slots`). What
            stands in other slots and in padding is finite and means nothing.

        Raises:
            InputError: The prompts are longer than the model has positions for.
        """
        if tokens.shape[1] > self.config.max_length:
            raise InputError(
                f"A prompt of {tokens.shape[1]} tokens does not fit the text tower, which has positions for "
                f"{self.config.max_length}; use fewer fields, shorter values or a model with more positions."
            )
        keys = lay_out(mask, 1 if room is None else shards(len(mask)), room)  # an exported batch has no len
        queries = keys if wanted is None else select(keys, wanted)
        return queries.unpack(self.encode(tokens, keys, queries, train=train))

    def encode(self, tokens: Int[Array, "B L"], keys: Layout, queries: Layout, *, train: bool) -> Float[Array, "G U D"]:
        """The family's own part of `__call__`: states of `queries`, in their layout.

        Args:
            tokens: In rows.
            keys: The real tokens.
            queries: Those of them that the last layer computes.
            train: Whether dropout is on.
        """
        raise NotImplementedError


def rowwise(layer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A linear layer or a table whose result stays with its rows: a split kernel is gathered where they are (FSDP).

    Left to itself XLA may split the states' columns instead, and send states around.
    """

    def call(x: Shaped[Array, "G ..."]) -> Float[Array, "G ..."]:
        return constrain_rows(layer(x))

    return call


class Layers(nn.Module):
    """The stack; a module of its own only for its name in the parameter tree.

    Attributes:
        layer: Makes the layer of a number, from 0.
        depth: How many.
        remat: As in `TextTower`.
    """

    layer: Callable[[int], Callable[..., Array]]
    depth: int
    remat: bool = False

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """All layers in order, of which the last one computes the states of `queries` only."""

        def run(layer: Callable[..., Array], states: Array, queries: Layout) -> Array:
            return layer(states, keys, queries, train=train)

        if self.remat:
            run = nn.remat(run)
        for number in range(self.depth):
            states = run(self.layer(number), states, queries if number == self.depth - 1 else keys)
        return states


def attend(
    query: Float[Array, "B W N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    allowed: Bool[Array, "B 1 q L"],
    dropout: Dropout | None = None,
) -> Float[Array, "B W D"]:
    """Scaled dot-product attention of N heads of width H, their results side by side (D = N·H).

    Args:
        query: What asks.
        key: What is compared with it.
        value: What is mixed.
        allowed: Which keys each query may see; q is 1 or W. A query without any gets finite nonsense.
        dropout: For the attention weights; None leaves them whole.
    """
    if dropout is None:
        mixed = jax.nn.dot_product_attention(query, key, value, mask=allowed)
    else:
        # The fused kernels cannot drop single probabilities, so this one case is written out.
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = jnp.where(allowed, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
        weights = dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype), train=True)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return mixed.reshape((*mixed.shape[:2], -1))


def layer_norm(epsilon: float, name: str, *, use_bias: bool = True) -> nn.LayerNorm:
    """A layer norm that computes in float32 whatever the tower's dtype."""
    # The two-pass variance, since E[x²] - E[x]² cancels and goldens see it.
    norm = nn.remat(nn.LayerNorm)
    return norm(epsilon=epsilon, dtype=jnp.float32, use_bias=use_bias, use_fast_variance=False, name=name)
