"""What becomes of a run when the machine fails it."""

import dataclasses
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import config_file, trained

from alt_jax import cli, export, stages
from alt_jax.checkpoint import load_params, saved_steps
from alt_jax.config import Config
from alt_jax.data import storage
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError, Stopped
from alt_jax.partial import beside

# No file may grow beyond so many bytes: as on a disk that is full, but for this process alone.
_FULL = """
import resource, sys
from alt_jax import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(cli.run(sys.argv[2:]))
"""


# The named file is cut when the first epoch begins.
_CUT = """
import os, sys
from alt_jax import cli, train
read = train.batch_at
def cut_then_read(*arguments, **named):
    if named["step"] == 3:
        os.truncate(sys.argv[1], 200)
    return read(*arguments, **named)
train.batch_at = cut_then_read
sys.exit(cli.run(sys.argv[2:]))
"""


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    """Parameters bit by bit, metrics line by line, and the result."""
    params = (load_params(run)[0] for run in (one, two))
    jax.tree.map(np.testing.assert_array_equal, *params)
    lines = ([{k: v for k, v in record.items() if k != "rows_per_s"} for record in records(run)] for run in (one, two))
    assert next(lines) == next(lines)
    assert result(one) == result(two)


def result(run: Path) -> dict[str, Any]:
    """What `result.json` holds but for the machine and the time that it took."""
    found: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert found.pop("machine")["seconds"] > 0
    return found


def on_a_full_disk(size: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _FULL, str(size), *arguments]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # which it may not have room for, and would not notice
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


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


@pytest.mark.parametrize(
    ("size", "said"),
    [pytest.param(100, "cannot be written", marks=pytest.mark.slow), (10_500, "A checkpoint in")],
)
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
    size: int, said: str, tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    runs = trained(tiny_config)
    command = ["finetune", config_file(tmp_path, runs.config), "--strategy", "ctr", "--init-from", "none"]
    command += ["--run-dir", str(tmp_path / "run")]
    checked = assert_said_beside_others if size > 100 else assert_said
    checked(on_a_full_disk(size, *command), said)
    assert cli.run(command) == 0
    assert result(tmp_path / "run") == result(runs.ctr)
    params = (load_params(run)[0] for run in (tmp_path / "run", runs.ctr))
    jax.tree.map(np.testing.assert_array_equal, *params)


def replaced(path: Path) -> None:
    """As another `prepare` or a copy would do it."""
    other = path.with_name("other")
    shutil.copyfile(path, other)
    other.replace(path)


CHANGES = {"written to": os.utime, "gone": Path.unlink, "replaced": replaced, "cut": lambda path: os.truncate(path, 99)}


@pytest.mark.parametrize(
    ("change", "file"),
    [
        ("written to", "train/labels-00000-of-00001.npy"),
        ("replaced", "valid/values-00000-of-00001.npy"),
        ("cut", "pieces.npz"),
        ("gone", "config.json"),
        pytest.param("gone", "train/labels-00000-of-00001.npy", marks=pytest.mark.slow),
        pytest.param("replaced", "train/values-00000-of-00001.npy", marks=pytest.mark.slow),
        pytest.param("replaced", "schema.json", marks=pytest.mark.slow),
        pytest.param("written to", "vocabulary.parquet", marks=pytest.mark.slow),
    ],
)
def test_a_dataset_that_changes_under_a_run_ends_it(
    change: str, file: str, tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is saved that was trained or validated on what nobody has checked."""
    folder = shutil.copytree(tiny_dataset.folder, tmp_path / "prepared")
    validate = stages.report

    def change_then_validate(*arguments: Any) -> dict[str, float]:
        CHANGES[change](folder / file)
        return validate(*arguments)

    monkeypatch.setattr(stages, "report", change_then_validate)
    with pytest.raises(InputError, match=rf"{re.escape(file)} has changed since it was opened") as caught:
        stages.finetune(tiny_config.override({"data.dir": str(folder)}), "ctr", None, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert saved_steps(tmp_path / "run") == []


def test_a_test_part_that_changes_while_it_is_scored_gives_no_result(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_dataset.folder, tmp_path / "prepared")
    score = stages.report

    def change_then_score(dataset: Dataset, split: str, probability: np.ndarray) -> dict[str, float]:
        if split == "test":
            os.utime(folder / "test" / "labels-00000-of-00001.npy")
        return score(dataset, split, probability)

    monkeypatch.setattr(stages, "report", change_then_score)
    with pytest.raises(InputError, match=r"test/labels-00000-of-00001\.npy has changed since it was opened"):
        stages.finetune(tiny_config.override({"data.dir": str(folder)}), "ctr", None, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_shard_that_is_cut_while_it_is_read_leaves_nothing_trained_on_it(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    """The operating system may end the process (SIGBUS) before it can speak; started again, it says what is wrong."""
    folder = shutil.copytree(tiny_dataset.folder, tmp_path / "prepared")
    config = tiny_config.override({"data.dir": str(folder), "finetune.ctr.epochs": 2})
    shard = folder / "train" / "values-00000-of-00001.npy"
    command = ["finetune", config_file(tmp_path, config), "--strategy", "ctr", "--init-from", "none"]
    command += ["--run-dir", str(tmp_path / "run")]
    cutting = [sys.executable, "-c", _CUT, str(shard), *command]
    found = subprocess.run(cutting, capture_output=True, text=True, check=False, timeout=600)
    assert found.returncode in (2, -signal.SIGBUS), found.stderr
    assert saved_steps(tmp_path / "run") == []
    found = subprocess.run(
        [sys.executable, "-m", "alt_jax", *command], capture_output=True, text=True, check=False, timeout=600
    )
    assert_said(found, "values-00000-of-00001.npy is cut short; copy the dataset again")


def test_a_config_file_that_is_edited_under_a_run_changes_nothing(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read when the command began."""
    runs = trained(tiny_config)
    config, validate = Path(config_file(tmp_path, runs.config)), stages.report

    def edit_then_validate(*arguments: Any) -> dict[str, float]:
        config.write_text("raise SystemExit(1)", encoding="utf-8")
        return validate(*arguments)

    monkeypatch.setattr(stages, "report", edit_then_validate)
    command = ["finetune", str(config), "--strategy", "ctr", "--init-from", "none", "--run-dir", str(tmp_path / "run")]
    assert cli.run(command) == 0
    assert_same_run(tmp_path / "run", runs.ctr)


def test_clocks_and_times_of_files_that_go_backwards_change_nothing(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are told apart by their steps, and rates come from a clock that is never set."""
    now, ticks, run, validate = time.time(), itertools.count(), tmp_path / "run", stages.report
    config = tiny_config.override({"finetune.ctr.epochs": 3})
    stages.finetune(config, "ctr", None, tmp_path / "whole")
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(ticks))

    def stop_after(*arguments: Any) -> dict[str, float]:
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        stopped.append(True)
        return validate(*arguments)

    stopped: list[bool] = []
    monkeypatch.setattr(stages, "report", stop_after)
    with pytest.raises(Stopped):
        stages.finetune(config, "ctr", None, run)
    monkeypatch.setattr(stages, "report", validate)
    steps = saved_steps(run)
    assert len(steps) == 2
    for age, step in enumerate(steps):  # the newest checkpoint has the oldest files; the run itself is of tomorrow
        for path in (run / "checkpoints" / str(step)).rglob("*"):
            os.utime(path, (now - 1e6 * age, now - 1e6 * age))
    for path in run.iterdir():
        os.utime(path, (now + 1e5, now + 1e5))
    stages.finetune(config, "ctr", None, run)
    assert_same_run(run, tmp_path / "whole")
    assert min(record.get("rows_per_s", 1) for record in records(run)) > 0


def test_the_same_seed_gives_the_same_bits_in_another_process(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    """Whatever Python's hashes are; another seed gives others. Of a pretraining, `test_train.py` shows it."""
    runs, run = trained(tiny_config), tmp_path / "run"
    command = [sys.executable, "-m", "alt_jax", "finetune", config_file(tmp_path, runs.config), "--strategy", "ctr"]
    command += ["--init-from", "none", "--run-dir", str(run)]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert found.returncode == 0, found.stderr
    assert_same_run(run, runs.ctr)
    stages.finetune(dataclasses.replace(runs.config, seed=runs.config.seed + 1), "ctr", None, tmp_path / "other")
    assert records(tmp_path / "other")[0]["loss"] != records(runs.ctr)[0]["loss"]


def interrupt(patch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """The process is sent SIGTERM when it has called this."""
    call = getattr(where, name)

    def call_then_stop(*arguments: Any) -> None:
        call(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(where, name, call_then_stop)


def test_sigterm_leaves_nothing_half_written(
    tmp_path: Path,
    tiny_config: Config,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of what does not train: to save nothing and to leave nothing is to be ready to start again."""
    runs, handler = trained(tiny_config), signal.getsignal(signal.SIGTERM)
    data, study = str(tmp_path / "prepared"), tmp_path / "study.json"
    study.write_text('{"one": {"pretrain": false}}', encoding="utf-8")
    config = config_file(tmp_path, runs.config)
    there = sorted(path.name for path in tmp_path.iterdir())
    commands = {
        "prepare": ["prepare", config, "--data.dir", data],
        "ablate": ["ablate", config, "--data.dir", data, "--study", str(study), "--run-dir", str(tmp_path / "study")],
        "export": ["export", str(runs.joint), str(tmp_path / "out")],
        "pretrain": ["pretrain", config, "--run-dir", str(tmp_path / "run")],  # whose training has not begun
    }
    where = {"export": (export, "copy_encoder"), "pretrain": (stages, "_start")}
    for name, command in commands.items():
        with monkeypatch.context() as patch:
            interrupt(patch, *where.get(name, (storage, "write_bytes")))
            assert cli.run(command) == 75, name
        said = capsys.readouterr().err
        assert f"alt-jax {name}: stopped by SIGTERM; start the same command again to go on." in said
        assert sorted(path.name for path in tmp_path.iterdir()) == there
        assert signal.getsignal(signal.SIGTERM) is handler
    for name in ("prepare", "export"):
        assert cli.run(commands[name]) == 0
    assert Dataset.load(data).schema.data_hash == tiny_dataset.schema.data_hash


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_in_the_garbage_collector(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """JAX has a callback there; Python drops what is raised in one, and the command would go on to its end."""
    stopped = []

    def callback(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(callback)
        stopped.append(phase)
        signal.raise_signal(number)

    def work(options: Any) -> None:
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(60)
        raise AssertionError("it was lost")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    monkeypatch.setitem(cli._COMMANDS, "prepare", work)
    try:
        assert cli.run(["prepare"]) == 75
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped == ["start"]
    said = f"alt-jax prepare: stopped by {number.name}; start the same command again to go on.\n"
    assert capsys.readouterr().err == said


def test_a_signal_is_not_taken_for_an_error_of_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Most of a small command's time goes by in there: it imports."""
    config = tmp_path / "config.py"
    config.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n", encoding="utf-8")
    assert cli.run(["prepare", str(config)]) == 75
    said = "alt-jax prepare: stopped by SIGTERM; start the same command again to go on.\n"
    assert capsys.readouterr().err == said


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123.partial"
    left.mkdir()
    (left / "file").touch()
    (tmp_path / ".another.0123.partial").mkdir()
    with beside(tmp_path / "out") as first:
        assert not left.exists()
        (first / "file").touch()
        with beside(tmp_path / "out") as second:
            assert (first / "file").exists()
            second.rename(tmp_path / "out")
        assert first.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".another.0123.partial", "out"]


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
