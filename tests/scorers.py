"""A dataset with fields of every kind, and models with random parameters, which score as well as trained ones."""

import functools
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from flax import traverse_util

from alt_jax import bridge
from alt_jax.config import Config, CTRConfig, DataConfig, FieldConfig, Strategy, TextConfig
from alt_jax.data.dataset import Dataset, Encoder, copy_encoder
from alt_jax.data.prepare import prepare
from alt_jax.export import PARAMS
from alt_jax.models.alt import ALT
from alt_jax.run import Origin, Run
from alt_jax.scorer import Scorer
from alt_jax.tasks import Finetune, Params

# Some columns have names that pydantic keeps for itself.
FIELDS = (
    FieldConfig("_user", "User"),
    FieldConfig("model_age", "Age", kind="numeric", bins=4),
    FieldConfig("item", "Item"),
    FieldConfig("json", "Title", kind="text"),
    FieldConfig("the genre", "Genre", kind="multi", slots=3),
    FieldConfig("liked", "Liked before", kind="sequence", of="item", spelled="json", slots=3),
    FieldConfig("query", "Query", hash_buckets=7),
)
COLUMNS = tuple(field.column for field in FIELDS)


def every_kind(folder: Path) -> Config:
    """Prepares 200 rows, of which some have a prompt that is cut; text towers are as small as can be."""
    rng = np.random.default_rng(4)
    user, item = rng.integers(0, 8, 200), rng.integers(0, 9, 200)
    table = pa.table(
        {
            "_user": user,
            "model_age": pa.array([None if u == 3 else 20.5 + u for u in user]),
            "item": [f"i{i}" for i in item],
            "json": [f"The {['red', 'blue', 'old', 'new'][i % 4]} house, {i}?" for i in item],
            "the genre": [["drama", "film noir|drama", "war?", ""][i % 4] for i in item],
            "query": [f"q{q}" for q in rng.integers(0, 40, 200)],
            "time": rng.integers(0, 90, 200),
            "label": rng.integers(0, 2, 200),
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    data = DataConfig(
        raw=str(folder / "rows.parquet"),
        dir=str(folder / "prepared"),
        protocol="random",
        fields=FIELDS,
        timestamp="time",
        user="_user",
        item="item",
    )
    text = TextConfig(vocab_size=200, hidden=16, layers=1, heads=2, intermediate=16, max_length=56)
    config = Config(data=data, text=text, ctr=CTRConfig(tower="autoint", dim=4))
    prepare(config)
    return config


@functools.cache
def random_model(config: Config, strategy: Strategy) -> tuple[Finetune, Params]:
    """A task and parameters that are large enough for rows to differ."""
    schema = Dataset.load(config.data.dir).schema
    task = Finetune(ALT(config, schema, bridge.encoder_config(config.text, schema)), strategy)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        return (0.4 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale")).astype(np.float32)

    return task, jax.tree_util.tree_map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))


@functools.cache
def random_scorer(config: Config, strategy: Strategy) -> Scorer:
    """The same as a scorer, on one device."""
    return Scorer(*random_model(config, strategy), Encoder.load(config.data.dir), jax.devices()[:1])


def random_export(config: Config, strategy: Strategy, folder: Path) -> Path:
    """The same as `alt-jax export` writes it, without the text tower's own folder."""
    task, params = random_model(config, strategy)
    model = task.model
    Run(folder, Origin("finetune", strategy), config, model.schema, model.encoder).start()
    safetensors.numpy.save_file(traverse_util.flatten_dict(params, sep="/"), folder / PARAMS)
    copy_encoder(Path(config.data.dir), folder)
    return folder
