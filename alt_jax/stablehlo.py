"""The serving function of an export: value ids to click probabilities, as one file that JAX runs without alt_jax.

`score.stablehlo` is what `jax.export` serialises: a StableHLO program, lowered for CPU, CUDA and TPU, for any number of
rows, with the parameters and the prompt pieces inside as constants.

    score = jax.export.deserialize(Path("score.stablehlo").read_bytes())
    probability = score.call(ids)  # [B, S] int32 to [B] float32

JAX promises that a newer version, up to six months younger than the one that wrote the file, still runs it; with an
older version it may run or not. After that export the run again, from the run folder or with the parameters in
`params.safetensors`.

An id is the number of a value's row in `vocabulary.parquet`, or of a field's unseen values, or −1
(`alt_jax.data.dataset.Encoder.serving_pieces`). Any other is taken for the nearest that there is.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Int

from alt_jax.data.prompt import Pieces
from alt_jax.errors import InputError
from alt_jax.tasks import Finetune, Params, text_length

NAME = "score.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
MOST_BYTES = 2**31 - 2**24  # of constants: neither JAX' flatbuffers nor ONNX' protocol buffers hold 2 GiB


def check_size(arrays: Any) -> None:
    """Raises InputError if the arrays of a tree are more than one file can hold as constants."""
    size = sum(np.asarray(array).nbytes for array in jax.tree.leaves(arrays))
    if size > MOST_BYTES:
        raise InputError(
            f"its constants would take {size / 2**30:.1f} GiB, and such a file holds 2 at most; use params.safetensors."
        )


def serialize(task: Finetune, params: Params, pieces: Pieces, longest: int) -> bytes:
    """The serving function of a finished finetuning.

    Args:
      task: Model and strategy.
      params: Its parameters.
      pieces: Of every value id that may be asked for.
      longest: Tokens that no prompt of these pieces exceeds.

    Returns:
      What `jax.export.deserialize` reads; [B, S] int32 value ids to [B] float32 probabilities. It names no file of the
      machine that wrote it.

    Raises:
      InputError: The model is too large for one file.
    """
    check_size((params, pieces))
    model = task.model
    length = min(text_length(longest), model.encoder.max_length)
    params, pieces = jax.tree.map(np.asarray, (params, pieces))

    def score(ids: Int[Array, "B S"]) -> Float[Array, " B"]:
        weights, known = jax.tree.map(jnp.asarray, (params, pieces))
        return jax.nn.sigmoid(task.logit(weights, known, ids, length).astype(jnp.float32))

    rows = export.symbolic_shape("batch")
    ids = jax.ShapeDtypeStruct((*rows, sum(model.schema.widths)), jnp.int32)
    with _without_locations():
        exported = export.export(jax.jit(score), platforms=PLATFORMS)(ids)
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Leaves out of a program which lines of which files it came from."""
    name = "jax_traceback_in_locations_limit"
    before: Any = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
