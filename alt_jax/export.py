"""Export of a finished finetuning, and prediction on raw rows from a run or an export.

```
README.md             the model card: data, training, metrics, limits, and how to use each file without alt_jax
params.safetensors    every parameter, named by its path: ctr/embedding/embedding, text/encoder/layer/0/…
score.stablehlo       value ids to probabilities, for JAX (see `alt_jax.stablehlo`)
ctr.onnx              value ids to the CTR tower's probabilities, for ONNX runtimes (strategies ctr and joint; see
                      `alt_jax.onnx`); left out where the package onnx is not installed
config.json · schema.json · encoder.json · run.json · result.json
vocabulary.parquet · pieces.npz · tokenizer/      what raw rows are encoded with
text_tower/           the text tower as a Hugging Face folder (strategies plm and joint)
second_text_tower/    likewise, if the run has one
```
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Float

from alt_jax import card, stablehlo
from alt_jax.data.dataset import Encoder, copy_encoder
from alt_jax.data.sources import table
from alt_jax.errors import InputError
from alt_jax.evaluate import Scorer
from alt_jax.models import huggingface
from alt_jax.run import Run
from alt_jax.sharding import make_mesh, replicate
from alt_jax.stages import Trained, finetune_task, load_finetuned, open_dataset
from alt_jax.tasks import Finetune, Params

PARAMS = "params.safetensors"
_RUN_FILES = ("config.json", "schema.json", "encoder.json", "run.json", "result.json")


@dataclass(frozen=True)
class Predictor:
    """A finished model and what raw rows are encoded with."""

    task: Finetune
    params: Params
    encoder: Encoder

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Opens a finetuning run or an export.

        Raises:
          InputError: The folder is neither, or is damaged.
        """
        if (folder / PARAMS).is_file():
            run = Run.load(folder)
            task = finetune_task(run)
            return cls(task, _read_params(folder / PARAMS, task), Encoder.load(folder))
        trained = load_finetuned(folder)
        return cls(trained.task, trained.params, Encoder.load(open_dataset(trained.run).folder))

    def __call__(self, rows: pa.Table, origin: str) -> Float[np.ndarray, " N"]:
        """Click probability of every raw row, in order.

        Args:
          rows: Holds the schema's columns.
          origin: Name of the table, for messages.

        Raises:
          InputError: A column is missing.
        """
        values, pieces = self.encoder.encode(rows, origin, prompts=self.task.strategy != "ctr")
        mesh = make_mesh()
        return Scorer(self.task, mesh, pieces)(replicate(mesh, self.params), values)


def predict(folder: Path, rows: Path, output: Path) -> int:
    """Scores a CSV or Parquet file of raw rows.

    Args:
      folder: A finetuning run or an export.
      rows: Has the columns of the schema; the label is not needed. That of a sequence holds item ids, newest first,
        with the field's separator between them, or a list of them.
      output: Parquet (or CSV, by its name) with a column `score`, one line per row, in order.

    Returns:
      Number of rows.

    Raises:
      InputError: The model, the rows or the output cannot be used.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise InputError(f"{output} should end in .parquet or .csv.")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    with _writing(output):  # tried first: what cannot be written is said before anything is scored
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    try:
        model = Predictor.load(folder)
        raw = table.read(rows, model.encoder.columns, encoded=True)
        scores = pa.table({"score": pa.array(model(raw, str(rows)))})
        with _writing(output):
            (pq.write_table if output.suffix == ".parquet" else pyarrow.csv.write_csv)(scores, partial)
            partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return raw.num_rows


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what the file system says against `path` into one sentence."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written ({reason}); give another place.") from error


def export(folder: Path, out: Path) -> None:
    """Writes a finished finetuning as plain files that need neither Orbax nor the dataset.

    Says what it leaves out, and why: programs that one file has no room for, or that cannot be made here.

    Args:
      folder: The finetuning run.
      out: A new folder, made whole by a rename.

    Raises:
      InputError: The run is not finished, its dataset is gone, or `out` is taken or cannot be written.
    """
    if out.exists():
        raise InputError(f"{out} already exists; give a new folder.")
    trained = load_finetuned(folder)
    dataset = open_dataset(trained.run)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _writing(out):
            partial.mkdir(parents=True)
            flat: dict[str, Any] = traverse_util.flatten_dict(trained.params, sep="/")
            tensors = {name: np.asarray(value, order="C") for name, value in flat.items()}
            safetensors.numpy.save_file(tensors, partial / PARAMS)
            copy_encoder(dataset.folder, partial)
            for name in _RUN_FILES:
                shutil.copy(folder / name, partial / name)
            encoder = Encoder.load(partial)
            for name, tower in (("text", "text_tower"), ("text_second", "second_text_tower")):
                if name in trained.params:
                    huggingface.save(partial / tower, trained.run.encoder, trained.params[name], encoder.tokenizer)
            for name, program in _programs(trained, encoder):
                (partial / name).write_bytes(program)
            present = sorted(path.name for path in partial.iterdir())
            text = card.card(trained.run, trained.run.result() or {}, tensors, present)
            (partial / card.NAME).write_text(text, encoding="utf-8")
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _programs(trained: Trained, encoder: Encoder) -> Iterator[tuple[str, bytes]]:
    """The serving programs that can be made, by the names of their files; says which cannot."""
    pieces, longest = encoder.serving_pieces()
    try:
        yield stablehlo.NAME, stablehlo.serialize(trained.task, trained.params, pieces, longest)
    except InputError as error:
        print(f"left out {stablehlo.NAME}: {error}")
    if trained.task.strategy == "plm":
        return
    try:
        from alt_jax import onnx  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "onnx":
            raise
        print("left out ctr.onnx: it needs the package onnx; pip install 'alt-jax[onnx]' and export again.")
        return
    try:
        yield onnx.NAME, onnx.ctr_model(trained.task, trained.params, pieces).SerializeToString()
    except InputError as error:
        print(f"left out {onnx.NAME}: {error}")


def _read_params(path: Path, task: Finetune) -> Params:
    """The parameters that the task needs, every one of them."""
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}); export the run again.") from None
    expected = traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0)), sep="/")
    for name in sorted(expected.keys() | tensors.keys()):
        ours, theirs = (tree[name].shape if name in tree else "absent" for tree in (expected, tensors))
        if ours != theirs:
            raise InputError(f"{path} does not fit its config: {name} is {theirs}, not {ours}; export the run again.")
    params: Params = traverse_util.unflatten_dict(tensors, sep="/")
    return params
