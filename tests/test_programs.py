"""Compiled programs outlive the process: a second start compiles nothing, and no cache folder breaks a run."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jax._src import lru_cache
from tiny_runs import config_file

from alt_jax import programs
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset

FOLDER, SECONDS, BYTES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
)
MISS, HIT = "PERSISTENT COMPILATION CACHE MISS", "Persistent compilation cache hit"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What `os.environ` is in the test: a home and nothing else."""
    made = {"HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", made)
    return made


def said_to_jax(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("JAX_")}


def test_every_program_is_kept_in_the_users_cache_folder(environment: dict[str, str], tmp_path: Path) -> None:
    programs.keep()
    folder = tmp_path / ".cache" / "alt-jax" / "xla"
    assert said_to_jax(environment) == {FOLDER: str(folder), SECONDS: "0", BYTES: "-1"}
    assert folder.is_dir()
    del environment[FOLDER]
    environment["XDG_CACHE_HOME"] = str(tmp_path / "xdg")
    programs.keep()
    assert environment[FOLDER] == str(tmp_path / "xdg" / "alt-jax" / "xla")


def test_what_the_user_has_set_counts(environment: dict[str, str], tmp_path: Path) -> None:
    own = {FOLDER: str(tmp_path / "own"), SECONDS: "3", BYTES: "7"}
    environment.update(own)
    programs.keep()
    assert said_to_jax(environment) == own
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_had_is_done_without(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment["XDG_CACHE_HOME"] = str(tmp_path / "file")
    programs.keep()
    assert not said_to_jax(environment)


def test_a_cache_folder_that_cannot_be_written_is_done_without(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    programs.keep()
    assert not said_to_jax(environment)


def test_the_oldest_programs_and_empty_ones_go(tmp_path: Path) -> None:
    (tmp_path / "new-cache").touch()
    for age, name in enumerate("cab"):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (100 - age, 100 - age))
    programs.bound(tmp_path, 30)
    assert len(list(tmp_path.iterdir())) == 3
    programs.bound(tmp_path, 29)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cache", "c-cache"]
    programs.bound(tmp_path, 0)
    assert not list(tmp_path.iterdir())


# A start is what `jax.clear_caches` makes of one, for JAX alone.
_STARTS = """
import os, sys
from pathlib import Path
from alt_jax import programs

programs.keep()
import jax

for start in ("first", "second", "third"):
    print(f"{start}:", file=sys.stderr, flush=True)
    if start == "third":
        entry = max(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache"), key=lambda path: path.stat().st_size)
        os.truncate(entry, entry.stat().st_size // 2)
    jax.clear_caches()
    print(jax.jit(lambda x: jax.numpy.cumsum(jax.numpy.sin(x)))(1.5)[0], jax.numpy.cos(2.5))
"""


def test_what_was_compiled_is_not_compiled_again_unless_it_is_damaged(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STARTS], env=started_by_a_user(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.splitlines())) == 1
    first, second, third = re.split("first:|second:|third:", done.stderr)[1:]
    asked = first.count(MISS)
    assert asked >= 2
    assert [(said.count(MISS), said.count(HIT)) for said in (first, second, third)] == [
        (asked, 0),
        (0, asked),
        (1, asked - 1),
    ]


def started_by_a_user(home: Path) -> dict[str, str]:
    """The environment of a process with the folder that a user gets, which tells what JAX compiles."""
    ours = (FOLDER, SECONDS, BYTES, "JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return environment | {"HOME": str(home), "JAX_EXPLAIN_CACHE_MISSES": "1", "JAX_LOG_COMPILES": "1"}


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_a_damaged_program_is_compiled_again(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    """Really as processes, with the folder that a user gets; an older version may have left a truncated entry."""
    config = config_file(tmp_path, dataclasses.replace(tiny_config, seed=1))
    environment = started_by_a_user(tmp_path)

    def start(name: str) -> tuple[dict[str, float], str]:
        command = [sys.executable, "-m", "alt_jax", "finetune", config, "--strategy", "ctr", "--init-from", "none"]
        command += ["--run-dir", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
        assert result.pop("machine")["seconds"] > 0
        return result, done.stderr

    first, said = start("first")
    kept = sorted((tmp_path / ".cache" / "alt-jax" / "xla").glob("*-cache"))
    assert said.count(MISS) == len(kept) > 0
    asked = said.count(MISS) + said.count(HIT)  # for some twice
    second, said = start("second")
    assert (said.count(MISS), said.count(HIT)) == (0, asked)
    assert second == first

    step = max(kept, key=lambda path: path.stat().st_size)
    os.truncate(step, step.stat().st_size // 2)
    third, said = start("third")
    assert (said.count(MISS), said.count(HIT)) == (1, asked - 1)
    assert third == first


def test_an_entry_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it writes leaves a file that JAX does not take for an entry, and that goes."""
    cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)  # conftest has called `write_whole`
    cache.put("program", b"first")
    cache.put("program", b"second")  # the first counts
    assert cache.get("program") == b"first"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(cache.path), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.put("other", b"half")
    assert cache.get("other") is None
    [left] = tmp_path.glob("other*")
    programs.bound(tmp_path, 100)
    assert left.exists()  # another process may be writing it
    os.utime(left, (0, 0))
    programs.bound(tmp_path, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["program-cache"]
