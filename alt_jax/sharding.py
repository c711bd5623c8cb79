"""The device mesh, and what lies where on it. No other file knows it.

One axis, `data`, over all devices of all processes. Batches are split over it by rows. Parameters are copied to every
device or split as well, by rules over their names (`alt_jax.sharding_rules`); the optimiser's state lies as its
parameter does. The step is compiled for the global batch and the whole model, so it means the same on any number of
devices and under any rules: they decide who holds what, and XLA puts in the communication that follows.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alt_jax import programs
from alt_jax.errors import InputError

# A pattern for the whole name of a parameter, and how one that it matches is split: by `rows`, or along its `longest`
# axis that the devices divide (FSDP). What no pattern matches is copied to every device.
Rules = tuple[tuple[str, Literal["rows", "longest"]], ...]

_SMALL = 1 << 14  # elements of a parameter that is not worth splitting along its longest axis: biases, norms


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all there are; those of one process lie side by side."""
    programs.write_whole()  # whatever is kept of what is compiled is compiled for a mesh
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id)
    )
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def check_batch(mesh: Mesh, batch_size: int, microbatches: int = 1) -> None:
    """Raises InputError if the devices do not divide the global batch, or one of its microbatches."""
    rows, what = batch_size // microbatches, "batch" if microbatches == 1 else "microbatch"
    if rows % mesh.size:
        raise InputError(
            f"A {what} of {rows} rows cannot be split over {mesh.size} devices; choose a multiple of {mesh.size}."
        )


def shards(rows: int) -> int:
    """Inside jit: how many parts of a batch the mesh holds, each of whole rows on one device; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    count = int(mesh.shape.get("data", 1))
    return 1 if rows % count else count


def own_rows(mesh: Mesh, rows: int) -> slice:
    """Which rows of a global batch of so many this process's devices hold."""
    every = by_rows(mesh).addressable_devices_indices_map((rows,)).values()
    spans = [index[0].indices(rows) for index in every if index is not None]
    return slice(min(low for low, _, _ in spans), max(high for _, high, _ in spans))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: small parameters, prompt pieces, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def layout(mesh: Mesh, tree: Any, rules: Rules) -> Any:
    """Where every array of a tree lies.

    Args:
      mesh: Devices.
      tree: Parameters, or a state in which their names stand at the end of a path. Of its leaves only the shapes count.
      rules: How which of them are split.

    Returns:
      The tree with a `NamedSharding` in place of every array.
    """

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        for pattern, how in rules:
            if leaf.ndim and re.fullmatch(f"(.*/)?({pattern})", name):
                return NamedSharding(mesh, _split(leaf.shape, how, mesh.size))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, tree)


def _split(shape: tuple[int, ...], how: Literal["rows", "longest"], devices: int) -> PartitionSpec:
    axis = 0
    if how == "longest":
        even = [a for a in range(len(shape)) if shape[a] % devices == 0]
        if not even or np.prod(shape) < _SMALL:
            return PartitionSpec()
        axis = max(even, key=lambda a: shape[a])
    return PartitionSpec(*(None,) * axis, "data")


def place(mesh: Mesh, tree: Any, rules: Rules = ()) -> Any:
    """Puts every array where the rules say; what is there already is left alone.

    Args:
      mesh: Devices.
      tree: NumPy arrays, the same in every process, or arrays of any other layout.
      rules: As for `layout`.
    """
    return jax.tree.map(_put, tree, layout(mesh, tree, rules))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts a copy of every array on every device."""
    return place(mesh, tree)


def split_rows(mesh: Mesh, tree: Any) -> Any:
    """Puts a batch on the devices. Every process gives the rows that are its own (`own_rows`)."""
    sharding = by_rows(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    # device_put would send the whole array around to see whether the processes agree on it
    here = np.asarray(x)
    return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])


def jit_init(mesh: Mesh, init: Callable[[jax.Array], Any], seed: int, rules: Rules) -> Any:
    """Fresh parameters, each made where it lies, so that no device ever holds a model that is too large for it."""
    key = jax.random.key(seed)
    return jax.jit(init, out_shardings=layout(mesh, jax.eval_shape(init, key), rules))(key)


def cut(tree: Any, parts: int) -> Any:
    """Inside jit: the rows of every array in parts, [parts, rows / parts, …]; row i of part j is row i · parts + j.

    So a part has rows from all over the batch, from every device the same number, and nothing moves between devices.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def one(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
        if mesh.empty or x.shape[1] % mesh.shape["data"]:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, "data"))

    return jax.tree.map(one, tree)


def uncut(x: jax.Array) -> jax.Array:
    """The rows that `cut` made parts of, in order again."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def constrain_rows(x: jax.Array) -> jax.Array:
    """Inside jit: asks that the leading axis be split, so that work on gathered rows is shared out, not repeated."""
    count = jax.sharding.get_abstract_mesh().shape.get("data", 0)
    if not count or x.shape[0] % count:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data"))
