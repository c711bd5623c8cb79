"""What is trained: a task is an `init` and a `loss` over a batch of value ids. Finetuning, and what all tasks share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alt_jax import objectives
from alt_jax.config import Strategy
from alt_jax.data.batches import Batch
from alt_jax.data.prompt import Pieces, Prompt, compose, feature_ids
from alt_jax.models import packing
from alt_jax.models.alt import ALT
from alt_jax.objectives import Mean
from alt_jax.schema import Schema
from alt_jax.sharding import shards

Params = dict[str, Any]


@runtime_checkable
class Task(Protocol):
    """What the training loop needs to know."""

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        ...

    def loss(
        self, params: Params, pieces: Pieces, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """The loss of a global batch and what to log."""
        ...


def row_prompts(
    model: ALT, pieces: Pieces, values: Int[Array | np.ndarray, "B S"], length: int, fields: Sequence[int] | None = None
) -> Prompt:
    """The rows spelled out, or some fields of them."""
    schema = model.schema
    return compose(pieces, values, length=length, pad_id=schema.text.pad_id, widths=schema.widths, fields=fields)


def row_numbers(model: ALT, pieces: Pieces, values: Int[Array | np.ndarray, "B S"]) -> Float[Array | np.ndarray, "B M"]:
    """Numbers of the numeric fields, standardised."""
    xp: Any = np if isinstance(pieces.number, np.ndarray) and isinstance(values, np.ndarray) else jnp
    return xp.take(pieces.number, values[:, np.asarray(model.schema.numeric_slots, int)], mode="clip")


def text_length(schema_length: int) -> int:
    """Static prompt length: the data's longest prompt, rounded up to 8 for the matrix units."""
    return -(-schema_length // 8) * 8


def fit(mask: Bool[Array, "B L"], lengths: np.ndarray) -> tuple[int | None, Bool[Array, "B L"], dict[str, Mean]]:
    """How many real tokens a device's rows have at most (`packing.room`), and what becomes of a batch that has more.

    Args:
      mask: Which tokens of the batch are real.
      lengths: Tokens of training rows' prompts.

    Returns:
      The room; the tokens that find it; and the metric `text/dropped`, the share of the others.
    """
    (rows, length), groups = mask.shape, shards(len(mask))
    room = packing.room(lengths, rows // groups, length)
    held = packing.lay_out(mask, groups, room).mask
    return room, held, {"text/dropped": objectives.share(mask & ~held, mask)}


def apply_method(model: ALT, params: Params, method: str, *args: Any, **options: Any) -> Any:
    """A method that has no dropout."""
    return model.apply({"params": params}, *args, method=method, **options)


def caller(model: ALT, params: Params, key: jax.Array | None) -> Callable[..., Any]:
    """`call(method, *args)` applies a method of the model, every call with dropout of its own; none without a key."""
    if key is None:
        return lambda method, *args, **options: apply_method(model, params, method, *args, train=False, **options)
    calls = iter(range(1 << 30))

    def call(method: str, *args: Any, **options: Any) -> Any:
        rngs = {"dropout": jax.random.fold_in(key, next(calls))}
        return model.apply({"params": params}, *args, train=True, method=method, rngs=rngs, **options)

    return call


def blank_row(schema: Schema) -> tuple[Int[Array, "1 S"], Float[Array, "1 M"]]:
    """Ids and numbers of the shapes that a model is initialised with."""
    return jnp.zeros((1, sum(schema.widths)), jnp.int32), jnp.zeros((1, len(schema.numeric_slots)))


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Click prediction under one of the strategies `ctr`, `plm`, `joint`.

    Attributes:
      model: Towers and logits.
      strategy: Which towers predict.
      lengths: Tokens of training rows' prompts, from which follows how much padding can be left out of training; None:
        it is kept.
    """

    model: ALT
    strategy: Strategy
    lengths: np.ndarray | None = None

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters of what the strategy uses."""
        ids, numbers = blank_row(self.model.schema)
        prompt = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
        inputs = self.strategy, ids, *prompt, numbers, prompt if self._second_fields() else None
        return self.model.init(key, *inputs, train=False, method="click")["params"]

    @property
    def packs(self) -> bool:
        """Whether there is one text tower, so that the lengths of whole prompts tell what it reads."""
        return self.strategy != "ctr" and not self._second_fields()

    def _second_fields(self) -> tuple[int, ...]:
        """Positions of the fields that a second text tower reads: those from the item on."""
        schema = self.model.schema
        if self.strategy != "plm" or self.model.config.finetune.plm.towers == "one":
            return ()
        assert schema.item is not None
        return tuple(range(schema.index(schema.item), len(schema.fields)))

    def inputs(self, pieces: Pieces, values: Int[Array | np.ndarray, "B S"], length: int) -> tuple[Any, ...]:
        """What the model takes behind the strategy: ids, tokens and their mask, numbers, a second text tower's prompt.

        NumPy arrays if both arguments are, so that a program may take them whose shapes know of no vocabulary.
        """
        ids, numbers = feature_ids(pieces, values), row_numbers(self.model, pieces, values)
        if self.strategy == "ctr":
            return ids, None, None, numbers
        second = self._second_fields()
        if not second:
            prompt = row_prompts(self.model, pieces, values, length)
            return ids, prompt.tokens, prompt.mask, numbers
        halves = range(second[0]), second
        one, two = (row_prompts(self.model, pieces, values, length, fields) for fields in halves)
        return ids, one.tokens, one.mask, numbers, (two.tokens, two.mask)

    def loss(
        self, params: Params, pieces: Pieces, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """BCE of the strategy's logit, for `joint` also of its two parts."""
        inputs = self.inputs(pieces, batch.values, text_length(self.model.schema.text.length))
        room, crowded = None, dict[str, Mean]()
        if self.packs and self.lengths is not None:
            room, _, crowded = fit(inputs[2], self.lengths)
        logits = caller(self.model, params, key)("click", self.strategy, *inputs, room=room)
        means = {
            f"bce/{name}": objectives.binary_cross_entropy(logit, batch.label, batch.weight)
            for name, logit in logits.items()
        }
        total = sum((mean.value for mean in means.values()), start=jnp.zeros(()))
        return total, {"loss": Mean(total, jnp.ones(())), **means, **crowded}

    def logit(
        self, params: Params, pieces: Pieces, values: Int[Array, "B S"], length: int, room: int | None = None
    ) -> Float[Array, " B"]:
        """The strategy's click logit, dropout off, prompts of up to `length` tokens, a device's of up to `room`."""
        return self.score(params, self.inputs(pieces, values, length), room)

    def score(self, params: Params, inputs: tuple[Any, ...], room: int | None = None) -> Float[Array, " B"]:
        """The same from what `inputs` gave."""
        logit: Float[Array, " B"] = apply_method(self.model, params, "score", self.strategy, *inputs, room=room)
        return logit
