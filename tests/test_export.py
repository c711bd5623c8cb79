import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from flax import traverse_util
from tiny_runs import Runs, trained
from transformers import AutoConfig, AutoTokenizer

from alt_jax import stages
from alt_jax.checkpoint import load_params
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.evaluate import Probabilities, report
from alt_jax.export import PARAMS, export
from alt_jax.models import huggingface
from alt_jax.run import Run
from alt_jax.scorer import predict
from alt_jax.sharding import make_mesh, replicate


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


def test_existing_folder_is_not_written_to(tmp_path: Path, runs: Runs) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already exists"):
        export(runs.joint, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_same_export_again_changes_nothing(tmp_path: Path, runs: Runs) -> None:
    """As after a kill that came when all was done; another run's export is refused."""
    export(runs.ctr, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    export(runs.ctr, tmp_path / "out")
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


def test_wrong_names_are_refused_before_any_work(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(InputError, match=r"should end in \.parquet or \.csv"):
        predict(exported, tmp_path / "rows.csv", tmp_path / "scores.txt")
    with pytest.raises(InputError, match="does not exist"):
        predict(exported, tmp_path / "rows.csv", tmp_path / "scores.csv")


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
