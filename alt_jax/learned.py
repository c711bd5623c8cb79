"""What a pretraining has learned: its losses on validation rows, beside those of scores that know nothing of a row."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alt_jax import mtm
from alt_jax.config import Config
from alt_jax.data.batches import Batch
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import Pieces
from alt_jax.pretraining import Pretrain
from alt_jax.sharding import own_rows, replicated, split_rows
from alt_jax.tasks import Params

_ROWS = 1 << 16  # of validation at most
_LEAST = 0.02  # nats below which a gain is taken for none: what a thousand rows tell is not finer
_SHOWN = 4  # fields in a sentence
_SHARES = (0.5, 0.25, 0.1)  # of MTM's scores, beside the unigram's, where all of them are too sure of themselves
_HELP = {
    "icl": "train longer, raise pretrain.text_learning_rate, or lower icl.temperature",
    "mlm": "train longer or raise pretrain.text_learning_rate",
    "mtm": "train longer or raise pretrain.learning_rate",
}


def measure(task: Pretrain, mesh: Mesh, params: Params, pieces: Pieces, dataset: Dataset) -> dict[str, float]:
    """Losses and metrics of validation rows, dropout off, masks drawn as in training and every time the same.

    Args:
      task: The pretraining.
      mesh: Devices.
      params: On the mesh.
      pieces: Of the prompts, replicated.
      dataset: Has the rows, of which only whole batches are looked at.

    Returns:
      Means by name, as in `metrics.jsonl`; `mtm/gain` and `mlm/gain` of all fields; `rows`; and `batch`, on which ICL's
      loss and retrieval depend. Where MTM's scores are worse than the unigram's, they are those of a part of them and
      the rest of the unigram's, which `mtm/share` says: a pretraining that knows training rows by heart is too sure of
      itself, and may have learned a lot all the same. Empty where there are too few rows for a batch.
    """
    config = task.model.config
    unit = math.lcm(mesh.size * config.pretrain.microbatches, max(config.icl.chunk, 1))
    rows = min(_ROWS, len(dataset.valid.labels))
    size = min(config.pretrain.batch_size, rows // unit * unit)
    if not size:
        return {}
    look = jax.jit(
        lambda params, pieces, batch, key: task.loss(params, pieces, batch, key, train=False)[1],
        out_shardings=replicated(mesh),
    )
    own = own_rows(mesh, size)

    def sums(params: Params) -> dict[str, np.ndarray]:
        """Totals and weights over all batches."""
        found = dict[str, np.ndarray]()
        with jax.set_mesh(mesh):
            for number in range(rows // size):
                values: Any = np.asarray(dataset.valid.values[number * size : (number + 1) * size][own])
                ones: Any = np.ones(len(values), np.float32)
                batch = split_rows(mesh, Batch(values, ones, ones))
                means = jax.device_get(look(params, pieces, batch, jax.random.fold_in(jax.random.key(0), number)))
                for name, mean in means.items():
                    found[name] = found.get(name, np.zeros(2)) + np.array([mean.total, mean.weight], np.float64)
        return found

    found = _means(sums(params))
    if config.loss.mtm and config.mtm.method != "rfd" and not _learned(found, "mtm"):
        common = mtm.unigram_scores(task.counts, config.mtm, task.model.schema)
        for share in _SHARES:
            other = _means(sums(_tempered(params, share, common)))
            if other["mtm/gain"] > found["mtm/gain"]:
                found |= {name: value for name, value in other.items() if name.startswith("mtm")} | {"mtm/share": share}
    return found | {"rows": rows // size * size, "batch": size}


def _means(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means, and the gain of all fields together."""
    found = {name: float(total / weight) for name, (total, weight) in sums.items() if weight}
    for loss in ("mlm", "mtm"):
        gains = [value for name, value in sums.items() if name.startswith(f"{loss}/gain/")]
        total, weight = np.sum(gains, axis=0) if gains else (0.0, 0.0)
        if weight:
            found[f"{loss}/gain"] = float(total / weight)
    return found


def _tempered(params: Params, share: float, common: np.ndarray) -> Params:
    """MTM's scores s, linear in its output table and bias, as `share` · s + (1 − `share`) · those of the unigram."""
    head = params["mtm"]
    bias = share * head["bias"]
    bias = bias.at[: len(common)].add((1 - share) * common)
    return params | {"mtm": head | {"table": share * head["table"], "bias": bias}}


def _gains(found: Mapping[str, float], loss: str) -> dict[str, float]:
    """Nats below the unigram loss by field, the largest first."""
    first = f"{loss}/gain/"
    gains = {name.removeprefix(first): gain for name, gain in found.items() if name.startswith(first)}
    return dict(sorted(gains.items(), key=lambda item: -item[1]))


def _learned(found: Mapping[str, float], loss: str) -> bool:
    return max(_gains(found, loss).values(), default=-math.inf) > _LEAST and found[f"{loss}/gain"] > 0


def verdict(found: Mapping[str, float], config: Config) -> tuple[str, list[str]]:
    """What was learned, in one sentence, and a sentence for each loss that learned nothing, with what to try.

    Args:
      found: From `measure`.
      config: Of the run.
    """
    learned, nothing = [], []
    for loss in ("mtm", "mlm"):
        if f"{loss}/gain" not in found:
            continue
        best = list(_gains(found, loss).items())[:_SHOWN]
        if _learned(found, loss):
            fields = ", ".join(f"{name} {gain:.2f}" for name, gain in best if gain > _LEAST)
            said = f"{loss.upper()} is {found[f'{loss}/gain']:.2f} nats below the unigram loss ({fields})"
            if loss == "mtm" and "mtm/share" in found:
                said += f" with {found['mtm/share']:g} of its scores, being too sure of them: it knows rows by heart"
            learned.append(said)
        else:
            gain = found[f"{loss}/gain"]
            nothing.append(
                f"{loss.upper()} has learned nothing ({gain:.2f} nats below the unigram loss): {_HELP[loss]}."
            )
    if "icl" in found:
        size = int(found["batch"])
        top = 0.5 * (found["icl/top1_ctr_to_text"] + found["icl/top1_text_to_ctr"])
        chance = f"{1 / size:.1%} by chance"
        if top > 3 / size:
            learned.append(f"ICL finds the other view of {top:.1%} of the rows among {size:,} ({chance})")
        else:
            by_loss = f"its loss is {found['icl']:.2f}, ln {size} is {math.log(size):.2f}; "
            nothing.append(
                f"ICL is at chance ({by_loss if config.icl.objective == 'infonce' else ''}it finds the other view of "
                f"{top:.1%} of the rows, {chance}): {_HELP['icl']}."
            )
    return "; ".join(learned), nothing
