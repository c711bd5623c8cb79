"""kill -9 in the midst of every command; started again, each ends bit for bit as if nothing had happened.

`benchmarks/kills.py`, which does this hundreds of times, is what is run here.
"""

import contextlib
import importlib.util
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import compiling
import jax
import pytest

from alt_jax import cli


@pytest.fixture(scope="module")
def kills(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("kills", pytestconfig.rootpath / "benchmarks" / "kills.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = module  # as an import would
    spec.loader.exec_module(module)
    yield module
    del sys.modules["kills"]


class Ended(NamedTuple):
    """As a process that has ended."""

    code: int

    def poll(self) -> int:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def test_one_kill_of_every_command(kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is killed is a process of its own; what runs undisturbed, or goes on after the kill, runs here.

    The CTR model alone is pretrained and finetuned: text would only be more to trace.
    """
    for name, value in compiling.environment(devices=1).items():  # as the commands have by themselves
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    finetune = kills.STAGES["finetune"]
    alone = finetune._replace(command=finetune.command.replace("--strategy joint", "--strategy ctr"))
    monkeypatch.setitem(kills.STAGES, "finetune", alone)
    folders = kills.folders(tmp_path)
    for folder in folders:
        (folder / "study.json").write_text('{"not": {"pretrain": false}}', encoding="utf-8")
        one_loss = kills.CONFIG.replace(
            '"data.shard_rows"', '"loss.icl": 0, "loss.mlm": 0, "mtm.with_text": False, "data.shard_rows"'
        )
        (folder / "config.py").write_text(one_loss, encoding="utf-8")
    start_process, started = kills.start, {}

    def start(command: str, folder: Path) -> "subprocess.Popen[bytes] | Ended":
        if folder == folders[1] and (command not in started or started[command].returncode != -signal.SIGKILL):
            started[command] = start_process(command, folder)
            return started[command]
        with contextlib.chdir(folder):
            return Ended(cli.run(command.split()))

    def run_whole(stage: str, whole: Path) -> tuple[float, float]:
        began = time.monotonic()
        assert start(kills.STAGES[stage].command, whole).wait() == 0
        seconds = time.monotonic() - began
        return seconds, seconds / 4  # the rest is tracing, before the first sign of work

    monkeypatch.setattr(kills, "start", start)
    monkeypatch.setattr(kills, "run_whole", run_whole)
    for stage in kills.STAGES:  # each needs what those before have made
        assert kills.disturb(stage, *folders, 1, random.Random(stage), at_work=lambda number: True)[0] >= 1
    assert [process.returncode for process in started.values()] == [-signal.SIGKILL] * len(kills.STAGES)
    assert "Traceback" not in (folders[1] / "log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_ten_kills_of_every_command(kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, metrics, every file and every name are compared; most kills fall while the command does its work."""
    for name, value in compiling.environment(devices=1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # kills may hit what is compiled, too
    folders = kills.folders(tmp_path)
    for stage in kills.STAGES:
        done = kills.disturb(stage, *folders, 10, random.Random(stage), at_work=lambda number: number % 4 > 0)
        assert done[0] >= 1
    assert "Traceback" not in (folders[1] / "log").read_text(encoding="utf-8")
