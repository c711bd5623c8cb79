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
from alt_jax.data.prompt import Pieces, Prompt, compose, mask_fields
from alt_jax.models.alt import ALT
from alt_jax.objectives import Mean
from alt_jax.schema import MASK_ID
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


def _prompt(model: ALT, pieces: Pieces, values: Int[Array, "B F"], length: int) -> Prompt:
    return compose(pieces, values, length=length, pad_id=model.schema.text.pad_id)


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
        ids = jnp.zeros((1, len(schema.fields)), jnp.int32)
        tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)

        def reach(model: ALT) -> None:
            h = model.represent(ids, train=False)
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
        ids = pieces.feature[batch.values]
        prompt = _prompt(model, pieces, batch.values, text_length(model.schema.text.length))
        same = objectives.equal_rows(batch.values)
        rows = jnp.ones(ids.shape[0])
        has_twin = (jnp.sum(same, axis=1) > 1).astype(jnp.float32)
        metrics = {"duplicates": objectives.weighted(has_twin, rows)}
        total = jnp.zeros(())

        h: Any = call("represent", ids) if weights.icl or weights.mlm else None
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
            loss, logged = self._mtm(call, params, ids, prompt, states, mtm_key, noise_key)
            total += weights.mtm * loss
            metrics |= logged
        return total, {"loss": Mean(total, jnp.ones(())), **metrics}

    def _choose(self, key: jax.Array, rows: int) -> Any:
        config = self.model.config.mask
        return masking.choose_fields(key, rows, masking.mask_units(self.model.schema, config), config.rate)

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
        ids: Int[Array, "B F"],
        prompt: Prompt,
        states: Float[Array, "B L D"],
        mask_key: jax.Array,
        noise_key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """The chosen fields' ids, recovered from the masked row's h̃_c and the whole prompt."""
        model, config = self.model, self.model.config.mtm
        chosen = self._choose(mask_key, ids.shape[0])
        hidden = call("represent", jnp.where(chosen, MASK_ID, ids))
        vectors, table, bias = _apply(model, params, "recover_features", hidden, states, prompt.mask)
        weight = chosen.astype(jnp.float32)
        losses, metrics = [], {}
        for f, field in enumerate(model.schema.fields):
            own = slice(field.offset, field.offset + field.size)
            logits = vectors[:, f] @ table[own].T + bias[own][None, :]
            target = ids[:, f] - field.offset
            right = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
            metrics[f"mtm/accuracy/{field.name}"] = objectives.weighted(right, weight[:, f])
            if config.method == "softmax":
                losses.append(objectives.softmax_cross_entropy(logits, target))
        nce = config.method == "nce"
        loss = self._nce(vectors, table, bias, ids, noise_key) if nce else jnp.stack(losses, axis=1)
        mean = objectives.weighted(loss, weight)
        return mean.value, {"mtm": mean, **metrics}

    def _nce(
        self,
        vectors: Float[Array, "B F E"],
        table: Float[Array, "N E"],
        bias: Float[Array, " N"],
        ids: Int[Array, "B F"],
        key: jax.Array,
    ) -> Float[Array, "B F"]:
        """NCE of every field against unigram noise over the ids of all fields, as in the released code."""
        q = jnp.asarray(self.counts / self.counts.sum(), jnp.float32)
        log_q = jnp.log(q)
        noise = jax.random.choice(key, q.shape[0], (*ids.shape, self.model.config.mtm.noise), p=q)
        positive = jnp.einsum("bfe,bfe->bf", vectors, table[ids]) + bias[ids]
        negative = jnp.einsum("bfe,bfke->bfk", vectors, table[noise]) + bias[noise]
        return objectives.noise_contrastive(positive, negative, log_q[ids], log_q[noise])


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
        ids = jnp.zeros((1, len(self.model.schema.fields)), jnp.int32)
        tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
        return self.model.init(key, self.strategy, ids, tokens, mask, train=False, method="click")["params"]

    def _inputs(self, pieces: Pieces, values: Int[Array, "B F"], length: int) -> tuple[Any, Any, Any]:
        ids = pieces.feature[values]
        if self.strategy == "ctr":
            return ids, None, None
        prompt = _prompt(self.model, pieces, values, length)
        return ids, prompt.tokens, prompt.mask

    def loss(
        self, params: Params, pieces: Pieces, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """BCE of the strategy's logit, for `joint` also of its two parts, plus L2 on the tables of ids."""
        ids, tokens, mask = self._inputs(pieces, batch.values, text_length(self.model.schema.text.length))
        logits = _caller(self.model, params, key)("click", self.strategy, ids, tokens, mask)
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

    def logit(self, params: Params, pieces: Pieces, values: Int[Array, "B F"], length: int) -> Float[Array, " B"]:
        """The strategy's click logit, dropout off, prompts of up to `length` tokens."""
        ids, tokens, mask = self._inputs(pieces, values, length)
        logit: Float[Array, " B"] = _apply(self.model, params, "score", self.strategy, ids, tokens, mask)
        return logit
