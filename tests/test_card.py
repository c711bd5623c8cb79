"""The model card of runs that only the numbers of are made up; tests/test_export.py has those of trained ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from alt_jax import bridge
from alt_jax.card import card
from alt_jax.config import Config, Strategy
from alt_jax.data.dataset import Dataset
from alt_jax.run import Origin, Run

METRICS = {"rows": 60, "positives": 20, "auc": 0.75, "gauc": 0.5, "logloss": 0.5, "ece": 0.0625} | {
    f"unseen_{what}_{name}": value for what in ("user", "item") for name, value in (("rows", 12), ("auc", 0.625))
}


def written(
    folder: Path,
    config: Config,
    dataset: Dataset,
    strategy: Strategy,
    present: tuple[str, ...] = (),
    **test: float | None,
) -> ModelCard:
    encoder = bridge.encoder_config(config.text, dataset.schema)
    run = Run(folder, Origin("finetune", strategy, "/somewhere/else/aligned"), config, dataset.schema, encoder)
    result = {"seed": 7, "best_step": 1234, "valid": METRICS, "test": METRICS | test}
    params = {"a": np.zeros((3, 500), np.float32), "b": np.zeros((), np.float32)}
    (folder / "README.md").write_text(card(run, result, params, present), encoding="utf-8")
    return ModelCard.load(folder / "README.md")


def test_an_undefined_metric_is_named_and_left_out_of_the_front_matter(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    whole = written(tmp_path, tiny_config, tiny_dataset, "ctr")
    assert {each.metric_type: each.metric_value for each in whole.data.eval_results} == {
        "roc_auc": 0.75,
        "log_loss": 0.5,
    }
    assert "undefined" not in whole.text
    lacking = written(tmp_path, tiny_config, tiny_dataset, "ctr", auc=None, unseen_item_auc=None)
    assert [each.metric_type for each in lacking.data.eval_results] == ["log_loss"]
    assert "| AUC | 0.7500 | undefined |" in lacking.text
    assert "New items: 12 of 60 test rows have one, AUC there undefined." in lacking.text
    assert "A metric is undefined where" in lacking.text


@pytest.mark.parametrize("strategy", ["ctr", "plm", "joint"])
def test_it_says_what_the_strategy_has(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, strategy: Strategy
) -> None:
    text = written(tmp_path, tiny_config, tiny_dataset, strategy).text
    assert (
        f"Strategy `{strategy}`, from the pretraining `aligned`, seed 7; 1,501 parameters, those of step 1,234" in text
    )
    assert "/somewhere" not in text
    assert (f"`ctr.tower` | `{tiny_config.ctr.tower}`" in text) == (strategy != "plm")
    assert ("`encoder.hidden_size` | `16`" in text) == (strategy != "ctr")


def test_only_files_that_are_there_are_spoken_of(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> None:
    text = written(tmp_path, tiny_config, tiny_dataset, "joint", present=("params.safetensors",)).text
    assert not any(word in text for word in ("stablehlo", "ctr.onnx", "AutoModel"))
    text = written(tmp_path, tiny_config, tiny_dataset, "joint", present=("ctr.onnx", "text_tower")).text
    assert "The CTR tower's own scores, not those of both towers" in text
    assert "AutoModel" in text


def test_a_bar_in_a_name_does_not_end_a_cell(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> None:
    schema = tiny_dataset.schema
    user, gender, *others = schema.fields
    fields = (user, dataclasses.replace(gender, name="Gender | sex"), *others)
    odd = dataclasses.replace(tiny_dataset, schema=dataclasses.replace(schema, fields=fields))
    assert r"| Gender \| sex | `gender` |" in written(tmp_path, tiny_config, odd, "ctr").text
