"""The text towers by family: what a `config.json` may describe, and the module that computes it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from alt_jax.errors import InputError, shortened
from alt_jax.models.bert import Bert, BertConfig, ElectraConfig, RobertaConfig
from alt_jax.models.distilbert import DistilBert, DistilBertConfig
from alt_jax.models.encoder import EncoderConfig, TextTower
from alt_jax.models.modernbert import ModernBert, ModernBertConfig

_FAMILIES: tuple[tuple[type[EncoderConfig], type[TextTower]], ...] = (
    (BertConfig, Bert),
    (RobertaConfig, Bert),
    (DistilBertConfig, DistilBert),
    (ElectraConfig, Bert),
    (ModernBertConfig, ModernBert),
)
_CONFIGS = {config.model_type: config for config, _ in _FAMILIES}
_TOWERS = dict(_FAMILIES)


def names() -> list[str]:
    """Every `model_type` that a text tower may have."""
    return list(_CONFIGS)


def read_config(values: Mapping[str, Any], source: str) -> EncoderConfig:
    """Reads the content of a `config.json`.

    Args:
        values: The parsed JSON object.
        source: What to call it in messages, such as the file's path.

    Returns:
        The configuration, of the class that its `model_type` names.

    Raises:
        InputError: The family is none of ours, a key is missing or asks for something the encoder does not do.
    """
    model_type = values.get("model_type")
    if model_type not in names():  # a list, since JSON may hold what cannot be hashed
        raise InputError(
            f"{source}: model_type {shortened(repr(model_type))} is not supported; use a checkpoint of type "
            f"{' or '.join(names())}."
        )
    return _CONFIGS[str(model_type)].from_hf(values, source)


def text_tower(config: EncoderConfig, dtype: DTypeLike = jnp.float32, *, remat: bool = False) -> TextTower:
    """The text tower of a configuration's family; for `dtype` and `remat` see `TextTower`."""
    return _TOWERS[type(config)](config, dtype, remat)
