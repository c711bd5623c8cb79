"""Datasets of one field, and of texts alone: a run does what it can there, or is refused before it begins."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import config_file

from alt_jax import cli, masking, required, stages
from alt_jax.config import Config, CTRConfig, FieldConfig, LossConfig, Strategy
from alt_jax.data.batches import Batch
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.errors import InputError
from alt_jax.models import interactions
from alt_jax.models.ctr import CTRTower
from alt_jax.run_files import Origin
from alt_jax.schema import Schema

MLM = {"loss.icl": 0.0, "loss.mtm": 0.0, "mlm.with_table": False}
PRETRAIN = Origin("pretrain")


@pytest.fixture(scope="module")
def texts(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Dataset]:
    """A dataset with a title and nothing else."""
    folder = tmp_path_factory.mktemp("texts")
    rows = {"title": [f"film {n % 7}" for n in range(80)], "label": [n % 3 % 2 for n in range(80)]}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    data = dataclasses.replace(
        tiny_config.data,
        **{"raw": str(folder / "rows.parquet"), "dir": str(folder / "prepared"), "linked": ()},
        **{"fields": (FieldConfig("title", kind="text"),), "timestamp": None, "user": None, "item": None},
    )
    config = dataclasses.replace(tiny_config, data=data)
    return config, prepare(config)


def fields(schema: Schema, count: int) -> Schema:
    """The schema with its first fields alone."""
    return dataclasses.replace(schema, fields=schema.fields[:count], linked=(), user=None, item=None)


def varies(tower: str, schema: Schema) -> bool:
    """Whether h_c, of fresh parameters, differs between rows that differ in every field."""
    config = CTRConfig(tower=tower, dim=4, init_std=0.3, hidden=(8, 4), dropout=0.0)
    model = CTRTower(config, schema.num_ids, schema.fields)
    ids = jnp.stack([jnp.asarray([field.offset + row for field in schema.fields]) for row in (1, 2)])
    return bool(np.asarray(model.init_with_output(jax.random.key(0), ids, train=False)[0]).std(axis=0).any())


@pytest.mark.parametrize("tower", interactions.names())
def test_a_tower_tells_rows_apart_by_one_field_or_is_refused(
    tiny_config: Config, tiny_dataset: Dataset, tower: str
) -> None:
    config = tiny_config.override({"ctr.tower": tower, "ctr.options": ()})
    stages.check_fields(config, PRETRAIN, fields(tiny_dataset.schema, 2))
    one = fields(tiny_dataset.schema, 1)
    if interactions.build(config.ctr).only_pairs:
        for origin in (PRETRAIN, Origin("finetune", "ctr"), Origin("finetune", "joint")):
            with pytest.raises(InputError, match=rf"'{tower}' is made of pairs .* one field .* choose another"):
                stages.check_fields(config, origin, one)
        stages.check_fields(config, Origin("finetune", "plm"), one)
        stages.check_fields(config.override(MLM), PRETRAIN, one)
    else:
        stages.check_fields(config, PRETRAIN, one)
        assert varies(tower, one)


def test_numbers_are_one_more_vector_for_dlrm(tiny_config: Config, tiny_dataset: Dataset) -> None:
    [field] = fields(tiny_dataset.schema, 1).fields
    numeric = dataclasses.replace(tiny_dataset.schema, fields=(dataclasses.replace(field, kind="numeric"),))
    interactions.check(CTRConfig(tower="dlrm"), numeric)
    with pytest.raises(InputError, match="pairs"):
        interactions.check(CTRConfig(tower="fwfm"), numeric)


@pytest.mark.parametrize(
    ("strategy", "values", "said"),
    [
        ("ctr", {}, "CTR tower of --strategy ctr"),
        ("joint", {}, "choose --strategy plm"),
        (None, {}, "pretrain by MLM alone"),
        (None, {"loss.mtm": 0.0, "loss.mlm": 0.0}, "pretrain by MLM alone"),
        (None, {"loss.icl": 0.0, "loss.mlm": 0.0}, "pretrain by MLM alone"),
        (None, MLM | {"mlm.with_table": True}, "--mlm.with-table False"),
        ("plm", {}, ""),
        ("plm", {"ctr.init": "svd"}, ""),
        (None, MLM, ""),
    ],
)
def test_texts_alone(
    texts: tuple[Config, Dataset], strategy: Strategy | None, values: dict[str, object], said: str
) -> None:
    config, dataset = texts
    origin = PRETRAIN if strategy is None else Origin("finetune", strategy)
    if not said:
        stages.check_fields(config.override(values), origin, dataset.schema)
        return
    with pytest.raises(InputError, match=said):
        required.check(config.override(values), origin, dataset.schema)


def test_the_command_says_it_before_it_makes_a_folder(
    texts: tuple[Config, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, texts[0])
    for arguments in (["pretrain", config], ["finetune", config, "--strategy", "joint", "--init-from", "none"]):
        assert cli.run([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "All fields of" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pairing", ["independent", "same"])
def test_mlm_learns_from_texts_alone(texts: tuple[Config, Dataset], make_pretrain, pairing: str) -> None:
    config, dataset = texts
    task = make_pretrain(config.override({**MLM, "mask.pairing": pairing}), LossConfig(icl=0, mtm=0), 16, dataset)
    params = task.init(jax.random.key(0))
    assert params.keys() == {"text", "mlm"}
    values, ones = jnp.asarray(np.asarray(dataset.train.values[:16])), jnp.ones(16)
    batch, key = Batch(values, ones, ones), jax.random.key(1)
    loss, metrics = jax.eval_shape(lambda: task.loss(params, dataset.pieces, batch, key))
    assert loss.shape == ()
    assert {"mlm", "mlm/gain/title"} <= metrics.keys()
    masks = masking.choose_masks((key, key), 16, dataset.schema, config.mask)
    assert masks.text.all()
    assert not masks.table.any()


def test_icl_of_single_rows_is_refused(tiny_config: Config, tiny_dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"batch_size is 1; raise it, or set --loss.icl 0"):
        stages.check_fields(tiny_config.override({"pretrain.batch_size": 1}), PRETRAIN, tiny_dataset.schema)
