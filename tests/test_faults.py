"""What becomes of a run when the machine fails it."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import config_file, trained

from alt_jax import cli, stages
from alt_jax.checkpoint import load_params, saved_steps
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError

# No file may grow beyond so many bytes: as on a disk that is full, but for this process alone.
_FULL = """
import resource, sys
from alt_jax import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(cli.run(sys.argv[2:]))
"""


def on_a_full_disk(size: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _FULL, str(size), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def assert_said(found: "subprocess.CompletedProcess[str]", said: str) -> None:
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert said in found.stderr.strip().splitlines()[-1]


def assert_said_beside_others(found: "subprocess.CompletedProcess[str]", said: str) -> None:
    """As `assert_said`, where threads of Orbax and TensorStore print tracebacks that are not ours to stop."""
    assert found.returncode == 2, found.stderr
    assert "alt_jax/cli.py" not in found.stderr, "a traceback of ours"
    _, sentence = found.stderr.split("alt-jax finetune: ")  # once, though perhaps not at the start of a line
    assert sentence.startswith(said)


@pytest.mark.parametrize(("size", "said"), [(100, "cannot be written"), (10_500, "A checkpoint in")])
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
    size: int, said: str, tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    runs = trained(tiny_config)
    command = ["finetune", config_file(tmp_path, runs.config), "--strategy", "ctr", "--init-from", "none"]
    command += ["--run-dir", str(tmp_path / "run")]
    checked = assert_said_beside_others if size > 100 else assert_said
    checked(on_a_full_disk(size, *command), said)
    assert cli.run(command) == 0
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", runs.ctr))
    assert ours == theirs
    params = (load_params(run)[0] for run in (tmp_path / "run", runs.ctr))
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.parametrize("change", ["written to", "gone"])
def test_a_dataset_that_changes_under_a_run_ends_it(
    change: str, tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is saved that was trained on what nobody has checked."""
    folder = shutil.copytree(tiny_dataset.folder, tmp_path / "prepared")
    validate = stages.report

    def change_then_validate(*arguments: Any) -> dict[str, float]:
        path = folder / "train" / "labels-00000-of-00001.npy"
        path.unlink() if change == "gone" else os.utime(path)
        return validate(*arguments)

    monkeypatch.setattr(stages, "report", change_then_validate)
    with pytest.raises(InputError, match=r"labels-00000-of-00001\.npy has changed since it was opened"):
        stages.finetune(tiny_config.override({"data.dir": str(folder)}), "ctr", None, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == []


def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are told apart by their steps, and rates come from a clock that is never set."""
    now, ticks = time.time(), itertools.count()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(ticks))
    runs = trained(tiny_config)
    stages.finetune(runs.config, "ctr", None, tmp_path / "run")
    params = (load_params(run)[0] for run in (tmp_path / "run", runs.ctr))
    jax.tree.map(np.testing.assert_array_equal, *params)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line).get("rows_per_s", 1) for line in lines]
    assert min(rates) > 0


def test_a_full_disk_leaves_no_dataset(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> None:
    config = config_file(tmp_path, tiny_config)
    place = ["--data.dir", str(tmp_path / "prepared")]
    assert_said(on_a_full_disk(2000, "prepare", config, *place), "cannot be written")
    assert not (tmp_path / "prepared").exists()
    assert cli.run(["prepare", config, *place]) == 0
    assert Dataset.load(tmp_path / "prepared").schema.data_hash == tiny_dataset.schema.data_hash


def test_a_full_disk_leaves_no_export_and_no_scores(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> None:
    run, scores = str(trained(tiny_config).ctr), str(tmp_path / "scores.parquet")
    assert_said(on_a_full_disk(1000, "export", run, str(tmp_path / "out")), "cannot be written")
    assert_said(on_a_full_disk(100, "predict", run, tiny_config.data.raw, "-o", scores), "cannot be written")
    assert list(tmp_path.iterdir()) == []
