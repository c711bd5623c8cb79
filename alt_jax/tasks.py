"""What is trained: the pretraining and the finetuning task, each an `init` and a `loss` over a batch of value ids."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alt_jax import masking, objectives
from alt_jax.config import Strategy
from alt_jax.data.batches import Batch
from alt_jax.data.prompt import Pieces, Prompt, compose, feature_ids, mask_fields
from alt_jax.models.alt import ALT
from alt_jax.objectives import Mean
from alt_jax.schema import MASK_ID, PAD_ID, Schema
from alt_jax.sharding import constrain_rows

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


def _prompt(model: ALT, pieces: Pieces, values: Int[Array, "B S"], length: int) -> Prompt:
    schema = model.schema
    return compose(pieces, values, length=length, pad_id=schema.text.pad_id, widths=schema.widths)


def _numbers(model: ALT, pieces: Pieces, values: Int[Array, "B S"]) -> Float[Array, "B M"]:
    return jnp.take(pieces.number, values[:, np.asarray(model.schema.numeric_slots, int)], mode="clip")


def text_length(schema_length: int) -> int:
    """Static prompt length: the data's longest prompt, rounded up to 8 for the matrix units."""
    return -(-schema_length // 8) * 8


def _apply(model: ALT, params: Params, method: str, *args: Any) -> Any:
    """A method that has no dropout."""
    return model.apply({"params": params}, *args, method=method)


def _caller(model: ALT, params: Params, key: jax.Array) -> Callable[..., Any]:
    """`call(method, *args)` applies a method of the model in training mode, every call with dropout of its own."""
    calls = iter(range(1 << 30))

    def call(method: str, *args: Any) -> Any:
        rngs = {"dropout": jax.random.fold_in(key, next(calls))}
        return model.apply({"params": params}, *args, train=True, method=method, rngs=rngs)

    return call


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """w_icl·ICL + w_mlm·MLM + w_mtm·MTM (arXiv 2310.19453); METHOD of each is in `objectives` and `models.heads`.

    A term whose weight is 0 is not computed, and what only it needs has no parameters.

    Attributes:
      model: Towers and heads.
      capacity: Static bound on the masked tokens of a batch (`masking.token_capacity`).
      counts: Training count of every feature id: the noise distribution of NCE.
    """

    model: ALT
    capacity: int
    counts: np.ndarray

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters for what the loss weights call for."""
        schema, loss = self.model.schema, self.model.config.loss
        ids, numbers = _blank_row(schema)
        tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)

        def reach(model: ALT) -> None:
            h = model.represent(ids, numbers, train=False)
            states = model.read(tokens, mask, train=False)
            if loss.icl:
                model.align(h, states, train=False)
            if loss.mlm:
                model.recover_tokens(states[:, 0], h, train=False)
            if loss.mtm:
                model.recover_features(h, states, mask)

        return self.model.init(key, method=reach)["params"]

    def loss(
        self, params: Params, pieces: Pieces, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """The weighted sum of the three losses over the global batch; labels are not looked at."""
        model, weights = self.model, self.model.config.loss
        mlm_key, mtm_key, noise_key, dropout_key = jax.random.split(key, 4)
        call = _caller(model, params, dropout_key)
        ids, numbers = jnp.asarray(feature_ids(pieces, batch.values)), _numbers(model, pieces, batch.values)
        prompt = _prompt(model, pieces, batch.values, text_length(model.schema.text.length))
        same = objectives.equal_rows(batch.values)
        rows = jnp.ones(ids.shape[0])
        has_twin = (jnp.sum(same, axis=1) > 1).astype(jnp.float32)
        metrics = {"duplicates": objectives.weighted(has_twin, rows)}
        total = jnp.zeros(())

        h: Any = call("represent", ids, numbers) if weights.icl or weights.mlm else None
        states: Any = call("read", prompt.tokens, prompt.mask) if weights.icl or weights.mtm else None
        if weights.icl:
            icl = model.config.icl
            z_ctr, z_text = call("align", h, states)
            contrast = objectives.instance_contrast(
                z_ctr, z_text, same, temperature=icl.temperature, duplicates=icl.duplicates
            )
            total += weights.icl * contrast.loss.value
            metrics |= {
                "icl": contrast.loss,
                "icl/top1_ctr_to_text": contrast.ctr_to_text,
                "icl/top1_text_to_ctr": contrast.text_to_ctr,
            }
        if weights.mlm:
            loss, logged = self._mlm(call, prompt, h, mlm_key)
            total += weights.mlm * loss
            metrics |= logged
        if weights.mtm:
            loss, logged = self._mtm(call, params, ids, numbers, prompt, states, mtm_key, noise_key)
            total += weights.mtm * loss
            metrics |= logged
        return total, {"loss": Mean(total, jnp.ones(())), **metrics}

    def _choose(self, key: jax.Array, rows: int, *, tabular: bool = False) -> Any:
        schema, config = self.model.schema, self.model.config.mask
        units = masking.mask_units(schema, config, tabular=tabular)
        return masking.choose_fields(key, rows, units, config.rate, len(schema.fields))

    def _mlm(
        self, call: Callable[..., Any], prompt: Prompt, h: Float[Array, "B C"], key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """Every subword of the chosen fields' values, recovered from the masked prompt and the whole row's h_c."""
        rows, length = prompt.tokens.shape
        tokens, hidden = mask_fields(prompt, self._choose(key, rows), self.model.schema.text.mask_id)
        states = call("read", tokens, prompt.mask)
        index, real = masking.gather_positions(hidden, self.capacity)
        at = constrain_rows(states.reshape(rows * length, -1)[index])
        logits = call("recover_tokens", at, constrain_rows(h[index // length]))
        target = prompt.tokens.reshape(-1)[index]
        mean = objectives.weighted(objectives.softmax_cross_entropy(logits, target), real)
        right = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
        field = prompt.field.reshape(-1)[index]
        metrics = {"mlm": mean, "mlm/dropped": Mean(hidden.sum() - real.sum(), jnp.ones(()))}
        for f, name in enumerate(self.model.schema.names):
            metrics[f"mlm/accuracy/{name}"] = objectives.weighted(right, real * (field == f))
        return mean.value, metrics

    def _mtm(
        self,
        call: Callable[..., Any],
        params: Params,
        ids: Int[Array, "B S"],
        numbers: Float[Array, "B M"],
        prompt: Prompt,
        states: Float[Array, "B L D"],
        mask_key: jax.Array,
        noise_key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """The chosen fields' ids, recovered from the masked row's h̃_c and the whole prompt.

        Of a list, every value is a target, and all of them together count as one.
        """
        model, config, schema = self.model, self.model.config.mtm, self.model.schema
        chosen = self._choose(mask_key, ids.shape[0], tabular=True)
        slots, real = chosen[:, np.asarray(schema.field_of_slot)], ids != PAD_ID
        numeric = np.asarray([f for f, field in enumerate(schema.fields) if field.kind == "numeric"], int)
        shown = jnp.where(chosen[:, numeric], 0.0, numbers)
        hidden = call("represent", jnp.where(slots & real, MASK_ID, ids), shown)
        vectors, table, bias = _apply(model, params, "recover_features", hidden, states, prompt.mask)
        share = (slots & real).astype(jnp.float32)
        targets = jnp.where(real, ids, 0)
        nce = self._nce(vectors, table, bias, ids, noise_key) if config.method == "nce" else None
        losses, weights, metrics, first = [], [], {}, 0
        for f, field in enumerate(schema.fields):
            own, span = slice(first, first + field.slots), slice(field.offset, field.offset + field.size)
            first += field.slots
            if field.kind == "text":
                continue
            logits = vectors[:, schema.tabular.index(f)] @ table[span].T + bias[span][None, :]
            target = jnp.maximum(targets[:, own] - field.offset, 0)
            found = (jnp.argmax(logits, axis=-1)[:, None] == target) & real[:, own]
            right, masked = (
                x.astype(jnp.float32) for x in (jnp.any(found, axis=1), jnp.any(share[:, own] > 0, axis=1))
            )
            metrics[f"mtm/accuracy/{field.name}"] = objectives.weighted(right, masked)
            every = jnp.broadcast_to(logits[:, None, :], (*target.shape, field.size))
            losses.append(objectives.softmax_cross_entropy(every, target) if nce is None else nce[:, own])
            weights.append(share[:, own] / jnp.maximum(jnp.sum(real[:, own], axis=1, keepdims=True), 1))
        mean = objectives.weighted(jnp.concatenate(losses, axis=1), jnp.concatenate(weights, axis=1))
        return mean.value, {"mtm": mean, **metrics}

    def _nce(
        self,
        vectors: Float[Array, "B F E"],
        table: Float[Array, "N E"],
        bias: Float[Array, " N"],
        ids: Int[Array, "B S"],
        key: jax.Array,
    ) -> Float[Array, "B S"]:
        """NCE of every slot against unigram noise over the ids of all fields, as in the released code."""
        schema = self.model.schema
        q = jnp.asarray(self.counts / self.counts.sum(), jnp.float32)
        log_q = jnp.log(q)
        noise = jax.random.choice(key, q.shape[0], (*ids.shape, self.model.config.mtm.noise), p=q)
        # A field without ids has no vector: its slots borrow the first one's, and weigh nothing.
        position = {f: t for t, f in enumerate(schema.tabular)}
        of_slot = vectors[:, np.array([position.get(f, 0) for f in schema.field_of_slot])]
        positive = jnp.einsum("bse,bse->bs", of_slot, table[ids]) + bias[ids]
        negative = jnp.einsum("bse,bske->bsk", of_slot, table[noise]) + bias[noise]
        # Padding was never counted, and its loss weighs nothing either.
        return objectives.noise_contrastive(positive, negative, jnp.where(ids == PAD_ID, 0.0, log_q[ids]), log_q[noise])


def _blank_row(schema: Schema) -> tuple[Int[Array, "1 S"], Float[Array, "1 M"]]:
    """Ids and numbers of the shapes that a model is initialised with."""
    return jnp.zeros((1, sum(schema.widths)), jnp.int32), jnp.zeros((1, len(schema.numeric_slots)))


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Click prediction under one of the strategies `ctr`, `plm`, `joint`.

    Attributes:
      model: Towers and logits.
      strategy: Which towers predict.
      l2: Times the sum of squares of the CTR tower's embeddings and first-order weights, all rows of both.
    """

    model: ALT
    strategy: Strategy
    l2: float

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters of what the strategy uses."""
        ids, numbers = _blank_row(self.model.schema)
        tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
        return self.model.init(key, self.strategy, ids, tokens, mask, numbers, train=False, method="click")["params"]

    def _inputs(self, pieces: Pieces, values: Int[Array, "B S"], length: int) -> tuple[Any, Any, Any, Any]:
        """What `click` takes behind the strategy."""
        ids, numbers = feature_ids(pieces, values), _numbers(self.model, pieces, values)
        if self.strategy == "ctr":
            return ids, None, None, numbers
        prompt = _prompt(self.model, pieces, values, length)
        return ids, prompt.tokens, prompt.mask, numbers

    def loss(
        self, params: Params, pieces: Pieces, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """BCE of the strategy's logit, for `joint` also of its two parts, plus L2 on the tables of ids."""
        inputs = self._inputs(pieces, batch.values, text_length(self.model.schema.text.length))
        logits = _caller(self.model, params, key)("click", self.strategy, *inputs)
        means = {
            f"bce/{name}": objectives.binary_cross_entropy(logit, batch.label, batch.weight)
            for name, logit in logits.items()
        }
        total = sum((mean.value for mean in means.values()), start=jnp.zeros(()))
        if self.l2 and self.strategy != "plm":
            # The whole tables, whatever the batch holds: one Gaussian prior for every id, so that an id seen twice is
            # held back as strongly as one seen often, and a batch's size does not change the objective.
            tables = params["ctr"]["embedding"], params["ctr_logit"].get("linear", {})
            total += self.l2 * optax.tree.norm(tables, squared=True)
        return total, {"loss": Mean(total, jnp.ones(())), **means}

    def logit(self, params: Params, pieces: Pieces, values: Int[Array, "B S"], length: int) -> Float[Array, " B"]:
        """The strategy's click logit, dropout off, prompts of up to `length` tokens."""
        inputs = self._inputs(pieces, values, length)
        logit: Float[Array, " B"] = _apply(self.model, params, "score", self.strategy, *inputs)
        return logit
