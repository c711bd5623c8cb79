"""Checkpoints of a run folder. No other file knows Orbax.

A checkpoint holds parameters, optimiser state and the loop's own state. The newest one is kept to resume from, the best
one (by validation, where there is any) to evaluate. Orbax commits a checkpoint by renaming its folder when all of it is
on disk, so what a killed run leaves half-written is never taken for whole.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from alt_jax.errors import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file at INFO and WARNING


class Checkpoints:
    """The checkpoints of one run, written in the background."""

    def __init__(self, folder: Path) -> None:
        """Opens `folder/checkpoints`, which is made when the first checkpoint is saved.

        Args:
          folder: The run folder.
        """
        # best_fn with max_to_keep would delete the newest step when it is not the best; a union of policies does not
        policy = AnyPreservationPolicy(
            [
                LatestN(1),
                BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._folder = folder / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(),
            # Without best_fn the scores would not be written: a resumed run would forget, and delete, its best step
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, best_fn=_score, cleanup_tmp_directories=True
            ),
            item_names=("params", "optimizer", "loop"),
        )

    def latest(self) -> int | None:
        """The newest whole step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, optimizer: Any, loop: Mapping[str, Any], score: float | None) -> None:
        """Starts to write a checkpoint; training goes on meanwhile.

        Args:
          step: Updates applied.
          params: Parameter tree.
          optimizer: Optimiser state.
          loop: JSON values of the training loop.
          score: Validation score, the higher the better, or None.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                loop=ocp.args.JsonSave(dict(loop)),
            ),
            metrics=None if score is None else {"score": score, "step": step},
            force=True,
        )

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Reads a whole checkpoint.

        Args:
          step: Which one.
          params: Tree of arrays with the shapes, types and shardings to restore to.
          optimizer: The same for the optimiser state.

        Raises:
          InputError: The checkpoint is damaged or has other shapes.
        """
        template = {
            "params": jax.tree.map(ocp.utils.to_shape_dtype_struct, params),
            "optimizer": jax.tree.map(ocp.utils.to_shape_dtype_struct, optimizer),
        }
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(template["params"]),
                    optimizer=ocp.args.StandardRestore(template["optimizer"]),
                    loop=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
            raise InputError(_damaged(self._folder / str(step), error)) from error
        restored = {"params": found["params"], "optimizer": found["optimizer"]}
        _verify(restored, template, self._folder / str(step))
        return found["params"], found["optimizer"], found["loop"]

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and gives back the background threads."""
        self._manager.close()


def _score(metrics: Any) -> Any:
    """Sorts checkpoints; of two with the same score the earlier is the better, as the loop has it."""
    return metrics["score"], -metrics["step"]


def load_params(folder: Path, step: int | None = None) -> tuple[dict[str, Any], int]:
    """Reads the parameters of a run as NumPy arrays, whatever devices wrote them.

    Args:
      folder: The run folder.
      step: Which checkpoint; None for the newest.

    Returns:
      The parameter tree and its step.

    Raises:
      InputError: There is no whole checkpoint, or it is damaged.
    """
    root = folder / "checkpoints"
    steps = sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []
    if not steps:
        raise InputError(f"{folder} holds no checkpoint; is it a run folder, and did the run save one?")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"{root} has no checkpoint of step {step} (only {', '.join(map(str, steps))}); run it again.")
    path = (root / str(step) / "params").absolute()
    try:
        with ocp.StandardCheckpointer() as reader:
            metadata = reader.metadata(path).item_metadata
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata.tree)
            params = reader.restore(path, template)
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
        raise InputError(_damaged(root / str(step), error)) from error
    _verify(params, template, root / str(step))
    return params, step


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return f"Checkpoint {path} cannot be read ({reason}); delete that folder to go on from an older one."


def _verify(found: Any, expected: Any, path: Path) -> None:
    """Refuses absent leaves, which Orbax hands back as ShapeDtypeStruct without an error, and other shapes."""
    leaves = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(found)}
    for key, leaf in jax.tree_util.tree_leaves_with_path(expected):
        name = jax.tree_util.keystr(key)
        got = leaves.get(name)
        if not isinstance(got, jax.Array | np.ndarray | np.generic) or got.shape != leaf.shape:
            shape = getattr(got, "shape", None)
            raise InputError(f"Checkpoint {path}: {name} should have shape {leaf.shape} and has {shape}.")
