"""The SVD start against NumPy's dense SVD of the same matrix."""

import dataclasses

import numpy as np
import pytest

from alt_jax import factors, stages
from alt_jax.bridge import encoder_config
from alt_jax.errors import InputError
from alt_jax.run import Origin, Run
from alt_jax.sharding import make_mesh


def test_products_of_the_factors_are_the_best_ones_of_their_rank(tiny_dataset):
    schema = tiny_dataset.schema
    columns = [schema.slot(schema.user), schema.slot(schema.item)]
    pairs = {tuple(pair) for pair in tiny_dataset.pieces.feature[np.asarray(tiny_dataset.train.values)[:, columns]]}
    users, items = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    matrix = np.array([[float((user, item) in pairs) for item in items] for user in users])
    left, scale, right = np.linalg.svd(matrix, full_matrices=False)
    best = left[:, :4] * scale[:4] @ right[:4]

    ids, vectors = factors.factors(tiny_dataset, 4)
    of = dict(zip(ids.tolist(), vectors.astype(np.float64), strict=True))
    assert sorted(of) == sorted([*users, *items])
    products = np.array([[of[user] @ of[item] for item in items] for user in users])
    np.testing.assert_allclose(products / np.abs(products).max(), best / np.abs(best).max(), atol=1e-4)
    assert vectors.std() == pytest.approx(factors.STD, rel=1e-3)


def test_a_rank_that_is_smaller_than_the_vectors_leaves_zeros(tiny_dataset):
    _, vectors = factors.factors(tiny_dataset, 64)
    assert not vectors[:, 20:].any()
    assert vectors[:, 0].all()


def test_a_run_starts_from_them_and_other_ids_at_random(tmp_path, tiny_config, tiny_dataset):
    config = tiny_config.override({"ctr.init": "svd"})
    encoder = encoder_config(config.text, tiny_dataset.schema)
    tables = {}
    for name in ("svd", "random"):
        own = dataclasses.replace(config, ctr=dataclasses.replace(config.ctr, init=name))
        run = Run(tmp_path / name, Origin("finetune", "ctr"), own, tiny_dataset.schema, encoder)
        task = stages.finetune_task(run)
        params, _ = stages.starting_params(task, make_mesh(), run, tiny_dataset, None, ())
        tables[name] = np.asarray(params["ctr"]["embedding"]["embedding"])
    ids, vectors = factors.factors(tiny_dataset, config.ctr.dim)
    np.testing.assert_array_equal(tables["svd"][ids], vectors)
    rest = np.setdiff1d(np.arange(len(tables["svd"])), ids)
    np.testing.assert_array_equal(tables["svd"][rest], tables["random"][rest])


def test_users_and_items_have_to_be_declared(tmp_path, tiny_config, tiny_dataset):
    with pytest.raises(InputError, match=r"set data\.user and data\.item"):
        factors.check(dataclasses.replace(tiny_dataset.schema, user=None))
