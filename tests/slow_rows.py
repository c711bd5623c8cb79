"""Prompts spelled out token by token, scalar losses, and random parameters: what slow versions of the tasks share."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def fresh(task: Any, seed: int = 0):
    """Random parameters, biases and scales too, so that none can be missing unnoticed; no initialiser to compile."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = 0.2 * rng.standard_normal(leaf.shape)
        return jnp.asarray(noise + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))


class Slow(NamedTuple):
    """Prompts of a batch, spelled out token by token."""

    tokens: np.ndarray
    real: np.ndarray
    field: np.ndarray


def spell(dataset, values: np.ndarray) -> Slow:
    """[CLS], prefix and value of every field, [SEP], padding: from the pieces, one after the other."""
    pieces, schema = dataset.pieces, dataset.schema
    length = 8 * math.ceil(schema.text.length / 8)
    known = len(pieces.feature)
    out = Slow(
        np.full((len(values), length), schema.text.pad_id),
        np.zeros((len(values), length), bool),
        np.full((len(values), length), -1),
    )
    for r, row in enumerate(values):
        at = 0
        segments = [(known, -1)]
        for f, value in enumerate(row):
            segments += [(known + 2 + f, -1), (int(value), f)]
        segments.append((known + 1, -1))
        for piece, f in segments:
            for t in range(pieces.length[piece]):
                out.tokens[r, at] = pieces.tokens[pieces.start[piece] + t]
                out.real[r, at] = True
                out.field[r, at] = f if t < pieces.maskable[piece] else -1
                at += 1
    return out


def cross_entropy(logits: np.ndarray, target: int) -> float:
    top = max(logits)
    return top + math.log(sum(math.exp(v - top) for v in logits)) - logits[target]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x
