"""The device mesh. No other file knows it.

One axis, `data`: batches are split over it, everything else is replicated. The step is compiled for the global batch,
so it means the same on any number of devices.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alt_jax.errors import InputError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all there are."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises InputError if the devices do not divide the global batch."""
    if batch_size % mesh.size:
        raise InputError(
            f"A batch of {batch_size} rows cannot be split over {mesh.size} devices; choose a multiple of {mesh.size}."
        )


def shards(rows: int) -> int:
    """Inside jit: how many parts of a batch the mesh holds, each of whole rows on one device; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    count = int(mesh.shape.get("data", 1))
    return 1 if rows % count else count


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: parameters, optimiser state, prompt pieces."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts a copy of every array on every device."""
    return jax.device_put(tree, replicated(mesh))


def split_rows(mesh: Mesh, tree: Any) -> Any:
    """Puts the rows of every array on the devices, evenly."""
    return jax.device_put(tree, by_rows(mesh))


def constrain_rows(x: jax.Array) -> jax.Array:
    """Inside jit: asks that the leading axis be split, so that work on gathered rows is shared out, not repeated."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.shape["data"]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data"))
