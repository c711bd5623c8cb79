"""kill -9 in the midst of every command; started again, each ends bit for bit as if nothing had happened.

`benchmarks/kills.py`, which does this hundreds of times, is what is run here.
"""

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import compiling
import pytest

KILLS = 2  # of each of the five commands


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


@pytest.fixture(scope="module")
def folders(kills: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where the stages run, one after the other: each needs what those before have made."""
    made: tuple[Path, Path] = kills.folders(tmp_path_factory.mktemp("kills"))
    return made


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "finetune", "export", "ablate"])
def test_a_killed_command_ends_like_an_undisturbed_one(
    stage: str, kills: ModuleType, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, metrics, every file and every name are compared; the kills fall while the command does its work."""
    for name, value in compiling.environment(devices=1).items():  # as the commands have by themselves
        monkeypatch.setenv(name, value)
    done = kills.disturb(stage, *folders, KILLS, random.Random(stage), at_work=lambda number: True)
    assert done[0] >= 1
    log = (folders[1] / "log").read_text(encoding="utf-8")
    assert "Traceback" not in log
