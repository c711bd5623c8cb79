"""The model card: its facts are the run's, and its code works in a process without alt_jax."""

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from fresh_process import without_alt_jax
from huggingface_hub import ModelCard
from tiny_runs import Runs, trained

from alt_jax import stages
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import feature_ids
from alt_jax.export import PARAMS, export, predict
from alt_jax.tasks import apply_method

FILES = {
    *("params.safetensors", "score.stablehlo", "ctr.onnx", "vocabulary.parquet", "schema.json", "pieces.npz"),
    *("tokenizer", "config.json", "encoder.json", "run.json", "result.json"),
}


@pytest.fixture(scope="module")
def runs(tiny_config: Config, tiny_dataset: Dataset) -> Runs:
    return trained(tiny_config)


@pytest.fixture(scope="module")
def exported(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for name in ("joint", "ctr"):
        export(getattr(runs, name), folder / name)
    return {name: folder / name for name in ("joint", "ctr")}


def rows(config: Config, dataset: Dataset) -> pa.Table:
    return pq.read_table(config.data.raw).take(np.asarray(dataset.test.rows)).drop_columns(["label", "time"])


def run_card(folder: Path, table: pa.Table) -> dict[str, np.ndarray]:
    """What the card's code gives for rows, in a copy of the export."""
    pq.write_table(table, folder / "rows.parquet")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    code = "\n".join(blocks)
    try:
        import torch  # noqa: F401
    except ImportError:  # then transformers has no models, but still their configurations
        code = code.replace("AutoModel", "AutoConfig")
    code += '\nscores = {"probability": probability, "ctr": probability_of_ctr, "ids": ids}\n'
    code += 'np.savez("found.npz", **scores, **{f"params/{name}": value for name, value in params.items()})\n'
    if (folder / "text_tower").exists():
        code += 'assert len(tokenizer) == json.loads(Path("schema.json").read_text())["text"]["vocab_size"]\n'
        code += "assert getattr(text_tower, 'config', text_tower).hidden_size == 16\n"
    without_alt_jax(code, folder)
    with np.load(folder / "found.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", ["joint", "ctr"])
def test_code_gives_the_scores_of_predict(
    tmp_path: Path, name: str, runs: Runs, exported: dict[str, Path], tiny_config: Config, tiny_dataset: Dataset
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(exported[name], folder)
    table = rows(tiny_config, tiny_dataset)
    if name == "ctr":  # which does not read how a new value is spelled
        table = pa.concat_tables([table, pa.table({column: [f"new {column}"] for column in table.column_names})])
    found = run_card(folder, table)
    predict(runs.joint if name == "joint" else runs.ctr, folder / "rows.parquet", folder / "scores.parquet")
    expected = np.asarray(pq.read_table(folder / "scores.parquet")["score"])
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found["probability"], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["ids"][:60], np.asarray(tiny_dataset.test.values))
    for key, tensor in safetensors.numpy.load_file(exported[name] / PARAMS).items():
        np.testing.assert_array_equal(found[f"params/{key}"], tensor)
    if name == "ctr":
        np.testing.assert_allclose(found["ctr"], expected, rtol=0, atol=1e-5)
        return
    opened = stages.load_finetuned(runs.joint)
    ids = feature_ids(tiny_dataset.pieces, np.asarray(tiny_dataset.test.values))
    alone = {key: opened.params[key] for key in ("ctr", "ctr_logit")}
    logit = apply_method(opened.task.model, alone, "score", "ctr", jnp.asarray(ids), None, None)
    np.testing.assert_allclose(found["ctr"], 1 / (1 + np.exp(-np.asarray(logit))), rtol=0, atol=1e-5)
    assert np.abs(found["ctr"] - expected).max() > 1e-4  # both towers are another score


@pytest.mark.parametrize("name", ["joint", "ctr"])
def test_facts_are_the_runs(name: str, runs: Runs, exported: dict[str, Path], tiny_dataset: Dataset) -> None:
    loaded = ModelCard.load(exported[name] / "README.md")
    result = json.loads((exported[name] / "result.json").read_text(encoding="utf-8"))
    found = {each.metric_type: each.metric_value for each in loaded.data.eval_results}
    assert found == {"roc_auc": result["test"]["auc"], "log_loss": result["test"]["logloss"]}
    assert loaded.data.library_name == "alt-jax"
    text = loaded.text
    for split in tiny_dataset.schema.splits.values():
        assert split.hash in text
    assert tiny_dataset.schema.data_hash in text
    assert tiny_dataset.schema.vocabulary_hash in text
    valid, test = (result[part] for part in ("valid", "test"))
    assert f"| AUC | {valid['auc']:.4f} | {test['auc']:.4f} |" in text
    assert f"| rows | 60 ({valid['positives']} positive) | 60 ({test['positives']} positive) |" in text
    assert test["unseen_user_auc"] is None
    assert "| AUC on users that training never saw | undefined (0 rows) | undefined (0 rows) |" in text
    assert f"`finetune.{name}.batch_size` | `16`" in text
    assert ("from the pretraining `pretrain`" in text) == (name == "joint")
    assert ("without pretraining" in text) == (name == "ctr")
    assert str(runs.joint.parent) not in text
    listed = set(re.findall(r"^- `([^`]+)`: ", text.split("## Files")[1], re.MULTILINE))
    present = {path.name for path in exported[name].iterdir()} - {"README.md"}
    assert listed == present == FILES | ({"text_tower"} if name == "joint" else set())


def test_an_undefined_auc_is_left_out_of_the_front_matter(
    tmp_path: Path, runs: Runs, exported: dict[str, Path]
) -> None:
    from alt_jax.card import card
    from alt_jax.run import Run

    run = Run.load(runs.ctr)
    result = run.result()
    assert result is not None
    result["test"] |= {"auc": None, "logloss": 0.5}
    (tmp_path / "README.md").write_text(card(run, result, {}, []), encoding="utf-8")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert [each.metric_type for each in loaded.data.eval_results] == ["log_loss"]
    assert "| undefined |" in loaded.text
