"""A tiny text tower of every family, and one compiled pass through any of them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from alt_jax.models import huggingface
from alt_jax.models.bert import BertConfig, ElectraConfig, RobertaConfig
from alt_jax.models.distilbert import DistilBertConfig
from alt_jax.models.encoder import EncoderConfig
from alt_jax.models.modernbert import GLOBAL, LOCAL, ModernBertConfig
from alt_jax.models.text import names, text_tower

GOLDENS = Path(__file__).parent.parent / "goldens"
_SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,  # XLA's compile time is most of the tests' time; the goldens have more
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, EncoderConfig] = {
    "bert": BertConfig(**_SIZES),
    "roberta": RobertaConfig(**_SIZES, type_vocab_size=1),
    "distilbert": DistilBertConfig(**_SIZES),
    "electra": ElectraConfig(**_SIZES, embedding_size=12),
    "modernbert": ModernBertConfig(
        **_SIZES | {"num_hidden_layers": 2},
        layer_types=(GLOBAL, LOCAL),
        local_attention=4,
        global_rope_theta=500.0,
        local_rope_theta=40.0,
        pad_token_id=3,
    ),
}
assert list(CONFIGS) == names()
FAMILIES = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
# Where two families are the same modules, one will do.
_KINDS = ("bert", "distilbert", "modernbert")
KINDS = pytest.mark.parametrize("config", [CONFIGS[family] for family in _KINDS], ids=_KINDS)
# All, of which those that will do for the others are in the default lane.
FAMILIES_BY_LANE = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=family, marks=[] if family in _KINDS else [pytest.mark.slow])
        for family, config in CONFIGS.items()
    ],
)


def rates(config: EncoderConfig) -> list[str]:
    """Names of the dropout rates."""
    return [name for name in config.rates if "dropout" in name]


def with_rates(config: EncoderConfig, **chosen: float) -> EncoderConfig:
    """The same without dropout but for the chosen rates."""
    return dataclasses.replace(config, **(dict.fromkeys(rates(config), 0.0) | chosen))


def prompts(config: EncoderConfig, length: int = 8) -> tuple[jax.Array, jax.Array]:
    """Three prompts of 8, 5 and 2 tokens, padded to `length`."""
    mask = np.arange(length)[None] < np.array([8, 5, 2])[:, None]
    tokens = np.random.default_rng(1).integers(4, config.vocab_size, (3, 8))
    tokens = np.pad(tokens, ((0, 0), (0, length - 8)))
    return jnp.asarray(np.where(mask, tokens, config.pad_token_id), jnp.int32), jnp.asarray(mask)


@functools.lru_cache
def initial(config: EncoderConfig) -> Any:
    """Parameters of the tower, as it starts."""
    return jax.jit(text_tower(config).init)(jax.random.key(0), *prompts(config))


@functools.lru_cache
def drawn(config: EncoderConfig, seed: int = 0) -> Any:
    """Random parameters, biases and scales too, so that no two can be taken for each other; nothing to compile."""
    tree = traverse_util.flatten_dict(jax.eval_shape(text_tower(config).init, jax.random.key(0), *prompts(config)))
    rng = np.random.default_rng(seed)
    values = {
        path: (0.3 * rng.standard_normal(leaf.shape) + (path[-1] == "scale")).astype(np.float32)
        for path, leaf in tree.items()
    }
    return traverse_util.unflatten_dict(values)


@functools.partial(jax.jit, static_argnames=("tower", "train"))
def run(tower, params, tokens, mask, *, train=False, key=None):
    """One compiled pass; the tests would spend their time on single operations otherwise."""
    return tower.apply(params, tokens, mask, train=train, rngs=None if key is None else {"dropout": key})


def golden_error(folder: Path, name: str, **changes: Any) -> float:
    """The largest absolute difference from the recorded states, over real tokens."""
    golden = np.load(GOLDENS / f"{name}.npz")
    config = huggingface.load_config(folder)
    params = huggingface.load_weights(folder, config)
    tower = text_tower(dataclasses.replace(config, **changes))
    with jax.default_matmul_precision("highest"):  # no tf32 where there is a GPU
        states = run(tower, {"params": params}, jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"]))
    assert states.dtype == jnp.float32
    return np.abs(np.asarray(states) - golden["states"])[golden["mask"]].max()
