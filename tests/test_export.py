import dataclasses
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from flax import traverse_util
from fresh_process import without_alt_jax
from huggingface_hub import ModelCard
from tiny_runs import Runs, trained
from transformers import AutoConfig, AutoTokenizer

import alt_jax
from alt_jax import cli, stages
from alt_jax.checkpoint import load_params
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import feature_ids
from alt_jax.errors import InputError
from alt_jax.evaluate import Probabilities, report
from alt_jax.export import PARAMS, export
from alt_jax.models import huggingface
from alt_jax.run import Run
from alt_jax.scorer import predict
from alt_jax.sharding import make_mesh, replicate
from alt_jax.tasks import apply_method


@pytest.fixture(scope="module")
def runs(tiny_config: Config, tiny_dataset: Dataset) -> Runs:
    return trained(tiny_config)


@pytest.fixture(scope="module")
def exported(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "deep" / "joint"
    export(runs.joint, out)
    return out


@pytest.fixture(scope="module")
def raw(tiny_config: Config, tiny_dataset: Dataset) -> pa.Table:
    """The raw rows of the test part, in its order, without their labels."""
    table = pq.read_table(tiny_config.data.raw).take(np.asarray(tiny_dataset.test.rows))
    return table.drop_columns(["label", "time"])


@pytest.fixture(scope="module")
def evaluated(runs: Runs, tiny_dataset: Dataset) -> np.ndarray:
    """The scores that `evaluate` sees, row by row."""
    opened = stages.load_finetuned(runs.joint)
    mesh = make_mesh()
    scorer = Probabilities(opened.task, mesh, tiny_dataset.pieces)
    return scorer(replicate(mesh, opened.params), tiny_dataset.test.values)


def test_several_runs_are_averaged(runs: Runs, tiny_dataset: Dataset, evaluated: np.ndarray):
    other = stages.load_finetuned(runs.ctr)
    mesh = make_mesh()
    probabilities = Probabilities(other.task, mesh, tiny_dataset.pieces)
    theirs = probabilities(replicate(mesh, other.params), tiny_dataset.test.values)
    found = stages.evaluate([runs.joint, runs.ctr], "test")
    expected = report(tiny_dataset, "test", (evaluated + theirs) / 2)
    assert stages.to_json(found) == stages.to_json(expected)
    assert found["auc"] not in (stages.evaluate([folder], "test")["auc"] for folder in (runs.joint, runs.ctr))


def write(table: pa.Table, path: Path) -> Path:
    (pq.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv)(table, path)
    return path


def read(path: Path) -> np.ndarray:
    table = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    assert table.column_names == ["score"]
    return np.asarray(table["score"])


@pytest.mark.parametrize("name", ["joint", "ctr"])
def test_evaluate_gives_the_numbers_of_result_json(runs: Runs, name: str) -> None:
    folder: Path = getattr(runs, name)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for split in ("valid", "test"):
        assert json.loads(stages.to_json(stages.evaluate([folder], split))) == result[split]
    assert result["test"].keys() >= {"auc", "logloss", "gauc", "ece", "rows", "unseen_item_auc", "unseen_user_auc"}
    assert result["test"]["rows"] == 60


@pytest.mark.parametrize("source", ["run", "export"])
@pytest.mark.parametrize("suffixes", [(".csv", ".parquet"), (".parquet", ".csv")], ids=["csv", "parquet"])
def test_predict_gives_the_scores_of_the_evaluation(
    tmp_path: Path,
    runs: Runs,
    exported: Path,
    raw: pa.Table,
    evaluated: np.ndarray,
    source: str,
    suffixes: tuple[str, str],
) -> None:
    rows = write(raw, tmp_path / f"rows{suffixes[0]}")
    out = tmp_path / "made" / f"scores{suffixes[1]}"
    assert predict(runs.joint if source == "run" else exported, rows, out) == len(evaluated)
    np.testing.assert_allclose(read(out), evaluated, rtol=1e-6)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_export_needs_neither_run_nor_dataset(
    tmp_path: Path, exported: Path, raw: pa.Table, evaluated: np.ndarray
) -> None:
    """A copy elsewhere, whose config names a dataset that does not exist."""
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    config = Config.from_json((moved / "config.json").read_text(encoding="utf-8"), "config.json")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir="/gone", raw="/gone"))
    (moved / "config.json").write_text(config.to_json(), encoding="utf-8")
    predict(moved, write(raw, tmp_path / "rows.csv"), tmp_path / "scores.csv")
    np.testing.assert_allclose(read(tmp_path / "scores.csv"), evaluated, rtol=1e-6)


def test_unseen_values_score(tmp_path: Path, exported: Path, raw: pa.Table, evaluated: np.ndarray) -> None:
    """New users, ages and titles, one of them very long, among known rows, whose scores they leave alone."""
    new = {name: [f"new {name}"] * 2 for name in raw.column_names}
    new["title"] = ["", 'Ärger, "quoted" ' * 300]
    table = pa.concat_tables([raw.slice(0, 3), pa.table(new)])
    predict(exported, write(table, tmp_path / "rows.parquet"), tmp_path / "scores.parquet")
    scores = read(tmp_path / "scores.parquet")
    np.testing.assert_allclose(scores[:3], evaluated[:3], rtol=1e-5)
    assert np.all((scores > 0) & (scores < 1))


def test_no_rows_score_to_no_scores(tmp_path: Path, exported: Path, raw: pa.Table) -> None:
    assert predict(exported, write(raw.slice(0, 0), tmp_path / "rows.parquet"), tmp_path / "scores.csv") == 0


def test_safetensors_hold_every_parameter(runs: Runs, exported: Path) -> None:
    result = json.loads((exported / "result.json").read_text(encoding="utf-8"))
    params, _ = load_params(runs.joint, result["best_step"])
    expected = traverse_util.flatten_dict(params, sep="/")
    found = safetensors.numpy.load_file(exported / PARAMS)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape
        np.testing.assert_array_equal(tensor, expected[name])
    for name in ("config.json", "schema.json", "encoder.json", "run.json"):
        assert (exported / name).read_bytes() == (runs.joint / name).read_bytes()


def test_text_tower_is_a_hugging_face_folder(runs: Runs, exported: Path, tiny_dataset: Dataset) -> None:
    folder = exported / "text_tower"
    assert AutoConfig.from_pretrained(folder).hidden_size == 16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == tiny_dataset.schema.text.vocab_size
    encoder = huggingface.load_config(folder)
    assert encoder == Run.load(runs.joint).encoder
    weights = traverse_util.flatten_dict(huggingface.load_weights(folder, encoder), sep="/")
    tensors = safetensors.numpy.load_file(exported / PARAMS)
    assert {f"text/{name}" for name in weights} == {name for name in tensors if name.startswith("text/")}
    for name, tensor in weights.items():
        np.testing.assert_array_equal(tensor, tensors[f"text/{name}"])


def test_ctr_has_no_text_tower(tmp_path: Path, runs: Runs) -> None:
    export(runs.ctr, tmp_path / "out")
    assert not (tmp_path / "out" / "text_tower").exists()
    assert not any(name.startswith("text") for name in safetensors.numpy.load_file(tmp_path / "out" / PARAMS))


@pytest.fixture(scope="module")
def both(runs: Runs, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of the two strategies."""
    out = tmp_path_factory.mktemp("exported") / "ctr"
    export(runs.ctr, out)
    return {"joint": exported, "ctr": out}


FILES = {
    *("params.safetensors", "score.stablehlo", "ctr.onnx", "vocabulary.parquet", "schema.json", "pieces.npz"),
    *("tokenizer", "spelling.py", "config.json", "encoder.json", "run.json", "result.json"),
}


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
def test_code_of_the_card_gives_the_scores_of_predict(
    tmp_path: Path, name: str, runs: Runs, both: dict[str, Path], raw: pa.Table, tiny_dataset: Dataset
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(both[name], folder)
    table = raw
    if name == "ctr":  # which does not read how a new value is spelled
        table = pa.concat_tables([table, pa.table({column: [f"new {column}"] for column in table.column_names})])
    found = run_card(folder, table)
    predict(runs.joint if name == "joint" else runs.ctr, folder / "rows.parquet", folder / "scores.parquet")
    expected = np.asarray(pq.read_table(folder / "scores.parquet")["score"])
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found["probability"], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["ids"][:60], np.asarray(tiny_dataset.test.values))
    for key, tensor in safetensors.numpy.load_file(both[name] / PARAMS).items():
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
def test_facts_of_the_card_are_the_runs(name: str, runs: Runs, both: dict[str, Path], tiny_dataset: Dataset) -> None:
    loaded = ModelCard.load(both[name] / "README.md")
    result = json.loads((both[name] / "result.json").read_text(encoding="utf-8"))
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
    present = {path.name for path in both[name].iterdir()} - {"README.md"}
    assert listed == present == FILES | ({"text_tower"} if name == "joint" else set())


def test_numpy_alone_scores_a_factorization_machine(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> None:
    """From the names of its parameters and nothing else."""
    ctr = dataclasses.replace(tiny_config.ctr, tower="fm", options=())
    stages.finetune(dataclasses.replace(tiny_config, ctr=ctr), "ctr", None, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    trained_fm = stages.load_finetuned(tmp_path / "run")
    mesh = make_mesh()
    values = np.asarray(tiny_dataset.test.values)
    expected = Probabilities(trained_fm.task, mesh, tiny_dataset.pieces)(replicate(mesh, trained_fm.params), values)
    np.save(tmp_path / "out" / "ids.npy", np.asarray(feature_ids(tiny_dataset.pieces, values)))
    code = """
import numpy as np
from safetensors.numpy import load_file

params, ids = load_file("params.safetensors"), np.load("ids.npy")
v, w = params["ctr/embedding/embedding"][ids], params["ctr_logit/linear/embedding"][ids]
logit = params["ctr_logit/readout/bias"] + w.sum((1, 2))
for i in range(ids.shape[1]):
    for j in range(i):
        logit = logit + (v[:, i] * v[:, j]).sum(1)
np.save("scores.npy", 1 / (1 + np.exp(-logit)))
"""
    without_alt_jax(code, tmp_path / "out")
    np.testing.assert_allclose(np.load(tmp_path / "out" / "scores.npy"), expected, rtol=0, atol=1e-5)


def test_tensors_of_the_text_tower_are_those_of_transformers(exported: Path) -> None:
    """Names and shapes that a BertModel takes, written out by hand for the goldens, which PyTorch has read."""
    golden = runpy.run_path(str(Path(__file__).parent / "goldens" / "tiny_towers.py"))
    config = json.loads((exported / "text_tower" / "config.json").read_text(encoding="utf-8"))
    found = safetensors.numpy.load_file(exported / "text_tower" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == golden["shapes"](config)


@pytest.mark.parametrize("reason", ["missing", "untranslated"])
def test_onnx_is_left_out_with_the_reason(
    tmp_path: Path, runs: Runs, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason == "missing":
        monkeypatch.delitem(sys.modules, "alt_jax.onnx", raising=False)
        monkeypatch.delattr(alt_jax, "onnx", raising=False)
        monkeypatch.setitem(sys.modules, "onnx", None)
        expected = "left out ctr.onnx: it needs the package onnx; pip install 'alt-jax[onnx]' and export to "
    else:
        from alt_jax import onnx

        monkeypatch.delitem(onnx._RULES, "tanh")
        expected = "left out ctr.onnx: The CTR tower 'dcn_mix' uses JAX' operation 'tanh'"
    export(runs.ctr, tmp_path / "out")
    assert expected in capsys.readouterr().out
    assert not (tmp_path / "out" / "ctr.onnx").exists()
    assert (tmp_path / "out" / "score.stablehlo").is_file()
    assert "onnx" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8").replace("alt_jax.onnx", "")


def test_existing_folder_is_not_written_to(tmp_path: Path, runs: Runs) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already exists"):
        export(runs.joint, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_same_export_again_changes_nothing(tmp_path: Path, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """As after a kill that came when all was done; another run's export is refused."""
    assert export(runs.ctr, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert not export(runs.ctr, tmp_path / "out")
    assert cli.run(["export", str(runs.ctr), str(tmp_path / "out")]) == 0
    assert "is left as it is; remove it to write it anew" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(InputError, match="already exists"):
        export(runs.joint, tmp_path / "out")


def test_nothing_is_left_when_the_output_cannot_be_written(
    tmp_path: Path, runs: Runs, exported: Path, raw: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write(raw, tmp_path / "rows.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export(runs.joint, tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot be written"):
        predict(exported, rows, tmp_path / "file" / "scores.csv")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alt_jax.export.shutil.copy", full)
    with pytest.raises(InputError, match="No space left"):
        export(runs.joint, tmp_path / "out")
    monkeypatch.setattr("alt_jax.scorer.pq.write_table", full)
    with pytest.raises(InputError, match="No space left"):
        predict(exported, rows, tmp_path / "scores.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "rows.csv"]


def test_wrong_names_are_refused_before_any_work(tmp_path: Path, exported: Path, raw: pa.Table) -> None:
    with pytest.raises(InputError, match=r"should end in \.parquet or \.csv"):
        predict(exported, tmp_path / "rows.csv", tmp_path / "scores.txt")
    with pytest.raises(InputError, match="does not exist"):
        predict(exported, tmp_path / "rows.csv", tmp_path / "scores.csv")
    rows = write(raw, tmp_path / "rows.csv")
    before = rows.read_bytes()
    with pytest.raises(InputError, match=r"rows\.csv is the file of the rows; give another place"):
        predict(exported, rows, tmp_path / "." / "rows.csv")
    assert rows.read_bytes() == before


def test_damaged_export_is_refused(tmp_path: Path, exported: Path, raw: pa.Table) -> None:
    rows = write(raw, tmp_path / "rows.csv")
    cut = tmp_path / "cut"
    shutil.copytree(exported, cut)
    (cut / PARAMS).write_bytes((exported / PARAMS).read_bytes()[:-100])
    with pytest.raises(InputError, match=r"params\.safetensors is damaged"):
        predict(cut, rows, tmp_path / "scores.csv")
    tensors = safetensors.numpy.load_file(exported / PARAMS)
    for name in ("ctr/embedding/embedding", "fusion/alpha"):
        fewer = {key: value for key, value in tensors.items() if key != name}
        assert len(fewer) < len(tensors), sorted(tensors)
        safetensors.numpy.save_file(fewer, cut / PARAMS)
        with pytest.raises(InputError, match=name):
            predict(cut, rows, tmp_path / "scores.csv")
    tensors["fusion/alpha"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(tensors, cut / PARAMS)
    with pytest.raises(InputError, match="fusion/alpha"):
        predict(cut, rows, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()
