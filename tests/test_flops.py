import dataclasses

import jax
import numpy as np
import pytest

from alt_jax import flops
from alt_jax.bridge import encoder_config
from alt_jax.config import Config, CTRConfig, LossConfig, TextConfig
from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset
from alt_jax.models.alt import ALT
from alt_jax.optim import pretrain_schedules, rates_at
from alt_jax.pretraining import Pretrain
from alt_jax.tasks import Finetune, Task

ROWS = 64


@pytest.fixture
def wide(tiny_config: Config) -> Config:
    """Wide enough that products outweigh what is done to single numbers."""
    text = TextConfig(vocab_size=120, hidden=128, layers=2, heads=2, intermediate=512, dropout=0.0, max_length=64)
    ctr = CTRConfig(dim=16, hidden=(256, 128), dropout=0.0, tower="deepfm")
    return dataclasses.replace(tiny_config, text=text, ctr=ctr).override({"pretrain.batch_size": ROWS})


def by_xla(task: Task, dataset: Dataset) -> float:
    """What XLA counts of loss and gradient, whose program it has not optimised."""
    batch = batch_at(dataset.train, seed=0, step=0, batch_size=ROWS)
    params = jax.eval_shape(task.init, jax.random.key(0))

    def step(params, pieces, batch, key):
        return jax.grad(lambda p: task.loss(p, pieces, batch, key)[0])(params)

    analysis = jax.jit(step).lower(params, dataset.pieces, batch, jax.random.key(0)).cost_analysis()
    return float(analysis["flops"])


# XLA counts every operation, and products of padding too: 64 rows of this data have a bound on their tokens a fifth
# above the mean, and what is done to single numbers adds to that. It can never be less than what has to be.
@pytest.mark.parametrize(("strategy", "pooling"), [("plm", "mean"), ("joint", "cls")])
def test_finetuning(strategy, pooling, wide, tiny_dataset):
    wide = wide.override({"text.pooling": pooling})
    lengths = tiny_dataset.prompt_tokens()
    task = Finetune(ALT(wide, tiny_dataset.schema, encoder_config(wide.text, tiny_dataset.schema)), strategy, lengths)
    counted = sum(flops.finetune_flops(task, ROWS, lengths).values())
    assert counted <= by_xla(task, tiny_dataset) <= 1.5 * counted


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(icl=0, mtm=0)])
def test_pretraining(loss, wide, tiny_dataset):
    config = dataclasses.replace(wide, loss=loss)
    task = Pretrain.build(config, tiny_dataset, encoder_config(config.text, tiny_dataset.schema))
    parts = flops.pretrain_flops(task, ROWS)
    assert ("MTM head" in parts) == bool(loss.mtm)
    counted = sum(parts.values())
    assert counted <= by_xla(task, tiny_dataset) <= 1.6 * counted


def test_rate_of_the_device():
    """Within what any machine can do, and measured once."""
    rate = flops.matrix_rate("float32")
    assert 1e8 < rate < 1e16
    assert flops.matrix_rate("float32") == rate


def test_learning_rates_of_an_update(wide):
    """The first update has the peak where there is no warm-up; cosine, by hand."""
    steps, peak = 100, wide.pretrain.learning_rate
    schedules = pretrain_schedules(wide.pretrain, steps)
    for step in (1, 51, 100):
        found = rates_at(schedules, step)["rest"]
        assert found == pytest.approx(peak * (1 + np.cos(np.pi * (step - 1) / steps)) / 2, rel=1e-5, abs=1e-6 * peak)
