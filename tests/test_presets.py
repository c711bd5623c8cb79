"""Presets: what they say is what METHOD and the released code say, and they hold under the command line."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import config_file

from alt_jax import presets, stages
from alt_jax.cli import run
from alt_jax.config import Config
from alt_jax.errors import STOPPED, Stopped
from alt_jax.optim import gaussian_prior
from alt_jax.run import Run
from alt_jax.train import Plan


def test_the_default_preset_undoes_the_others_method():
    for name in presets.PRESETS:
        back = presets.apply(presets.apply(Config(), name), "default")
        changed = back.differences(Config())
        assert all(value.startswith(("pretrain.", "finetune.")) for value in changed)


def test_the_paper_is_the_published_recipe():
    paper = presets.apply(Config(), "paper")
    assert (paper.loss.icl, paper.loss.mlm, paper.loss.mtm) == (1, 1, 1)
    assert (paper.icl.temperature, paper.icl.normalize, paper.icl.duplicates) == (0.7, False, "negative")
    assert (paper.mask.rate, paper.mlm.unit, paper.mtm.method, paper.mtm.noise) == (0.15, "field", "nce", 25)
    assert (paper.pretrain.epochs, paper.pretrain.learning_rate, paper.pretrain.weight_decay) == (30, 1e-4, 1e-3)
    assert paper.finetune.joint.alpha == 0.5


def test_l2_of_the_paper_is_that_beside_a_sum_over_the_batch():
    """The released code adds 1e-3 Σw² to the BCE summed over 1,024 rows; a mean is 1,024 times less."""
    recipe = presets.apply(Config(), "paper").finetune.ctr
    rng = np.random.default_rng(0)
    rows, w = rng.normal(size=(recipe.batch_size, 3)), rng.normal(size=3)
    released = rows.sum(axis=0) + 2 * 1e-3 * w
    prior = gaussian_prior(recipe.l2, "zero")
    ours, _ = prior.update(jnp.asarray(rows.mean(axis=0)), prior.init(jnp.asarray(w)), jnp.asarray(w))
    np.testing.assert_allclose(1024 * np.asarray(ours), released, rtol=1e-5)


def test_the_released_code_differs_from_the_paper_by_its_quirks():
    paper, released = (presets.apply(Config(), name) for name in ("paper", "released_code"))
    assert set(released.differences(paper)) == {"loss.icl", "mtm.attention", "finetune.joint.alpha"}
    assert released.loss.icl == 1 / 8


def test_an_option_beside_a_preset_holds(tmp_path, tiny_config, tiny_dataset, monkeypatch):
    """In what a run records before it trains, and in what it trains by."""
    begun = []

    def begin(*arguments, **_):
        begun.append([argument for argument in arguments if isinstance(argument, Run | Plan)])
        raise Stopped("here")

    monkeypatch.setattr(stages, "train", begin)
    config = config_file(tmp_path, tiny_config)
    flags = ["--pretrain.epochs", "1", "--pretrain.batch-size", "16", "--icl.temperature", "0.5"]
    assert run(["pretrain", config, "--preset", "paper", *flags, "--run-dir", str(tmp_path / "run")]) == STOPPED
    [[begins, plan]] = begun
    assert begins.config.mtm.method == "nce"
    assert begins.config.icl.temperature == 0.5
    assert begins.config.pretrain.epochs == plan.epochs == 1
    assert plan.batch_size == 16


@pytest.mark.parametrize("flags", [["--preset", "papre"], ["--preset=papre"], ["--preset=paper", "--preset", "papre"]])
def test_an_unknown_preset_is_refused(flags, tmp_path, tiny_config, capsys):
    """Of several, the last counts, as of any option."""
    config = config_file(tmp_path, tiny_config)
    assert run(["pretrain", config, *flags, "--run-dir", str(tmp_path / "run")]) == 2
    assert "there is no preset 'papre'; did you mean 'paper'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_every_value_of_a_preset_exists(name):
    assert set(presets.PRESETS[name]) <= set(Config().flat())
