"""Finished runs of the tiny experiment, made once for all tests that read them."""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

from alt_jax import stages
from alt_jax.config import Config

# What a config file has to say to give a config that exists already.
_FILE = """
from alt_jax.config import Config


def get_config():
    return Config.from_json({json!r}, "test")
"""


class Runs(NamedTuple):
    """A pretraining of 90 steps, a joint finetuning from it, and a ctr finetuning without it."""

    config: Config
    pretrain: Path
    joint: Path
    ctr: Path
    said: str  # by the joint finetuning


def longer(config: Config, **pretrain: int) -> Config:
    """The experiment with other values of `pretrain`."""
    return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, **pretrain))


@functools.cache
def trained(tiny: Config) -> Runs:
    """Trains, whichever module of whichever worker asks first; the dataset has to be prepared."""
    config = longer(tiny, epochs=3)
    root = Path(config.data.dir).parent / "runs"
    pretrain, joint, ctr, said = root / "pretrain", root / "joint", root / "ctr", root / "said"
    with alone(root):
        if not said.exists():
            words = io.StringIO()
            stages.pretrain(config, pretrain)
            with contextlib.redirect_stdout(words):
                stages.finetune(config, "joint", pretrain, joint)
            stages.finetune(config, "ctr", None, ctr)
            said.write_text(words.getvalue(), encoding="utf-8")
    return Runs(config, pretrain, joint, ctr, said.read_text(encoding="utf-8"))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Meanwhile no other worker is in here with the same folder, which exists then."""
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        yield


def config_file(folder: Path, config: Config) -> str:
    """Writes a config file that gives `config`."""
    path = folder / "experiment.py"
    path.write_text(_FILE.format(json=config.to_json()), encoding="utf-8")
    return str(path)
