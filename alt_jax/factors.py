"""Factors of which user has which item: a start for the table of ids that looks at no label."""

from typing import Any

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float, Int

from alt_jax import cluster
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import feature_ids
from alt_jax.errors import InputError
from alt_jax.schema import Schema

STD = 0.1  # of the factors' entries, all together


def check(schema: Schema) -> None:
    """Refuses a dataset of which no user and no item is declared.

    Raises:
      InputError: It is one.
    """
    if schema.user is None or schema.item is None:
        raise InputError("ctr.init 'svd' factors pairs of user and item; set data.user and data.item.")


def factors(dataset: Dataset, width: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n {width}"]]:
    """Truncated SVD of the 0-1 matrix of the training part's pairs, R ≈ U S Vᵀ: U √S of users and V √S of items.

    Args:
      dataset: Declares a user and an item.
      width: Of the vectors; where R has a smaller rank than that, the rest is 0.

    Returns:
      Feature ids and their vectors, scaled so that all entries together have the standard deviation `STD`.
    """
    schema = dataset.schema
    check(schema)
    assert schema.user is not None
    assert schema.item is not None
    pairs = np.stack([dataset.entity("train", "user"), dataset.entity("train", "item")], axis=1)
    values = pairs[(pairs >= 0).all(axis=1)]
    users, items = (np.asarray(feature_ids(dataset.pieces, values))[:, side] for side in (0, 1))
    (user_ids, row), (item_ids, column) = (np.unique(ids, return_inverse=True) for ids in (users, items))
    matrix = scipy.sparse.coo_matrix((np.ones(len(row)), (row, column)), (len(user_ids), len(item_ids))).tocsr()
    matrix.data[:] = 1.0
    found = np.zeros((len(user_ids) + len(item_ids), width))
    rank = min(width, *(side - 1 for side in matrix.shape))
    if rank > 0:
        start = np.random.default_rng(0).standard_normal(min(matrix.shape))
        left, scale, right = scipy.sparse.linalg.svds(matrix, k=rank, v0=start)
        order = np.argsort(-scale)
        found[: len(user_ids), :rank] = (left * np.sqrt(scale))[:, order]
        found[len(user_ids) :, :rank] = (right.T * np.sqrt(scale))[:, order]
        found *= STD / found.std()
    return np.concatenate([user_ids, item_ids]), found.astype(np.float32)


def put(params: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Fresh parameters whose table of ids starts from the factors; other ids stay as they are."""
    table = params["ctr"]["embedding"]["embedding"]
    with cluster.together():
        ids, vectors = factors(dataset, table.shape[1])
    start = jax.jit(lambda table: table.at[ids].set(vectors), out_shardings=table.sharding)
    return params | {"ctr": params["ctr"] | {"embedding": {"embedding": start(table)}}}
