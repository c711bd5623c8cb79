"""Optimisers: a transformation per parameter group, groups named by regular expressions over parameter paths."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from alt_jax.config import FinetuneConfig, PretrainConfig


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path as `text/encoder/layer/0/…`."""
    return "/".join(str(key.key) for key in path)


def group_params(params: Any, patterns: Mapping[str, str]) -> Any:
    """Labels every parameter with the one group whose pattern matches the whole of its path.

    Args:
      params: Nested dict of arrays.
      patterns: Group name to regular expression.

    Raises:
      ValueError: A parameter matches no group or more than one.
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        matches = [group for group, pattern in patterns.items() if re.fullmatch(pattern, name)]
        if len(matches) != 1:
            raise ValueError(f"Parameter {name} belongs to {matches or 'no group'}; it must match exactly one pattern.")
        return matches[0]

    return jax.tree_util.tree_map_with_path(label, params)


def decayed(params: Any) -> Any:
    """Which parameters weight decay acts on: matrices, but not embedding tables, biases or layer norms."""

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        return leaf.ndim >= 2 and path[-1].key not in ("embedding", "table")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


_TEXT, _REST = r"text(_second)?/.*", r"(?!text(_second)?/).*"


def pretrain_optimizer(config: PretrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW for every group with a cosine to 0 over `steps`, after an optional linear warm-up."""

    def adamw(peak: float) -> optax.GradientTransformation:
        warmup = round(config.warmup * steps)
        schedule = optax.schedules.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, max(steps, 1))
        return optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed)

    groups = {"text": adamw(config.text_learning_rate), "rest": adamw(config.learning_rate)}
    return optax.multi_transform(groups, lambda params: group_params(params, {"text": _TEXT, "rest": _REST}))


def finetune_optimizer(config: FinetuneConfig) -> optax.GradientTransformation:
    """AdamW for the text tower, Adam for the rest, each at its own constant rate."""
    groups = {
        "text": optax.adamw(config.text_learning_rate, weight_decay=config.weight_decay, mask=decayed),
        "rest": optax.adam(config.learning_rate),
    }
    return optax.multi_transform(groups, lambda params: group_params(params, {"text": _TEXT, "rest": _REST}))
