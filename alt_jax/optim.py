"""Optimisers: a transformation per parameter group, groups named by regular expressions over parameter paths."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alt_jax.config import FinetuneConfig, PretrainConfig
from alt_jax.lazy import TABLES


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


Schedules = dict[str, optax.ScalarOrSchedule]


def pretrain_schedules(config: PretrainConfig, steps: int) -> Schedules:
    """The learning rate of the text tower and of the rest: a cosine to 0 over `steps`, after a linear warm-up."""

    def schedule(peak: float) -> optax.Schedule:
        warmup = round(config.warmup * steps)
        return optax.schedules.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, max(steps, 1))

    return {"text": schedule(config.text_learning_rate), "rest": schedule(config.learning_rate)}


def finetune_schedules(config: FinetuneConfig) -> Schedules:
    """The learning rate of the text tower and of the rest: constant."""
    return {"text": config.text_learning_rate, "rest": config.learning_rate}


def rates_at(schedules: Schedules, step: int) -> dict[str, float]:
    """The learning rates of update `step`, from 1."""
    return {name: float(rate(step - 1) if callable(rate) else rate) for name, rate in schedules.items()}


def pretrain_optimizer(config: PretrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW for every group, at the rates of `pretrain_schedules`."""
    rates = pretrain_schedules(config, steps)

    def adamw(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return optax.adamw(rate, weight_decay=config.weight_decay, mask=decayed)

    groups = {"text": adamw(rates["text"]), "rest": adamw(rates["rest"])}
    patterns = {"text": _TEXT, "rest": _REST}
    if config.tables == "lazy_adagrad":
        groups["tables"] = adagrad_by_rows(rates["rest"])
        patterns |= {"tables": TABLES, "rest": f"(?!{TABLES}){_REST}"}
    return optax.multi_transform(groups, lambda params: group_params(params, patterns))


def finetune_optimizer(config: FinetuneConfig) -> optax.GradientTransformation:
    """AdamW for the text tower, Adam for the rest, at the rates of `finetune_schedules`; L2 on the tables of ids.

    The tables' Adam is the same whether it is lazy or not: `alt_jax.lazy` decides which rows it sees.
    """
    rates = finetune_schedules(config)
    adam = optax.adam(rates["rest"])
    tables = adagrad_by_rows(rates["rest"]) if config.tables == "lazy_adagrad" else adam
    groups = {
        "text": optax.adamw(rates["text"], weight_decay=config.weight_decay, mask=decayed),
        "tables": optax.chain(gaussian_prior(config.l2, config.l2_towards or "zero"), tables) if config.l2 else tables,
        "rest": adam,
    }
    patterns = {"text": _TEXT, "tables": TABLES, "rest": f"(?!{TABLES}){_REST}"}
    optimizer = optax.multi_transform(groups, lambda params: group_params(params, patterns))
    return averaged(optimizer, config.ema_decay) if config.ema_decay else optimizer


def adagrad_by_rows(learning_rate: optax.ScalarOrSchedule, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """Adagrad with one accumulator a row of a table: w −= η g / √(Σ_t mean_d g² + ε).

    Row-wise Adagrad, as industrial tables have it (DLRM, arXiv 1906.00091; Gupta et al. 2014): its state is D times
    smaller than Adagrad's, 2 D times smaller than Adam's.
    """

    def update(updates: Any, sums: Any, params: Any = None) -> tuple[Any, Any]:
        sums = jax.tree.map(lambda s, g: s + jnp.mean(g * g, axis=1, keepdims=True), sums, updates)
        return jax.tree.map(lambda s, g: g * jax.lax.rsqrt(s + epsilon), sums, updates), sums

    start = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda w: jnp.zeros((w.shape[0], 1), w.dtype), params), update
    )
    return optax.chain(start, optax.scale_by_learning_rate(learning_rate))


class Averaged(NamedTuple):
    """The state of `averaged`.

    Attributes:
      inner: Of the optimiser that moves the parameters.
      steps: Updates so far.
      average: The mean of the parameters.
    """

    inner: Any
    steps: jax.Array
    average: Any


def averaged(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Keeps an exponential mean of the parameters beside the optimiser, ā ← d ā + (1 − d) w (Polyak averaging).

    d is `decay`, and at first (1 + t) / (10 + t) where that is less, so that the start does not weigh on a short run.
    What is validated, kept and served is the mean (`swapped`); gradients are taken of w.
    """

    def update(updates: Any, state: Averaged, params: Any) -> tuple[Any, Averaged]:
        updates, moved = inner.update(updates, state.inner, params)
        steps = state.steps + 1
        step = 1 - jnp.minimum(decay, (1 + steps) / (10 + steps))
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, step)
        return updates, Averaged(moved, steps, average)

    def init(params: Any) -> Averaged:
        return Averaged(inner.init(params), jnp.int32(0), jax.tree.map(jnp.copy, params))

    return optax.GradientTransformation(init, update)


def swapped(params: Any, state: Any) -> tuple[Any, Any]:
    """The mean in the place of the parameters and these in its place, if there is one: what is saved of a run.

    Of what was saved, once more, it is what is trained.
    """
    return (state.average, state._replace(average=params)) if isinstance(state, Averaged) else (params, state)


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
