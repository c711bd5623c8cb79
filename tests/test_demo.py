"""A miniature demo, end to end."""

import contextlib
import dataclasses
import io
import json
import re
import time

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from alt_jax.config import (
    CTRConfig,
    FinetuneConfig,
    FinetuneConfigs,
    ICLConfig,
    JointConfig,
    PLMConfig,
    PretrainConfig,
    TextConfig,
    load_config,
)
from alt_jax.data.dataset import Dataset
from alt_jax.data.synthetic import SyntheticConfig
from alt_jax.demo import RECIPE, auc_standard_error, best_possible, demo, demo_config
from alt_jax.errors import InputError

LOG = SyntheticConfig(users=60, items=80, makers=8, rows=1500)
FEW = FinetuneConfig(batch_size=64, epochs=1, patience=1)
TINY = dataclasses.replace(
    RECIPE,
    data=dataclasses.replace(
        RECIPE.data,
        fields=tuple(f for f in RECIPE.data.fields if f.column in ("user_id", "item_id", "title", "genre")),
        linked=(("item_id", "title", "genre"),),
    ),
    text=TextConfig(
        vocab_size=300, hidden=8, layers=1, heads=1, intermediate=8, dropout=0.0, max_length=48, pooling="mean"
    ),
    ctr=CTRConfig(dim=4, hidden=(8,), options=(("experts", 1), ("layers", 1), ("rank", 2))),
    icl=ICLConfig(dim=8, locked="ctr"),
    pretrain=PretrainConfig(batch_size=64, epochs=1),
    finetune=FinetuneConfigs(ctr=FEW, plm=PLMConfig(**vars(FEW)), joint=JointConfig(**vars(FEW))),
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The folder, and what the first and the second start printed; on one device, for which compiling is quickest."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        for _ in range(2):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                demo(folder, 0, log=LOG, recipe=TINY)
            printed.append(said.getvalue())
    return folder, printed


def table(printed: str) -> str:
    return printed[printed.index("RESULTS") :]


def test_table_has_all_rows_and_fits_the_screen(outputs):
    lines = table(outputs[1][0]).splitlines()
    assert [line[:30].split() for line in lines[3:9]] == [
        ["CTR", "tower", "no", "pretraining"],
        ["pretrained"],
        ["text", "tower", "no", "pretraining"],
        ["pretrained"],
        ["both", "towers", "no", "pretraining"],
        ["pretrained"],
    ]
    for line in lines[3:9]:
        auc, logloss, gain, unseen = line[30:].split()
        assert 0 < float(auc) < 1
        assert float(logloss) > 0
        assert gain == "–" or gain.endswith("%")
        assert 0 <= float(unseen) <= 1
    assert max(map(len, lines)) <= 100 + len(str(outputs[0]))


def test_table_shows_what_the_runs_found(outputs):
    folder, printed = outputs
    for name, line in zip(("ctr", "plm", "joint"), table(printed[0]).splitlines()[4:9:2], strict=True):
        with_it, without = (
            json.loads((folder / f"seed-0/{name}-{kind}/result.json").read_text())["test"]
            for kind in ("pretrained", "scratch")
        )
        auc, logloss, gain, unseen = line[30:].split()
        assert float(auc) == pytest.approx(with_it["auc"], abs=6e-5)
        assert float(logloss) == pytest.approx(with_it["logloss"], abs=6e-5)
        assert float(unseen) == pytest.approx(with_it["unseen_item_auc"], abs=6e-5)
        expected = (with_it["auc"] - 0.5) / (without["auc"] - 0.5) - 1
        assert float(gain.rstrip("%")) == pytest.approx(100 * expected, abs=0.06)


def test_the_quick_start_names_runs_that_are_there(outputs, pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "quickstart.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bdemo/(seed-\d/[\w-]+)", page))
    assert named
    assert all((outputs[0] / name / "run.json").is_file() for name in named)


def test_second_start_repeats_nothing_and_prints_the_same_table(outputs):
    folder, printed = outputs
    began = time.process_time()
    demo(folder, 0, log=LOG, recipe=TINY)
    assert time.process_time() - began < 2
    assert table(printed[1]) == table(printed[0])
    assert printed[1].count("is already finished") == 8
    assert "epoch" not in printed[1]


def test_best_possible_auc_by_comparing_all_pairs(outputs):
    folder, printed = outputs
    raw = pq.read_table(folder / "raw.parquet")
    column = {
        name: np.asarray(raw[name].to_pylist()) for name in ("item_id", "timestamp", "label", "click_probability")
    }
    by_time = np.argsort(column["timestamp"])
    train, test = by_time[:1200], by_time[1350:]

    def pairs(rows: np.ndarray) -> float:
        p, clicked = column["click_probability"][rows], column["label"][rows] == 1
        margin = p[clicked][:, None] - p[~clicked][None]
        return float(np.mean((margin > 0) + 0.5 * (margin == 0)))

    new = test[~np.isin(column["item_id"][test], column["item_id"][train])]
    best = best_possible(demo_config(folder, 0, TINY), Dataset.load(folder / "prepared"))
    assert best.auc == pytest.approx(pairs(test), abs=1e-12)
    assert best.unseen_auc == pytest.approx(pairs(new), abs=1e-12)
    line = next(line for line in table(printed[0]).splitlines() if line.startswith("best possible"))
    assert [float(line.split()[i]) for i in (2, 4)] == pytest.approx([best.auc, best.unseen_auc], abs=6e-5)
    assert f"{len(new):,}" in table(printed[0])


def test_standard_error_against_simulation():
    rng = np.random.default_rng(0)
    positives, negatives, shift = 60, 90, 1.0
    aucs = [
        (rng.normal(shift, size=(positives, 1)) > rng.normal(size=(1, negatives))).mean() for _ in range(2000)
    ]  # fmt: skip
    assert auc_standard_error(float(np.mean(aucs)), positives, negatives) == pytest.approx(np.std(aucs), rel=0.1)
    assert np.isnan(auc_standard_error(0.7, 5, 0))


def test_other_folders_are_refused(outputs, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not a demo's folder"):
        demo(tmp_path, 0, log=LOG, recipe=TINY)
    with pytest.raises(InputError, match="another log or recipe"):
        demo(outputs[0], 0, log=dataclasses.replace(LOG, rows=1600), recipe=TINY)


def test_shipped_config_is_the_recipe(pytestconfig):
    config = load_config(pytestconfig.rootpath / "configs/demo.py")
    assert dataclasses.replace(config, data=RECIPE.data) == RECIPE
    assert (config.data.raw, config.data.dir) == ("demo/raw.parquet", "demo/prepared")
