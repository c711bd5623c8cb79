"""What a config leaves open: what it is fitted to, that it is stored, and that the same command goes on."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alt_jax import preflight, recipe, stages
from alt_jax.config import FITTED, Config, FinetuneConfig
from alt_jax.run_files import Origin


@pytest.mark.parametrize(("rows", "epochs"), [(3_200, 30), (80_000, 30), (776_000, 4), (10**8, 3)])
def test_a_pretraining_takes_about_as_many_updates_whatever_the_rows(rows, epochs):
    config = Config().override({"pretrain.batch_size": 512})
    assert recipe.pretraining(config, rows).pretrain.epochs == epochs
    assert recipe.pretraining(config.override({"pretrain.epochs": 7}), rows).pretrain.epochs == 7


@pytest.mark.parametrize(("rows", "size"), [(80_000, 1024), (4_000, 256), (800, 64), (50, 50), (1, 1)])
def test_few_labels_have_small_batches(rows, size):
    assert recipe.finetuning(Config(), "ctr", rows, False).finetune.ctr.batch_size == size


@given(st.integers(1, 10**8), st.booleans(), st.sampled_from(["ctr", "plm", "joint"]))
def test_all_is_fitted_and_what_is_given_stays(rows, pretrained, strategy):
    found = recipe.finetuning(Config(), strategy, rows, pretrained)
    values: FinetuneConfig = getattr(found.finetune, strategy)
    assert None not in dataclasses.asdict(values).values()
    assert values.l2 == pytest.approx(24 / rows if pretrained else min(160 / rows, 2e-3), rel=0.05)
    assert values.l2_towards == ("start" if pretrained else "zero")
    strong = Config().override({f"finetune.{strategy}.l2": 0.1})
    assert getattr(recipe.finetuning(strong, strategy, rows, pretrained).finetune, strategy).l2_towards == "zero"
    given = {
        f"finetune.{strategy}.{name}": getattr(values, name) for name in ("batch_size", "epochs", "l2", "l2_towards")
    }
    assert all(FITTED.fullmatch(name) for name in given)
    assert found == recipe.finetuning(found, strategy, 1 + rows // 2, not pretrained)
    assert found.ctr.dropout == (0.5 if rows < 10_000 else 0)
    others = set(found.differences(Config())) - {*given, "ctr.dropout"}
    assert not others


def test_a_run_stores_what_was_fitted_and_its_command_goes_on(tmp_path, tiny_config, tiny_dataset):
    open_values = dict.fromkeys(("batch_size", "epochs", "l2", "l2_towards"))
    config = tiny_config.override({f"finetune.ctr.{name}": value for name, value in open_values.items()})
    config = config.override({"finetune.ctr.epochs": 1, "ctr.dropout": None, "tracking": ()})
    result = stages.finetune(config, "ctr", None, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["finetune"]["ctr"]
    assert (stored["batch_size"], stored["epochs"], stored["l2"], stored["l2_towards"]) == (64, 1, 0.002, "zero")
    preflight.train(config, Origin("finetune", "ctr"), tmp_path / "run")
    again = stages.finetune(config, "ctr", None, tmp_path / "run")
    assert again["test"]["auc"] == result["test"]["auc"]
    # Another value is another run, and so is another number of labels.
    for changed in ({"finetune.ctr.batch_size": 32}, {"finetune.label_share": 0.5}):
        with pytest.raises(stages.InputError, match="was started with finetune"):
            preflight.train(config.override(changed), Origin("finetune", "ctr"), tmp_path / "run")
