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


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_command_ends_like_an_undisturbed_one(
    count: int, kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, metrics, every file and every name are compared; most kills fall while the command does its work."""
    for name, value in compiling.environment(devices=1).items():  # as the commands have by themselves
        monkeypatch.setenv(name, value)
    if count > 1:  # kills may hit what is compiled, too
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    folders = kills.folders(tmp_path)
    if count == 1:
        for folder in folders:
            (folder / "study.json").write_text('{"not": {"pretrain": false}}', encoding="utf-8")
    for stage in kills.STAGES:  # each needs what those before have made
        done = kills.disturb(stage, *folders, count, random.Random(stage), at_work=lambda number: number % 4 > 0)
        assert done[0] >= 1
    log = (folders[1] / "log").read_text(encoding="utf-8")
    assert "Traceback" not in log
