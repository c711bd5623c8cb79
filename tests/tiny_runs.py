"""Finished runs of the tiny experiment, made once for all tests that read them."""

import contextlib
import dataclasses
import functools
import io
from pathlib import Path
from typing import NamedTuple

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
    """Trains, whichever module asks first; the dataset has to be prepared."""
    config = longer(tiny, epochs=3)
    root = Path(config.data.dir).parent / "runs"
    pretrain, joint, ctr = root / "pretrain", root / "joint", root / "ctr"
    said = io.StringIO()
    stages.pretrain(config, pretrain)
    with contextlib.redirect_stdout(said):
        stages.finetune(config, "joint", pretrain, joint)
    stages.finetune(config, "ctr", None, ctr)
    return Runs(config, pretrain, joint, ctr, said.getvalue())


def config_file(folder: Path, config: Config) -> str:
    """Writes a config file that gives `config`."""
    path = folder / "experiment.py"
    path.write_text(_FILE.format(json=config.to_json()), encoding="utf-8")
    return str(path)
