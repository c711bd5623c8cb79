"""ModernBERT encoder in Flax Linen (Warner et al. 2024, arXiv 2412.13663).

Against BERT: rotary positions (Su et al. 2021, arXiv 2104.09864) for a table of them, layer norms in front of the
residuals, GeGLU (Shazeer 2020, arXiv 2002.05202) for the feed-forward half, no biases unless the config has them, and
attention within a window in all layers but every n-th.
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

GLOBAL, LOCAL = "full_attention", "sliding_attention"
_THETAS = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig(EncoderConfig):
    """ModernBERT's `config.json`, in the form of transformers 5 or that of the published checkpoints.

    Attributes:
        layer_types: "full_attention" or "sliding_attention" for each layer.
        local_attention: Tokens that a sliding window spans, half of them (rounded down) on each side.
        global_rope_theta, local_rope_theta: Base of the rotary wavelengths in the layers of each type.
    """

    model_type: ClassVar[str] = "modernbert"
    architecture: ClassVar[str] = "ModernBertModel"
    keys: ClassVar[Mapping[str, str]] = {"hidden_act": "hidden_activation"}
    least: ClassVar[Mapping[str, int]] = {**EncoderConfig.least, "local_attention": 1}
    rates: ClassVar[tuple[str, ...]] = (
        "attention_dropout",
        "embedding_dropout",
        "mlp_dropout",
        "initializer_range",
        "norm_eps",
    )
    positive: ClassVar[tuple[str, ...]] = (
        "norm_eps",
        "initializer_cutoff_factor",
        "global_rope_theta",
        "local_rope_theta",
    )
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    heads: ClassVar[tuple[str, ...]] = ("head", "decoder", "classifier")

    layer_types: tuple[str, ...]
    local_attention: int = 128
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    mlp_dropout: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    norm_eps: float = 1e-5
    initializer_cutoff_factor: float = 2.0
    pad_token_id: int = 50283

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.layer_types) != self.num_hidden_layers or any(kind not in _THETAS for kind in self.layer_types):
            raise InputError(
                f"layer_types is {list(self.layer_types)}; it must be {GLOBAL!r} or {LOCAL!r} for each of "
                f"{self.num_hidden_layers} layers."
            )
        if self.hidden_size // self.num_attention_heads % 2:
            raise InputError(
                f"hidden_size {self.hidden_size} gives each of {self.num_attention_heads} heads an odd width, but "
                "rotary positions turn pairs of columns."
            )

    @classmethod
    def translate(cls, values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
        """Writes out the layers' types and the thetas, in whichever of the two forms the file has them."""
        found = dict(values)
        layers, types = values.get("num_hidden_layers"), values.get("layer_types")
        if isinstance(types, list) and all(type(kind) is str for kind in types):
            found["layer_types"] = tuple(types)
        elif types is None and type(layers) is int:
            every = values.get("global_attn_every_n_layers", 3)
            if type(every) is not int or every < 1:
                raise InputError(
                    f"{source}: global_attn_every_n_layers is {every!r}; it must be a whole number of at least 1."
                )
            found["layer_types"] = _alternating(layers, every)
        if values.get("rope_scaling") is not None:
            raise InputError(f"{source}: rope_scaling is not supported; use a checkpoint with plain rotary positions.")
        ropes = values.get("rope_parameters")
        if ropes is not None and not (isinstance(ropes, dict) and ropes.keys() <= _THETAS.keys()):
            raise InputError(f"{source}: rope_parameters is {ropes!r}; it must have the keys {' and '.join(_THETAS)}.")
        for kind, rope in (ropes or {}).items():
            if rope is None:
                continue
            if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
                raise InputError(
                    f"{source}: {kind} of rope_parameters is {rope!r}, which is not supported; use a checkpoint with "
                    "plain rotary positions, of rope_type 'default'."
                )
            if "rope_theta" in rope:
                found[_THETAS[kind]] = rope["rope_theta"]
        return found

    def to_hf(self) -> dict[str, Any]:
        """Both forms, since transformers 4 would silently take its defaults for what it does not find."""
        written = super().to_hf() | {
            "layer_types": list(self.layer_types),
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": getattr(self, theta)} for kind, theta in _THETAS.items()
            },
        }
        for every in range(1, self.num_hidden_layers + 1):
            if self.layer_types == _alternating(self.num_hidden_layers, every):
                return written | {"global_attn_every_n_layers": every}
        return written


def _alternating(layers: int, every: int) -> tuple[str, ...]:
    """Global attention in the first layer and in every `every`-th from there on."""
    return tuple(LOCAL if number % every else GLOBAL for number in range(layers))


def rotate(heads: Float[Array, "B L N H"], position: Int[Array, "b L"], theta: float) -> Float[Array, "B L N H"]:
    """Turns columns i and i + H/2 of the token at position p by the angle p·theta^(-2i/H).

    So the product of two tokens' heads depends on the difference of their positions only (arXiv 2104.09864, eq. 16,
    whose pairs are neighbouring columns). Computed in float32.
    """
    half = heads.shape[-1] // 2
    frequency = 1.0 / theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(heads.dtype)


def _dense(
    config: ModernBertConfig, features: int, dtype: DTypeLike, name: str, *, use_bias: bool, out: bool = False
) -> Callable[[Array], Array]:
    """A linear layer; `out` marks those that write to the residual, whose start is scaled down with the depth."""
    std = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5 if out else config.initializer_range
    cut = config.initializer_cutoff_factor
    init = nn.initializers.truncated_normal(std, lower=-cut, upper=cut)
    return rowwise(nn.Dense(features, dtype=dtype, use_bias=use_bias, kernel_init=init, name=name))


def _norm(config: ModernBertConfig, name: str) -> nn.LayerNorm:
    return layer_norm(config.norm_eps, name, use_bias=config.norm_bias)


class Embeddings(nn.Module):
    """Words, layer norm and dropout; positions come in later, by rotation."""

    config: ModernBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], layout: Layout, *, train: bool = False) -> Float[Array, "G T D"]:
        """Embeds the tokens; see `TextTower`."""
        config = self.config
        cut = config.initializer_cutoff_factor
        init = nn.initializers.truncated_normal(config.initializer_range, lower=-cut, upper=cut)
        words = rowwise(nn.Embed(config.vocab_size, config.hidden_size, embedding_init=init, name="tok_embeddings"))
        states = _norm(config, "norm")(words(layout.pack_ids(tokens))).astype(self.dtype)
        return Dropout(config.embedding_dropout, name="drop")(states, train=train, number=layout.number)


class Attention(nn.Module):
    """Multi-head attention with rotary positions, and its output projection.

    Attributes:
        config: Sizes and rates.
        kind: Of the layer, "full_attention" or "sliding_attention".
        dtype: As in `TextTower`.
    """

    config: ModernBertConfig
    kind: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """Mixes the states of each row for `queries`; a window reaches as far to the left as to the right."""
        config = self.config
        width, bias, rate = config.hidden_size, config.attention_bias, config.attention_dropout
        heads = (config.num_attention_heads, width // config.num_attention_heads)
        joint = _dense(config, 3 * width, self.dtype, "Wqkv", use_bias=bias)(states)
        query, key, value = jnp.split(joint, 3, axis=-1)
        query, key, value = queries.unpack(queries.pick(query)), keys.unpack(key), keys.unpack(value)
        query, key, value = (x.reshape((*x.shape[:2], *heads)) for x in (query, key, value))
        theta = getattr(config, _THETAS[self.kind])
        query, key = rotate(query, queries.position, theta), rotate(key, keys.position, theta)
        allowed = keys.mask[:, None, None, :]
        if self.kind == LOCAL:
            distance = jnp.abs(queries.position[:, :, None] - keys.position[:, None, :])
            allowed = allowed & (distance <= config.local_attention // 2)[:, None]
        dropout = Dropout(rate, name="dropout") if train and rate > 0 else None
        mixed = queries.pack(attend(query, key, value, allowed, dropout))
        mixed = _dense(config, width, self.dtype, "Wo", use_bias=bias, out=True)(mixed)
        return Dropout(rate, name="out_drop")(mixed, train=train, number=queries.number)


class GeGLU(nn.Module):
    """The feed-forward half."""

    config: ModernBertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "G T D"], layout: Layout, *, train: bool = False) -> Float[Array, "G T D"]:
        """W_o dropout(act(a) ⊙ b) with [a, b] = W_i states."""
        config = self.config
        wide = _dense(config, 2 * config.intermediate_size, self.dtype, "Wi", use_bias=config.mlp_bias)(states)
        inner, gate = jnp.split(wide, 2, axis=-1)
        gated = ACTIVATIONS[config.hidden_act](inner) * gate
        gated = Dropout(config.mlp_dropout, name="drop")(gated, train=train, number=layout.number)
        return _dense(config, config.hidden_size, self.dtype, "Wo", use_bias=config.mlp_bias, out=True)(gated)


class Layer(nn.Module):
    """One transformer layer, layer norms in front of the residuals."""

    config: ModernBertConfig
    number: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, states: Float[Array, "G T D"], keys: Layout, queries: Layout, *, train: bool = False
    ) -> Float[Array, "G U D"]:
        """Attention, then the feed-forward half."""
        config = self.config
        # The embeddings have just been normed, so the first layer does without.
        normed = _norm(config, "attn_norm")(states).astype(self.dtype) if self.number else states
        kind = config.layer_types[self.number]
        mixed = Attention(config, kind, self.dtype, name="attn")(normed, keys, queries, train=train)
        states = queries.pick(states) + mixed
        normed = _norm(config, "mlp_norm")(states).astype(self.dtype)
        return states + GeGLU(config, self.dtype, name="mlp")(normed, queries, train=train)


class ModernBert(TextTower):
    """The encoder of ModernBERT."""

    config: ModernBertConfig

    @nn.compact
    def encode(self, tokens: Int[Array, "B L"], keys: Layout, queries: Layout, *, train: bool) -> Float[Array, "G U D"]:
        """Embeds, then mixes; see `TextTower`."""
        states = Embeddings(self.config, self.dtype, name="embeddings")(tokens, keys, train=train)
        layers = Layers(
            lambda number: Layer(self.config, number, self.dtype, name=str(number)),
            self.config.num_hidden_layers,
            self.remat,
            name="layers",
        )
        states = layers(states, keys, queries, train=train)
        return _norm(self.config, "final_norm")(states).astype(self.dtype)
