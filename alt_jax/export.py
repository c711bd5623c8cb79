"""Export of a finished finetuning, from which `alt_jax.scorer` scores raw rows.

```
README.md             the model card: data, training, metrics, limits, and how to use each file without alt_jax
params.safetensors    every parameter, named by its path: ctr/embedding/embedding, text/encoder/layer/0/…
score.stablehlo       value ids to probabilities, for JAX (see `alt_jax.stablehlo`)
ctr.onnx              value ids to the CTR tower's probabilities, for ONNX runtimes (strategies ctr and joint; see
                      `alt_jax.onnx`); left out where the package onnx is not installed
spelling.py           how values are spelled, for whoever reads raw rows without alt_jax (`alt_jax.data.spelling`)
config.json · schema.json · encoder.json · run.json · result.json
vocabulary.parquet · pieces.npz · tokenizer/      what raw rows are encoded with
text_tower/           the text tower as a Hugging Face folder (strategies plm and joint)
second_text_tower/    likewise, if the run has one
```
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from alt_jax import card, console, stablehlo
from alt_jax.data import spelling
from alt_jax.data.dataset import Encoder, copy_encoder
from alt_jax.errors import InputError
from alt_jax.models import huggingface
from alt_jax.partial import beside, writing
from alt_jax.run_files import EXPORTED, PARAMS, is_exported
from alt_jax.stages import Trained, load_finetuned, open_dataset
from alt_jax.tasks import Finetune, Params

_ANEW = "export the run to a new folder"


def export(folder: Path, out: Path, data: Sequence[str] = ()) -> bool:
    """Writes a finished finetuning as plain files that need neither Orbax nor the dataset.

    Says what it leaves out, and why: programs that one file has no room for, or that cannot be made here.

    Args:
      folder: The finetuning run.
      out: A new folder, made whole by a rename. One that holds this very export, since the same command was started
        before, stays as it is.
      data: Where the run's dataset is, if not where it was.

    Returns:
      Whether it was written; it was not where `out` holds it.

    Raises:
      InputError: The run is not finished, its dataset is gone, or `out` is taken or cannot be written.
    """
    if is_exported(folder, out):
        return False
    trained = load_finetuned(folder)
    dataset = open_dataset(trained.run, data)
    with writing(out), beside(out) as partial:
        flat: dict[str, Any] = traverse_util.flatten_dict(trained.params, sep="/")
        tensors = {name: np.asarray(value, order="C") for name, value in flat.items()}
        safetensors.numpy.save_file(tensors, partial / PARAMS)
        copy_encoder(dataset.folder, partial)
        shutil.copyfile(spelling.__file__, partial / "spelling.py")
        for name in EXPORTED:
            shutil.copy(folder / name, partial / name)
        shutil.copymode(partial / "config.json", partial / PARAMS)  # safetensors lets nobody else read its files
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
    return True


def _programs(trained: Trained, encoder: Encoder) -> Iterator[tuple[str, bytes]]:
    """The serving programs that can be made, by the names of their files; says which cannot."""
    pieces, longest = encoder.serving_pieces()
    try:
        yield stablehlo.NAME, stablehlo.serialize(trained.task, trained.params, pieces, longest)
    except InputError as error:
        console.log(f"left out {stablehlo.NAME}: {error}")
    if trained.task.strategy == "plm":
        return
    try:
        from alt_jax import onnx  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "onnx":
            raise
        install = "pip install 'alt-jax[onnx]' and export to a new folder"
        console.log(f"left out ctr.onnx: it needs the package onnx; {install}.")
        return
    try:
        yield onnx.NAME, onnx.ctr_model(trained.task, trained.params, pieces).SerializeToString()
    except InputError as error:
        console.log(f"left out {onnx.NAME}: {error}")


def read_params(path: Path, task: Finetune) -> Params:
    """The parameters that the task needs, every one of them, from an export's file.

    Raises:
      InputError: It is damaged, or does not hold just these.
    """
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, KeyError) as error:  # the last: a type that NumPy has not
        raise InputError(f"{path} is damaged ({error}); {_ANEW}.") from None
    expected = traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0)), sep="/")
    for name in sorted(expected.keys() | tensors.keys()):
        ours, theirs = (
            f"{tree[name].dtype}{list(tree[name].shape)}" if name in tree else "absent" for tree in (expected, tensors)
        )
        if ours != theirs:
            raise InputError(f"{path} does not fit its config: {name} is {theirs}, not {ours}; {_ANEW}.")
    params: Params = traverse_util.unflatten_dict(tensors, sep="/")
    return params
