"""What becomes of a run when the machine fails it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import config_file, trained

from alt_jax import cli
from alt_jax.checkpoint import load_params
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset

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


@pytest.mark.parametrize(("size", "said"), [(100, "cannot be written"), (10_500, "A checkpoint in")])
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
    size: int, said: str, tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    runs = trained(tiny_config)
    command = ["finetune", config_file(tmp_path, runs.config), "--strategy", "ctr", "--init-from", "none"]
    command += ["--run-dir", str(tmp_path / "run")]
    assert_said(on_a_full_disk(size, *command), said)
    assert cli.run(command) == 0
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", runs.ctr))
    assert ours == theirs
    params = (load_params(run)[0] for run in (tmp_path / "run", runs.ctr))
    jax.tree.map(np.testing.assert_array_equal, *params)


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
