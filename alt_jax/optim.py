"""Optimisers: a transformation per parameter group, groups named by regular expressions over parameter paths."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
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
_TABLES = r"(ctr/embedding|ctr_logit/linear)/.*"


def pretrain_optimizer(config: PretrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW for every group with a cosine to 0 over `steps`, after an optional linear warm-up."""

    def adamw(peak: float) -> optax.GradientTransformation:
        warmup = round(config.warmup * steps)
        schedule = optax.schedules.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, max(steps, 1))
        return optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed)

    groups = {"text": adamw(config.text_learning_rate), "rest": adamw(config.learning_rate)}
    return optax.multi_transform(groups, lambda params: group_params(params, {"text": _TEXT, "rest": _REST}))


def finetune_optimizer(config: FinetuneConfig) -> optax.GradientTransformation:
    """AdamW for the text tower, Adam for the rest, each at its own constant rate; L2 on the tables of ids."""
    adam = optax.adam(config.learning_rate)
    groups = {
        "text": optax.adamw(config.text_learning_rate, weight_decay=config.weight_decay, mask=decayed),
        "tables": optax.chain(gaussian_prior(config.l2, config.l2_towards), adam) if config.l2 else adam,
        "rest": adam,
    }
    patterns = {"text": _TEXT, "tables": _TABLES, "rest": f"(?!{_TABLES}){_REST}"}
    return optax.multi_transform(groups, lambda params: group_params(params, patterns))


def gaussian_prior(l2: float, towards: Literal["zero", "start"]) -> optax.GradientTransformation:
    """Adds the gradient of l2 · ‖w − w₀‖², w₀ = 0 or the parameters that `init` was given.

    The whole tables, whatever a batch holds: one Gaussian prior for every id, so that an id seen twice is held back as
    strongly as one seen often, and a batch's size does not change the objective. With the start as its centre the prior
    is what a pretraining has left: L2-SP (Li et al. 2018, arXiv 1802.01483). It stands before Adam, which then moves an
    id that no batch holds by about the learning rate a step: not the same as decoupled decay.
    """
    if towards == "zero":
        return optax.add_decayed_weights(2 * l2)

    def update(updates: Any, start: Any, params: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda g, w, w0: g + 2 * l2 * (w - w0), updates, params, start), start

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.copy, params), update)
