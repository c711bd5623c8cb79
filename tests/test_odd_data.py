"""Data at its limits: training goes on, and what comes out is finite."""

import json
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alt_jax import stages
from alt_jax.checkpoint import load_params
from alt_jax.config import Config
from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import prompt_lengths
from alt_jax.masking import choose_masks

LENGTH = 40  # tokens of a prompt, too few for the titles


@pytest.fixture(scope="module")
def odd(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Dataset]:
    """One gender, few clicks, titles that overflow the prompt, and all fields linked, so that all are masked as one."""
    folder = tmp_path_factory.mktemp("odd")
    table = pq.read_table(tiny_config.data.raw)
    rng = np.random.default_rng(1)
    clicked = rng.random(table.num_rows) < 0.08
    changed = {
        "gender": pa.array(["female"] * table.num_rows),
        "title": pa.array([f"{title} " * 9 for title in table["title"].to_pylist()]),
        "label": pa.array(clicked.astype(np.int64)),
    }
    for name, column in changed.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "rows.parquet")
    fields = [field.column for field in tiny_config.data.fields]
    config = tiny_config.override(
        {
            "data.raw": str(folder / "rows.parquet"),
            "data.dir": str(folder / "prepared"),
            "data.linked": [fields],
            "text.max_length": LENGTH,
            "mask.unit": "group",
            "mask.pairing": "same",
            "mask.helper": "masked",
        }
    )
    return config, prepare(config)


def logged(run: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_data_are_as_odd_as_they_should_be(odd: tuple[Config, Dataset]) -> None:
    config, dataset = odd
    schema = dataset.schema
    assert schema.fields[schema.index("Gender")].size == 2  # the one value, and whatever else may come
    masks = choose_masks((jax.random.key(0), jax.random.key(1)), 16, schema, config.mask)
    assert np.asarray(masks.text).all()
    assert np.asarray(masks.table).all()
    batches = [batch_at(dataset.train, seed=config.seed, step=step, batch_size=16) for step in range(30)]
    assert any(not np.asarray(batch.label).any() for batch in batches)
    longest = np.asarray(prompt_lengths(dataset.pieces, np.asarray(dataset.train.values), schema.widths)).max()
    assert longest == schema.text.length <= LENGTH


def test_pretraining_where_everything_is_masked_and_a_field_has_one_value(
    odd: tuple[Config, Dataset], tmp_path: Path
) -> None:
    config, _ = odd
    stages.pretrain(config, tmp_path / "pretrain")
    records = logged(tmp_path / "pretrain")
    assert len(records) == 30
    for name in ("loss", "icl", "mlm", "mtm", "grad_norm"):
        assert all(np.isfinite(record[name]) for record in records), name  # None, too, is refused
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(tmp_path / "pretrain")[0]))


def test_finetuning_with_batches_of_one_class(odd: tuple[Config, Dataset], tmp_path: Path) -> None:
    config, dataset = odd
    result = stages.finetune(config, "joint", None, tmp_path / "joint")
    records = [record for record in logged(tmp_path / "joint") if "loss" in record]
    assert len(records) == 30
    assert all(np.isfinite(record["loss"]) and np.isfinite(record["grad_norm"]) for record in records)
    assert 0 < int(np.asarray(dataset.valid.labels).sum()) < len(dataset.valid.labels)
    assert 0 <= result["valid"]["auc"] <= 1


def test_no_rate_hides_every_field(tiny_config: Config) -> None:
    """As a share of the fields, 1 would leave nothing to learn from, so it is refused; linked fields may be all."""
    with pytest.raises(ValueError, match=r"less than 1|Input should be less"):
        tiny_config.override({"mask.rate": 1.0})
