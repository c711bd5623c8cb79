"""Checkpoints of a run folder. No other file knows Orbax.

A checkpoint holds parameters, optimiser state and the loop's own state. The newest one is kept to resume from, the one
before in case that is damaged, the best one (by validation, where there is any) to evaluate. Orbax commits a checkpoint
by renaming its folder when all of it is on disk, so what a killed run leaves half-written is never taken for whole.
What happens to a file later is found by its checksum before Orbax reads it: Orbax' own errors leave readers behind,
which fail loudly and late.
"""

import atexit
import functools
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from alt_jax import cluster, console
from alt_jax.errors import InputError, Stopped, first_line

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file at INFO and WARNING
_CHECKSUMS = "checksums.json"
_DELETED = ".deleted"  # a folder in `checkpoints`: a checkpoint that goes is renamed into it, and never half there
# Orbax takes some signs of a path for patterns, and a folder /gs for a bucket; TensorStore takes \\ for /.
_PLAIN = re.compile(r"(?!/(gs|s3|az|hf)(/|$))[\w./ -]+")
_REPLACE = "put back a copy of it, or train again in another --run-dir."


class Checkpoints:
    """The checkpoints of one run, written in the background."""

    def __init__(self, folder: Path) -> None:
        """Opens `folder/checkpoints`, which is made when the first checkpoint is saved.

        Damaged checkpoints that are newer than the newest whole one go to `folder/damaged`, and standard error says so.

        Args:
          folder: The run folder.
        """
        # best_fn with max_to_keep would delete the newest step when it is not the best; a union of policies does not
        policy = AnyPreservationPolicy(
            [
                LatestN(2),
                BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        with cluster.together():
            plain = _plain(folder.absolute())
            if cluster.first():
                _set_aside_damaged(folder)
        self._folder = folder / "checkpoints"
        self._empty_deleted()
        self._manager = ocp.CheckpointManager(
            plain / "checkpoints",
            # Without best_fn the scores would not be written: a resumed run would forget, and delete, its best step
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=_score,
                cleanup_tmp_directories=True,
                todelete_subdir=_DELETED,
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=lambda: _write_checksums(self._folder)
                ),
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
        with self._writing():  # this one, or the one before in the background
            self._manager.wait_until_finished()
            self._empty_deleted()
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
        """Reads a whole checkpoint, one whose checksums were right when this was opened.

        Args:
          step: Which one.
          params: Tree of arrays, or of what describes them, with the shapes, types and shardings to restore to.
          optimizer: The same for the optimiser state.

        Raises:
          InputError: The checkpoint has other shapes, or can no longer be read.
        """
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"params": params, "optimizer": optimizer})
        path = self._folder / str(step)
        try:
            # The manager knows an item's metadata only once it has saved or restored one itself
            with ocp.StandardCheckpointer() as reader:
                item = _plain(self._folder.parent.absolute()) / "checkpoints" / str(step)
                saved = {name: _saved_tree(reader, item / name) for name in template}
            _verify_shapes(saved, template, path)
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(template["params"]),
                    optimizer=ocp.args.StandardRestore(template["optimizer"]),
                    loop=ocp.args.JsonRestore(),
                ),
            )
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
            raise InputError(f"{_damaged(path, error)}; delete it to go on from an older one.") from error
        return found["params"], found["optimizer"], found["loop"]

    def _empty_deleted(self) -> None:
        if cluster.first():
            shutil.rmtree(self._folder / _DELETED, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types for a disk that is full or read-only
            raise InputError(
                f"A checkpoint in {self._folder} cannot be written ({first_line(error)}); mend that, and start the "
                "same command again to go on from the one before."
            ) from error

    def wait(self) -> None:
        """Returns when everything is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Waits, for all processes, and gives back the background threads.

        What all processes raise lets them wait for each other. With another error one of several just leaves: the
        others are in the midst of a step that needs it, so to wait for them would be to wait for ever.
        """
        if error is not None and not isinstance(error, InputError | Stopped) and jax.process_count() > 1:
            return
        self.close()

    def close(self) -> None:
        """As `__exit__`, without an error."""
        with self._writing():
            self._manager.close()
            self._empty_deleted()
        cluster.gather("closed")  # the first process commits, the others would go on without seeing it


def _score(metrics: Any) -> Any:
    """Sorts checkpoints; of two with the same score the earlier is the better, as the loop has it."""
    return metrics["score"], -metrics["step"]


def saved_steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a run folder, in order."""
    root = folder / "checkpoints"
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit()) if root.is_dir() else []


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
    with cluster.together():
        found = saved_steps(folder)
        if not found:
            raise InputError(f"{folder} holds no checkpoint; is it a run folder, and did the run save one?")
        step = found[-1] if step is None else step
        if step not in found:
            known = ", ".join(map(str, found))
            raise InputError(f"{root} has no checkpoint of step {step} (only {known}); run it again.")
        if cluster.first():
            try:
                _verify_checksums(root / str(step))
            except InputError as error:
                raise InputError(f"{error}; {_REPLACE}") from None
        path = _plain(folder.absolute()) / "checkpoints" / str(step) / "params"
    try:
        with ocp.StandardCheckpointer() as reader:
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), _saved_tree(reader, path))
            params = reader.restore(path, template)
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
        raise InputError(f"{_damaged(root / str(step), error)}; {_REPLACE}") from error
    return params, step


def _saved_tree(reader: ocp.StandardCheckpointer, item: Path) -> Any:
    """Shapes and types of an item of a checkpoint."""
    return reader.metadata(item).item_metadata.tree


@functools.cache
def _plain(folder: Path) -> Path:
    """A run folder by a name that Orbax and TensorStore read as it is: its own, or a link that goes with the process.

    Args:
      folder: An absolute path. Where a link is needed, it is made if it does not exist.
    """
    if _PLAIN.fullmatch(str(folder)):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="alt-jax-")).absolute()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    if not _PLAIN.fullmatch(str(place)):
        raise InputError(f"{folder} needs a link with a plain name, but {place} has none; set TMPDIR, e.g. to /tmp.")
    link = place / "run"
    link.symlink_to(folder, target_is_directory=True)
    return link


def _write_checksums(root: Path) -> None:
    """Writes the checksums of a checkpoint that Orbax is about to commit into its still temporary folder.

    Of several processes Orbax calls the first, when all have written.
    """
    for folder in root.iterdir():
        temporary = folder.is_dir() and not folder.name.isdigit() and folder.name != _DELETED
        if temporary and not (folder / _CHECKSUMS).exists():  # one that is there already may have lost its own
            # Only the items' files: Orbax writes to its own metadata beside them once more
            checksums = {str(p.relative_to(folder)): _checksum(p) for p in sorted(folder.glob("*/**/*")) if p.is_file()}
            (folder / _CHECKSUMS).write_text(json.dumps(checksums, indent=1))


def _verify_checksums(folder: Path) -> None:
    try:
        checksums = json.loads((folder / _CHECKSUMS).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(_damaged(folder, error)) from None
    if not isinstance(checksums, dict):
        raise InputError(_damaged(folder, f"{_CHECKSUMS} does not hold a JSON object"))
    present = {str(path.relative_to(folder)) for path in folder.glob("*/**/*") if path.is_file()}
    for name, checksum in checksums.items():
        try:
            found = _checksum(folder / name) if name in present else None
        except FileNotFoundError:  # a run that goes on has removed the checkpoint meanwhile
            found = None
        if found is None:
            raise InputError(_damaged(folder, f"{name} is lost"))
        if found != checksum:
            raise InputError(_damaged(folder, f"{name} is not as it was saved"))


def _set_aside_damaged(folder: Path) -> None:
    for step in reversed(saved_steps(folder)):
        path = folder / "checkpoints" / str(step)
        try:
            _verify_checksums(path)
            return
        except InputError as error:
            aside = folder / "damaged"
            aside.mkdir(exist_ok=True)
            kept = aside / f"{step}-{len(list(aside.iterdir()))}"
            path.rename(kept)
            console.warn(f"{error}; it was moved to {kept}.", step=step)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, reason: str | Exception) -> str:
    return f"Checkpoint {path} is damaged ({first_line(reason)})"


def _verify_shapes(saved: Any, expected: Any, path: Path) -> None:
    """Refuses a tree that does not fit before it is read.

    Orbax would hand back an absent leaf as ShapeDtypeStruct without an error, and fit an array to another shape.
    """
    shapes, wanted = (
        {jax.tree_util.keystr(key, simple=True, separator="/"): tuple(leaf.shape) for key, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (saved, expected))
    )
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise InputError(
                f"Checkpoint {path}: {name} should have shape {wanted.get(name)} and has {shapes.get(name)}; "
                "was it saved by another configuration?"
            )
