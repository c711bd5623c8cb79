"""Several real processes on this machine, each with virtual devices, do what one does."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import compiling
import jax
import numpy as np
import pytest
from tiny_runs import config_file, longer

from alt_jax import cluster, stages
from alt_jax.checkpoint import load_params, saved_steps
from alt_jax.config import Config, ShardingConfig
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError

_WORKER = Path(__file__).with_name("cluster_process.py")
_PATIENCE_S = 900  # with a machine that does other things too; what hangs is ended


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


class Processes:
    """Some processes and what they say."""

    def __init__(self, commands: Sequence[Sequence[str]], devices: int, folder: Path) -> None:
        environment = os.environ | compiling.environment(devices, threads=16)  # as many, whatever the devices
        self._logs = [folder / f"log{i}" for i in range(len(commands))]
        self._running = []
        for command, log in zip(commands, self._logs, strict=True):
            with log.open("wb") as file:
                self._running.append(
                    subprocess.Popen([sys.executable, *command], stdout=file, stderr=file, env=environment)
                )

    def send(self, process: int, number: signal.Signals) -> None:
        self._running[process].send_signal(number)

    def end(self) -> list[int]:
        """Exit codes."""
        deadline = time.monotonic() + _PATIENCE_S
        try:
            return [process.wait(max(1, deadline - time.monotonic())) for process in self._running]
        finally:
            for process in self._running:
                process.kill()

    @property
    def said(self) -> list[str]:
        return [log.read_text(encoding="utf-8") for log in self._logs]

    def running(self) -> bool:
        return all(process.poll() is None for process in self._running)


def commands(arguments: Sequence[Sequence[str]]) -> list[list[str]]:
    """The command line of each process of a cluster."""
    port, count = free_port(), len(arguments)
    join = ["--cluster-wait", "120", "--cluster"]
    return [["-m", "alt_jax", *own, *join, f"localhost:{port},{i}/{count}"] for i, own in enumerate(arguments)]


def records(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "rows_per_s"} for record in found]


def close(expected: dict[str, Any], rel: float = 0.0, abs: float = 0.0) -> dict[str, Any]:
    """Nearly the same numbers; None, where nothing was weighed, is None."""
    return {n: v if v is None else pytest.approx(v, rel=rel, abs=abs) for n, v in expected.items()}


def assert_same_curves(found: Path, expected: Path) -> None:
    assert len(records(found)) == len(records(expected))
    for mine, theirs in zip(records(found), records(expected), strict=True):
        assert mine == close(theirs, rel=2e-3, abs=1e-4)


@pytest.fixture(scope="module")
def config(tiny_config: Config, tiny_dataset: Dataset) -> Config:
    """15 updates of either stage."""
    finetune = dataclasses.replace(tiny_config.finetune.ctr, batch_size=32)
    config = longer(tiny_config, batch_size=32)
    return dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, ctr=finetune))


@pytest.fixture(scope="module")
def alone(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same finetuning in this process, on its two devices."""
    folder = tmp_path_factory.mktemp("alone")
    stages.finetune(config, "ctr", None, folder / "ctr")
    return folder


@pytest.fixture(scope="module")
def both_alone(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same stages in this process, on its two devices."""
    folder = tmp_path_factory.mktemp("alone")
    stages.pretrain(config, folder / "pretrain")
    stages.finetune(config, "ctr", folder / "pretrain", folder / "ctr")
    return folder


def test_two_processes_are_as_one(config: Config, alone: Path, tmp_path: Path) -> None:
    """In a finetuning of split tables, and how it is evaluated."""
    check_same_as_one(["ctr"], 2, 2, ShardingConfig(tables="split"), config, alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "sharding"),
    [(2, 2, ShardingConfig(tables="split", text="split")), (4, 1, ShardingConfig())],
)
def test_several_processes_are_as_one(
    processes: int, devices: int, sharding: ShardingConfig, config: Config, both_alone: Path, tmp_path: Path
) -> None:
    """In all stages, and how they are evaluated."""
    check_same_as_one(["pretrain", "ctr"], processes, devices, sharding, config, both_alone, tmp_path)


def check_same_as_one(
    run: Sequence[str],
    processes: int,
    devices: int,
    sharding: ShardingConfig,
    config: Config,
    alone: Path,
    tmp_path: Path,
) -> None:
    experiment = config_file(tmp_path, dataclasses.replace(config, sharding=sharding))
    port = free_port()
    commands = [
        [str(_WORKER), f"localhost:{port},{i}/{processes}", experiment, str(tmp_path), *run] for i in range(processes)
    ]
    started = Processes(commands, devices, tmp_path)
    assert started.end() == [0] * processes, started.said
    for stage in run:
        assert_same_curves(tmp_path / stage, alone / stage)
    test = json.loads((alone / "ctr" / "result.json").read_text(encoding="utf-8"))["test"]
    result = json.loads((tmp_path / "ctr" / "result.json").read_text(encoding="utf-8"))
    assert result["test"] == close(test, abs=2e-3)
    own = 32 // processes
    for i in range(processes):
        found = json.loads((tmp_path / f"process{i}.json").read_text(encoding="utf-8"))
        assert found["test"] == close(result["test"], abs=1e-6)
        assert found["test"]["rows"] == test["rows"]
        assert {tuple(part) for part in found["parts"]} == {(i * own, (i + 1) * own, own)}
    assert run[0] in started.said[0]
    assert not any("epoch 1" in said for said in started.said[1:])
    mine, theirs = (load_params(folder / "ctr")[0] for folder in (tmp_path, alone))
    assert jax.tree.map(np.shape, mine) == jax.tree.map(np.shape, theirs)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_the_run_goes_on_elsewhere(config: Config, tmp_path: Path) -> None:
    """It begins on eight devices, goes on with four in two processes, where all lies otherwise, and ends on sixteen."""
    config = longer(config, epochs=12)
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = ["-m", "alt_jax", "pretrain", config_file(tmp_path, config), "--run-dir", str(run)]
    undisturbed = Processes([[*arguments[:-1], str(whole)]], 8, tmp_path)
    assert undisturbed.end() == [0], undisturbed.said
    eight = Processes([arguments], 8, tmp_path)
    step = stopped_at(eight, 0, run, after=0)
    four = Processes(commands([[*arguments[2:], "--sharding.tables", "split"]] * 2), 2, tmp_path)
    later = stopped_at(four, 1, run, after=step)
    assert f"resumed at step {step} of 180" in four.said[0]
    sixteen = Processes([arguments], 16, tmp_path)
    assert sixteen.end() == [0], sixteen.said
    assert f"resumed at step {later} of 180" in sixteen.said[0]
    assert_same_curves(run, whole)


def stopped_at(started: Processes, process: int, run: Path, after: int) -> int:
    """Sends SIGTERM to one process once a checkpoint beyond `after` is there; the step at which all of them stop."""
    while started.running() and max(saved_steps(run), default=0) <= after:
        time.sleep(0.05)
    started.send(process, signal.SIGTERM)
    assert set(started.end()) == {75}, started.said
    (step,) = {said.split("stopped by SIGTERM at step ")[1].split()[0] for said in started.said}
    return int(step)


def test_all_say_what_one_finds_wrong(config: Config, tmp_path: Path) -> None:
    """At once, and with exit code 2."""
    arguments = ["pretrain", config_file(tmp_path, config), "--run-dir", str(tmp_path / "run")]
    there = Processes(commands([arguments, [*arguments, "--seed", "7"]]), 1, tmp_path)
    assert there.end() == [2, 2], there.said
    assert all("process 1 differs from process 0 in seed: 7, not 0" in said for said in there.said)


@pytest.mark.slow
def test_all_say_what_is_missing_for_one(config: Config, tmp_path: Path) -> None:
    arguments = ["pretrain", config_file(tmp_path, config), "--run-dir", str(tmp_path / "run")]
    gone = Processes(commands([arguments, [*arguments, "--data.dir", str(tmp_path / "nowhere")]]), 1, tmp_path)
    assert gone.end() == [2, 2], gone.said
    assert "process 1 of 2: " in gone.said[0]
    assert all("nowhere/schema.json does not exist" in said for said in gone.said)
    assert not (tmp_path / "run").exists()


_BREAKS = """
import sys
from alt_jax import cli, train
from alt_jax.errors import InputError

whole = train.batch_at

def batch_at(rows, *, step, **options):
    if step >= 4 and sys.argv[-1].endswith(",1/2"):
        raise {error}("train/values-00001-of-00002.npy is not as it was prepared")
    return whole(rows, step=step, **options)

train.batch_at = batch_at
sys.exit(cli.run(sys.argv[1:]))
"""


def test_processes_that_would_score_different_parts_are_refused(alone: Path, tmp_path: Path) -> None:
    parts = ["test", "valid"]
    there = Processes(commands([["evaluate", str(alone / "ctr"), "--split", part] for part in parts]), 1, tmp_path)
    assert there.end() == [2, 2], there.said
    assert all("differs from process 0 in what it does: 'evaluate valid', not 'evaluate test'" in s for s in there.said)


def broken(error: str, config: Config, folder: Path) -> Processes:
    """Two processes, of which one raises an error in the midst of training."""
    arguments = ["finetune", config_file(folder, config), "--strategy", "ctr", "--init-from", "none"]
    started = commands([[*arguments, "--run-dir", str(folder / "run")]] * 2)
    return Processes([["-c", _BREAKS.format(error=error), *own[2:]] for own in started], 1, folder)


@pytest.mark.slow
def test_all_say_what_one_finds_wrong_in_training(config: Config, tmp_path: Path) -> None:
    """Such as a shard behind a URL, which is read when its turn comes. What followed is not saved."""
    there = broken("InputError", config, tmp_path)
    assert there.end() == [2, 2], there.said
    assert "process 1 of 2: train/values-00001-of-00002.npy is not as it was prepared" in there.said[0]
    assert "alt-jax finetune: train/values-00001-of-00002.npy is not as it was prepared" in there.said[1]
    assert not list(tmp_path.glob("run/checkpoints/[0-9]*"))


@pytest.mark.slow
def test_one_that_crashes_ends_all(config: Config, tmp_path: Path) -> None:
    """With a code that launchers start again."""
    there = broken("MemoryError", config, tmp_path)
    codes = there.end()
    assert codes[1] == 1, there.said
    assert codes[0] not in (0, 2, 75, -signal.SIGKILL), there.said  # which `end` sends to what hangs
    assert "MemoryError: train/values-00001-of-00002.npy is not as it was prepared" in there.said[1]


def test_a_signal_from_before_the_first_step_counts_on_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX agrees on number 1 then, and looks at numbers for equality."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(cluster.multihost_utils, "reached_preemption_sync_point", lambda number: number == 1)
    with cluster.stop_requests("stopping") as requested:
        assert [requested() for _ in range(3)] == [None, "SIGTERM", None]


@pytest.mark.parametrize("process", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_waits_for_the_others_no_longer_than_said(process: int, config: Config, tmp_path: Path) -> None:
    command = ["pretrain", config_file(tmp_path, config), "--run-dir", str(tmp_path / "run")]
    join = ["--cluster-wait", "2", "--cluster", f"localhost:{free_port()},{process}/2"]
    alone = Processes([["-m", "alt_jax", *command, *join]], 1, tmp_path)
    assert alone.end() == [2]
    assert "not all processes came together within 2 s" in alone.said[0]


@pytest.mark.parametrize("where", ["localhost", "localhost:80", "localhost:80,2/2", "here,0/1", "Auto"])
def test_what_is_no_cluster_is_refused(where: str) -> None:
    with pytest.raises(InputError, match=f"--cluster {where} is neither"):
        cluster.join(where, 1, saves=True)


def test_auto_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(cluster, "first", lambda: True)
    with pytest.raises(InputError, match="--cluster auto finds no other processes"):
        cluster.join("auto", 1, saves=True)


@pytest.mark.parametrize("name", ["the code of alt-jax", "the version of jax", "the dataset", "seed"])
def test_processes_that_would_do_different_things_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(text: str) -> list[str]:
        return [text, text, json.dumps(json.loads(text) | {name: "another"})]

    monkeypatch.setattr(cluster, "gather", gather)
    with pytest.raises(InputError, match=f"process 2 differs from process 0 in {name}: 'another', not "):
        cluster.check_same({"seed": 1, "the dataset": ["hash"]})


def test_texts_of_one_process() -> None:
    assert cluster.gather("ö") == ["ö"]
    cluster.check_same({"seed": 1})
    with pytest.raises(InputError, match=r"^wrong$"), cluster.together():
        raise InputError("wrong")
