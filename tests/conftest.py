"""What every test shares: virtual devices, strict shapes and types, and one tiny prepared dataset."""

import dataclasses
import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import compiling

os.environ |= compiling.environment(devices=8)  # read when jax is imported, hence before everything else

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jaxtyping import install_import_hook

# For eight devices XLA takes twice as long as for two, which show as well what becomes of a split batch: a mesh has two
# unless a test names `jax.local_devices()`, and so have the processes that tests start.
assert len(jax.local_devices()) == 8
jax.devices = lambda: jax.local_devices()[:2]
os.environ |= compiling.environment(devices=2)

compiling.in_one_context()
jax.config.update("jax_numpy_rank_promotion", "raise")
# Shapes and types in annotations are checked at run time in whatever of alt_jax is imported from here on. An int may
# stand for a float, as it may for mypy (PEP 484).
install_import_hook("alt_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import tiny_runs  # noqa: E402 - imports alt_jax

from alt_jax import bridge, console, pretraining, programs  # noqa: E402
from alt_jax.config import (  # noqa: E402
    Config,
    CTRConfig,
    DataConfig,
    FieldConfig,
    FinetuneConfig,
    FinetuneConfigs,
    ICLConfig,
    JointConfig,
    LossConfig,
    MTMConfig,
    PLMConfig,
    PretrainConfig,
    TextConfig,
)
from alt_jax.data.dataset import Dataset  # noqa: E402
from alt_jax.data.prepare import prepare  # noqa: E402
from alt_jax.pretraining import Pretrain  # noqa: E402

# What JAX remembers is millions of objects: to look through them again and again would be a fifth of the tests' time.
gc.collect()
gc.freeze()
gc.set_threshold(200_000, 20, 20)

programs.write_whole()
if "PYTEST_XDIST_WORKER" not in os.environ:
    programs.bound(compiling.folder(), programs.LIMIT)

# --- The run ---

# Begun first, longest first, so that no worker is left with one of them when the others are done.
_LONG = """kills interactions cluster text train microbatches lazy fields ablate faults pretraining docs devices packing
bridge demo report odd_data"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order in which xdist gives out files, unless a random one was asked for."""
    if not config.pluginmanager.hasplugin("randomly"):
        place = {f"test_{name}.py": number for number, name in enumerate(_LONG.split())}
        items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Says, below everything else, how to repeat just what failed; pytest has said why above."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    reports = [report for kind in ("failed", "error") for report in reporter.stats.get(kind, [])]
    for name in dict.fromkeys(report.nodeid for report in reports):
        print(f"repeat with: .venv/bin/python -m pytest {shlex.quote(name)}")


# --- What no test may leave behind ---

_JAX_OPTIONS = tuple(jax.config.values)  # modules that are imported later may add theirs


def _process() -> dict[str, object]:
    """What tests share without saying so, and could break for those of another file."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith("alt_jax.")}
    return {
        "the working directory": os.getcwd(),
        # Libraries have variables of their own, which they set when something imports them first.
        "environment variables": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("JAX_", "XLA_", "PYTHON")) or name in ("HOME", "PATH")
        },
        "handlers of signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "JAX' configuration": {name: jax.config.values[name] for name in _JAX_OPTIONS},
        "modules that their packages do not know": [
            name
            for name, module in modules.items()
            if getattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], None) is not module
        ],
    }


@pytest.fixture(scope="module", autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """Which files run before a file in the same process differs from machine to machine: none may notice."""
    before = _process()
    yield
    for what, found in _process().items():
        assert found == before[what], f"this file has changed {what}"


@pytest.fixture(autouse=True)
def said_as_text() -> None:
    """Whatever a test before has chosen."""
    console.use("text")


_ROWS, _USERS, _ITEMS = 600, 30, 12
_WORDS = ("red", "blue", "green", "old", "new", "river", "stone", "night", "garden", "wolf")
_GENRES = ("drama", "comedy", "film noir")


def tiny_table() -> pa.Table:
    """Users with an age and a gender, items with a title of their own and a genre, and clicks that depend on both."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, _USERS, _ROWS), rng.integers(0, _ITEMS, _ROWS)
    titles = [f"{_WORDS[i % 10]} {_WORDS[(3 * i + 1) % 10]} ({1980 + i})" for i in range(_ITEMS)]
    liked = (user % 3 == item % 3).astype(float)
    return pa.table(
        {
            "user_id": [f"u{u}" for u in user],
            "gender": ["female" if u % 2 else "male" for u in user],
            "age": [str(20 + 10 * (u % 4)) for u in user],
            "item_id": [f"i{i}" for i in item],
            "title": [titles[i] for i in item],
            "genre": [_GENRES[i % 3] for i in item],
            "label": (rng.random(_ROWS) < 0.2 + 0.6 * liked).astype(np.int64),
            "time": rng.permutation(_ROWS),
        }
    )


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """An experiment as small as can be. Its raw table exists; `data.dir` does once `tiny_dataset` was asked for.

    All workers share its folder, so that it is prepared, and what `tiny_runs` trains is trained, once.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with tiny_runs.alone(folder):
        if not (folder / "rows.parquet").exists():
            pq.write_table(tiny_table(), folder / "rows.parquet")
    fields = (
        FieldConfig("user_id", "User ID"),
        FieldConfig("gender", "Gender"),
        FieldConfig("age", "Age"),
        FieldConfig("item_id", "Item ID"),
        FieldConfig("title", "Title"),
        FieldConfig("genre", "Genre"),
    )
    return Config(
        data=DataConfig(
            raw=str(folder / "rows.parquet"),
            dir=str(folder / "prepared"),
            fields=fields,
            positive_above=0.5,
            timestamp="time",
            user="user_id",
            item="item_id",
            linked=(("item_id", "title"),),
        ),
        text=TextConfig(vocab_size=120, hidden=16, layers=1, heads=2, intermediate=32, dropout=0.1, max_length=64),
        # The published 1e-4 would hide mistakes behind vanishing embeddings.
        ctr=CTRConfig(dim=4, init_std=0.3, hidden=(16, 8), dropout=0.1, options=(("experts", 2), ("rank", 3))),
        icl=ICLConfig(dim=8),
        mtm=MTMConfig(dim=4, noise=5),
        pretrain=PretrainConfig(batch_size=16, epochs=1, learning_rate=1e-3, text_learning_rate=1e-3),
        finetune=FinetuneConfigs(
            ctr=FinetuneConfig(batch_size=16, epochs=1, l2=1e-3),
            plm=PLMConfig(batch_size=16, epochs=1),
            joint=JointConfig(batch_size=16, epochs=1, l2=1e-3),
        ),
    )


@pytest.fixture(scope="session")
def tiny_dataset(tiny_config: Config) -> Dataset:
    """The prepared dataset of `tiny_config`: random 8:1:1 of 600 rows, 6 fields, item and title linked."""
    folder = Path(tiny_config.data.dir)
    with tiny_runs.alone(folder.parent):
        return Dataset.load(folder) if folder.exists() else prepare(tiny_config)


def without_dropout(config: Config) -> Config:
    """The same experiment with every dropout rate at 0."""
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, dropout=0.0),
        ctr=dataclasses.replace(config.ctr, dropout=0.0),
        icl=dataclasses.replace(config.icl, dropout=0.0),
        mlm=dataclasses.replace(config.mlm, dropout=0.0),
    )


@pytest.fixture(scope="session")
def plain_config(tiny_config: Config) -> Config:
    """`tiny_config` without dropout, so that a loss is a function of the rows and the masks."""
    return without_dropout(tiny_config)


@pytest.fixture(scope="session")
def make_pretrain(tiny_dataset: Dataset) -> Callable[..., Pretrain]:
    """`make_pretrain(config, loss, batch_size, dataset)`: the pretraining task, as `stages` builds it."""

    def make(
        config: Config, loss: LossConfig | None = None, batch_size: int = 16, dataset: Dataset = tiny_dataset
    ) -> Pretrain:
        pretrain = dataclasses.replace(config.pretrain, batch_size=batch_size)
        config = dataclasses.replace(config, loss=loss or LossConfig(), pretrain=pretrain)
        pretraining.check(config, dataset.schema)
        return Pretrain.build(config, dataset, bridge.encoder_config(config.text, dataset.schema))

    return make
