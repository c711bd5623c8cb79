"""Models of other libraries on the same split, for `--study baselines`: what a reviewer asks about first.

Each is fitted to the labelled training rows for every point of a small grid, and the point with the best AUC on
validation is kept.
"""

import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from alt_jax import console, factors, run_files
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.data.labelled import labelled
from alt_jax.data.prepared_config import check_prepared
from alt_jax.data.prompt import feature_ids
from alt_jax.data.shards import Rows
from alt_jax.errors import InputError
from alt_jax.evaluate import report
from alt_jax.schema import PAD_ID, Schema

_WIDTH = 32  # of the factors


class Task(NamedTuple):
    """What a model is fitted to.

    Attributes:
      x, y: Features and labels of the labelled training rows.
      x_valid, y_valid: Those of validation, for models that stop by them.
      slots: How many of the first columns are ids, where the features are columns of ids.
      seed: Of what is drawn.
    """

    x: Any
    y: np.ndarray
    x_valid: Any
    y_valid: np.ndarray
    slots: int
    seed: int


# A fitted model: rows of features to scores, of which only the order counts, or which are probabilities.
Scorer = Callable[[Any], Float[np.ndarray, " N"]]


def fit(config: Config, name: str, folder: Path) -> dict[str, Any]:
    """Fits a baseline and keeps what it scores.

    Args:
      config: The experiment: its dataset, label share and seed.
      name: Of `NAMES`.
      folder: Takes `config.json`, `scores.npz` and `result.json`.

    Returns:
      What `result.json` holds: as a finetuning's, and under "took" the values that were chosen.

    Raises:
      InputError: There is no such dataset, it lacks what the baseline needs, or its library is not installed.
    """
    began = time.perf_counter()
    dataset = Dataset.load(config.data.dir, config.data.memory_gib)
    check_prepared(config)
    check(name, dataset.schema)
    part = dataset.schema.splits["train"]
    rows = labelled(dataset.train, config.finetune.label_share, config.seed, part.unlabelled)
    features, grid, train = _KINDS[name]
    slots = sum(dataset.schema.widths)
    inputs = features(dataset)
    parts = {"train": inputs(rows), **{split: inputs(dataset.split(split)) for split in ("valid", "test")}}
    label = {"train": np.asarray(rows.labels), "valid": np.asarray(dataset.valid.labels)}
    best: tuple[float, dict[str, float], dict[str, np.ndarray]] | None = None
    for point in _points(grid):
        score = train(Task(parts["train"], label["train"], parts["valid"], label["valid"], slots, config.seed), point)
        scores = {split: score(parts[split]) for split in ("valid", "test")}
        auc = report(dataset, "valid", scores["valid"])["auc"]
        console.log(f"{name} {_said(point)}: valid AUC {auc:.4f}", baseline=name, **point, auc=auc)
        rank = -1.0 if np.isnan(auc) else auc  # undefined where all scores are equal
        if best is None or rank > best[0]:
            best = rank, point, scores
    assert best is not None, "a grid has points"
    result = {
        "stage": "baseline",
        "baseline": name,
        "seed": config.seed,
        "protocol": dataset.schema.protocol,
        "took": best[1],
        **{split: report(dataset, split, score) for split, score in best[2].items()},
        "seconds": round(time.perf_counter() - began, 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    run_files.replace(folder / "config.json", config.to_json() + "\n")
    run_files.write_scores(folder, best[2])
    run_files.write_json(folder / "result.json", result)
    return result


def _points(grid: Mapping[str, tuple[float, ...]]) -> Iterator[dict[str, float]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _said(point: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


# --- what the models see ---


def _one_hot(dataset: Dataset) -> Callable[[Rows], Any]:
    """Every feature id of a row as a column, a list's with equal shares; and numbers as they are."""
    schema = dataset.schema

    def of(rows: Rows) -> Any:
        ids, numbers = _ids(dataset, rows)
        there = ids != PAD_ID
        row, slot = np.nonzero(there)
        of_slot = np.asarray(schema.field_of_slot)
        count = np.stack([there[:, of_slot == f].sum(axis=1) for f in of_slot], axis=1)  # values of the slot's field
        share = 1 / count[row, slot]
        one_hot = sp.csr_matrix((share, (row, ids[row, slot])), (len(ids), schema.num_ids))
        return sp.hstack([one_hot, sp.csr_matrix(numbers)]).tocsr()

    return of


def _with_factors(dataset: Dataset) -> Callable[[Rows], Any]:
    """The same beside the factors of the row's user and item, and their products, one by one."""
    schema, one_hot = dataset.schema, _one_hot(dataset)
    ids, vectors = factors.factors(dataset, _WIDTH)
    table = np.zeros((schema.num_ids, _WIDTH))
    table[ids] = vectors / max(float(vectors.std()), 1e-12)
    assert schema.user is not None, "factors.check refuses it"
    assert schema.item is not None, "factors.check refuses it"
    slots = [schema.slot(schema.user), schema.slot(schema.item)]

    def of(rows: Rows) -> Any:
        user, item = (table[column] for column in _ids(dataset, rows)[0][:, slots].T)
        return sp.hstack([one_hot(rows), sp.csr_matrix(np.concatenate([user, item, user * item], axis=1))]).tocsr()

    return of


def _columns(dataset: Dataset) -> Callable[[Rows], Any]:
    """A column of ids for every slot, and numbers as they are."""
    return lambda rows: np.concatenate(_ids(dataset, rows), axis=1).astype(np.float64)


def _ids(dataset: Dataset, rows: Rows) -> tuple[Int[np.ndarray, "N S"], Float[np.ndarray, "N M"]]:
    """Feature ids, and the standardised numbers of numeric fields."""
    values, schema = np.asarray(rows.values[:]), dataset.schema
    ids = np.asarray(jax.device_get(feature_ids(dataset.pieces, values)))
    numeric = [schema.slot(field.name) for field in schema.fields if field.kind == "numeric"]
    return ids, np.asarray(dataset.pieces.number)[values[:, numeric]].reshape(len(values), len(numeric))


# --- the models ---


def _ridge(task: Task, point: Mapping[str, float]) -> Scorer:
    """Least squares on the labels; its scores, put between 0 and 1, are read as probabilities."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=point["l2"], solver="lsqr", random_state=task.seed).fit(task.x, task.y)
    return lambda x: np.clip(model.predict(x), 1e-6, 1 - 1e-6)


def _logistic(task: Task, point: Mapping[str, float]) -> Scorer:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / point["l2"], max_iter=1000, random_state=task.seed).fit(task.x, task.y)
    return lambda x: np.asarray(model.predict_proba(x)[:, 1])


def _boosted(task: Task, point: Mapping[str, float]) -> Scorer:
    """Trees until the AUC on validation has not risen for 50 of them."""
    import lightgbm

    values = {
        "objective": "binary",
        "metric": "auc",
        "learning_rate": point["learning_rate"],
        "num_leaves": int(point["leaves"]),
        "lambda_l2": point["l2"],
        "min_data_in_leaf": min(20, max(1, len(task.y) // 20)),
        "seed": task.seed,
        "num_threads": 2,  # the same trees on every machine
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    train = lightgbm.Dataset(task.x, task.y, categorical_feature=list(range(task.slots)), free_raw_data=False)
    valid = lightgbm.Dataset(task.x_valid, task.y_valid, reference=train, free_raw_data=False)
    stop = lightgbm.early_stopping(50, verbose=False)
    model = lightgbm.train(values, train, 1000, valid_sets=[valid], callbacks=[stop])
    return lambda x: np.asarray(model.predict(x, num_iteration=model.best_iteration))


_KINDS: dict[str, tuple[Callable[[Dataset], Callable[[Rows], Any]], dict[str, tuple[float, ...]], Any]] = {
    "ridge": (_with_factors, {"l2": (3.0, 10.0, 30.0, 100.0, 300.0)}, _ridge),
    "logistic": (_one_hot, {"l2": (0.3, 1.0, 3.0, 10.0, 30.0)}, _logistic),
    "lightgbm": (_columns, {"learning_rate": (0.03, 0.1), "leaves": (7, 31), "l2": (0.0, 10.0)}, _boosted),
}
NAMES = tuple(_KINDS)


def check(name: str, schema: Schema) -> None:
    """Refuses a baseline that cannot be fitted, before any run of its study.

    Raises:
      InputError: Its library is not installed, or it factors pairs of user and item, and the dataset declares none.
    """
    for package in ("sklearn", *(["lightgbm"] if name == "lightgbm" else [])):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"baseline {name!r} needs the package {package}; install it with: pip install 'alt-jax[baselines]'"
            )
    if name == "ridge":
        factors.check(schema)
