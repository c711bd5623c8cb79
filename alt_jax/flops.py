"""Floating-point operations of training, counted by hand, and the matrix rate that they are compared with.

Counted are the matrix products that have to be: of real tokens, not of padding; forward, and twice that backward. What
else a step does (attention's softmax, norms, dropout, the optimiser, a second forward pass to save memory) counts as
nothing, and so does, in a few CTR towers, that a matrix is applied to every field of a row instead of once: the share
of the peak is of what is useful, and rather too low than too high.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alt_jax import masking, pretraining
from alt_jax.models.encoder import EncoderConfig
from alt_jax.models.modernbert import ModernBertConfig
from alt_jax.pretraining import Pretrain
from alt_jax.tasks import Finetune, Params

_BACKWARD = 3  # a product's two gradients are a product each, of the same size
_MEASURE_S = 0.2  # that the rate is measured for, after compiling


def text_flops(encoder: EncoderConfig, lengths: Any, asked: float | None = None) -> float:
    """Products of one forward pass over prompts of these lengths; padding is no use and does not count.

    Args:
      encoder: Sizes of the tower.
      lengths: Tokens of each prompt.
      asked: Tokens of a prompt, in the mean, whose states the last layer computes; 1: [CLS]; None: all.
    """
    lengths = np.asarray(lengths, np.float64)
    d, inner, layers = encoder.hidden_size, encoder.intermediate_size, encoder.num_hidden_layers
    feed = (3 if isinstance(encoder, ModernBertConfig) else 2) * d * inner  # of which ModernBERT's gate is one
    tokens, pairs, rows = lengths.sum(), np.square(lengths).sum(), len(lengths)
    whole = 2 * tokens * (4 * d * d + feed) + 4 * pairs * d
    if asked is None:
        return float(layers * whole)
    last = 2 * tokens * 2 * d * d + 2 * asked * rows * (2 * d * d + feed) + 4 * asked * tokens * d
    return float((layers - 1) * whole + last)


def dense_flops(params: Any, rows: int) -> float:
    """Products of one forward pass through the matrices of a tree, each applied once a row; tables do not count."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    no_product = ("embedding", "table", "bias")
    return float(sum(2 * rows * leaf.size for path, leaf in leaves if path[-1].key not in no_product))


def pretrain_flops(task: Pretrain, rows: int) -> dict[str, float]:
    """A pretraining step by part.

    Args:
      task: With its sample of prompts, whose mean stands for the batch's.
      rows: Of the batch.
    """
    config, encoder = task.model.config, task.model.encoder
    weights = config.loss
    needed = pretraining.views(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    text = 0.0  # of the passes that `Pretrain.loss` makes
    if needed.text:
        text += text_flops(encoder, task.lengths, 1 if needed.text == "cls" else None)
    if needed.hidden_text:
        text += text_flops(encoder, task.lengths, _hidden_tokens(task) if needed.hidden_text == "masks" else None)
    text *= rows / len(task.lengths)
    passes = needed.table + needed.hidden_table
    found = {"text tower": text, "CTR tower": passes * dense_flops(params["ctr"], rows) if passes else 0.0}
    if weights.icl:
        found["ICL heads"] = dense_flops([params["align_ctr"], params["align_text"]], rows)
        found["ICL comparisons"] = 2.0 * rows * rows * config.icl.dim
    if weights.mlm:
        found["MLM head"] = dense_flops(params["mlm"], 1) * rows * _hidden_tokens(task)
    if weights.mtm:
        attention = 4.0 * rows * float(task.lengths.mean()) * encoder.hidden_size if config.mtm.with_text else 0.0
        found["MTM head"] = dense_flops(params["mtm"], rows) + attention + _scores(task, rows)
    return {name: _BACKWARD * count for name, count in found.items()}


def _hidden_tokens(task: Pretrain) -> float:
    """Mean tokens that MLM hides in a row."""
    config, maskable = task.model.config, task.maskable.sum(axis=1).mean()
    if config.mlm.unit == "token":
        return float(config.mask.rate * maskable)
    units = masking.side_units(task.model.schema, config.mask, "prompt")
    return float(maskable * masking.num_masked_units(units, config.mask.rate) / len(units))


def _scores(task: Pretrain, rows: int) -> float:
    """Products of the vectors of hidden fields with the ids that they are scored against."""
    config, schema = task.model.config, task.model.schema
    if config.mtm.method == "rfd":
        return 0.0
    units = masking.mask_units(schema, config.mask, "table")
    chance = masking.num_masked_units(units, config.mask.rate) / len(units)
    fields = [schema.fields[f] for unit in units for f in unit]
    scored = sum(field.size if config.mtm.method == "softmax" else field.slots * config.mtm.noise for field in fields)
    return 2.0 * chance * rows * scored * config.mtm.dim


def finetune_flops(task: Finetune, rows: int, lengths: np.ndarray | None) -> dict[str, float]:
    """A finetuning step by part.

    Args:
      task: Model and strategy.
      rows: Of the batch.
      lengths: Tokens of the prompts of training rows; None where no text tower reads.
    """
    params: Params = jax.eval_shape(task.init, jax.random.key(0))
    found = {}
    if task.strategy != "plm":
        found["CTR tower"] = dense_flops(params["ctr"], rows)
    if task.strategy != "ctr":
        assert lengths is not None
        # Two towers share a row's tokens; each half has a [CLS] and [SEP] of its own.
        halves = [lengths / 2 + 1] * 2 if "text_second" in params else [lengths]
        read = 1 if task.model.config.text.pooling == "cls" else None
        text = sum(text_flops(task.model.encoder, part, read) for part in halves)
        found["text tower"] = rows * text / len(lengths)
    return {name: _BACKWARD * count for name, count in found.items()}


@functools.cache
def matrix_rate(dtype: str) -> float:
    """FLOPs a second of a large product on one device, measured once a process, in half a second or less.

    Args:
      dtype: Of its factors, e.g. `bfloat16`.
    """
    side = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + _MEASURE_S
    while time.perf_counter() < end:
        began = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best


def peak(mesh: Mesh, dtype: str) -> float:
    """The matrix rate of all devices together; the devices of a CPU are its cores, and share one rate a process."""
    device = mesh.devices.flat[0]
    return matrix_rate(dtype) * (jax.process_count() if device.platform == "cpu" else mesh.size)
