"""The pretraining task: contrast between the two views of a row, and each view helping to recover the other."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alt_jax import masking, mlm, mtm, objectives
from alt_jax.config import Config
from alt_jax.data.batches import Batch
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import Pieces, feature_ids, maskable_tokens
from alt_jax.errors import InputError
from alt_jax.models import packing
from alt_jax.models.alt import ALT
from alt_jax.models.encoder import EncoderConfig
from alt_jax.objectives import Mean
from alt_jax.schema import Schema
from alt_jax.sharding import shards
from alt_jax.tasks import (
    Params,
    apply_method,
    blank_row,
    fit,
    row_numbers,
    row_prompts,
    text_length,
    train_caller,
)

_CAPACITY_SAMPLE = 100_000


def check(config: Config, schema: Schema) -> None:
    """Refuses a pretraining that cannot be run, before a run folder is made for it.

    Raises:
      InputError: There is no loss, or a value does not fit the dataset.
    """
    if not any((config.loss.icl, config.loss.mlm, config.loss.mtm)):
        raise InputError("All three loss weights are 0, so there is nothing to pretrain; set one of --loss.*.")
    if config.loss.mlm or config.loss.mtm:
        masking.check_masks(schema, config.mask)
    for what in config.icl.leave_out:
        if getattr(schema, what) is None:
            raise InputError(f"icl.leave_out names the {what}, but the dataset declares none; set data.{what}.")
    if config.icl.chunk and config.pretrain.batch_size % config.icl.chunk:
        raise InputError(
            f"icl.chunk {config.icl.chunk} does not divide pretrain.batch_size {config.pretrain.batch_size}; "
            "change one of them."
        )


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """w_icl·ICL + w_mlm·MLM + w_mtm·MTM (arXiv 2310.19453); how each works is in `objectives`, `mlm` and `mtm`.

    A term whose weight is 0 is not computed, and what only it needs has no parameters.

    Attributes:
      model: Towers and heads.
      maskable: Maskable tokens of every field in a sample of training rows, which bounds those that a batch hides.
      lengths: Tokens of training rows' prompts, from which follows how much padding can be left out.
      counts: Training count of every feature id: the distribution of MTM's noise.
    """

    model: ALT
    maskable: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def build(cls, config: Config, dataset: Dataset, encoder: EncoderConfig) -> "Pretrain":
        """The task of an experiment on a dataset."""
        schema = dataset.schema
        sample = np.asarray(dataset.train.values[:_CAPACITY_SAMPLE])
        maskable = maskable_tokens(dataset.pieces, sample, schema.widths)
        return cls(ALT(config, schema, encoder), maskable, dataset.prompt_tokens(), dataset.feature_counts())

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters for what the loss weights call for."""
        schema, config = self.model.schema, self.model.config
        loss, helped = config.loss, config.mlm.with_table
        ids, numbers = blank_row(schema)
        tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)

        def reach(model: ALT) -> None:
            states = model.read(tokens, mask, train=False)
            h: Any = None
            if loss.icl or loss.mtm or helped:
                h = model.represent(ids, numbers, train=False)
            if loss.icl:
                model.align(h, states, train=False)
                model.compare()
            if loss.mlm:
                model.recover_tokens(states[:, 0], h if helped else None, train=False)
            if loss.mtm:
                model.recover_features(h, states, mask)

        return self.model.init(key, method=reach)["params"]

    def loss(
        self, params: Params, pieces: Pieces, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """The weighted sum of the three losses over the global batch; labels are not looked at."""
        model, config, schema = self.model, self.model.config, self.model.schema
        weights, helped_by_whole = config.loss, config.mask.helper == "whole"
        mlm_key, mtm_key, noise_key, dropout_key = jax.random.split(key, 4)
        call = train_caller(model, params, dropout_key)
        ids, numbers = jnp.asarray(feature_ids(pieces, batch.values)), row_numbers(model, pieces, batch.values)
        prompt = row_prompts(model, pieces, batch.values, text_length(schema.text.length))
        room, held, crowded = fit(prompt.mask, self.lengths)
        prompt = prompt._replace(mask=held, field=jnp.where(held, prompt.field, -1))
        # The released code's attention reads padding, so that has to be computed.
        whole_room = None if config.mtm.attention == "released" else room
        masks = masking.choose_masks((mlm_key, mtm_key), ids.shape[0], schema, config.mask)
        hidden = mlm.hide(prompt, masks.text, mlm_key, config, schema)
        shown = mtm.hide(ids, numbers, masks.table, noise_key, config, schema)
        table_helps = weights.mlm and config.mlm.with_table

        # Every view of a batch is computed once, and only if a term needs it.
        views: tuple[Any, ...] = (None, None, None, None)
        h, hidden_h, states, hidden_states = views
        if weights.icl or (table_helps and helped_by_whole):
            h = call("represent", ids, numbers)
        if weights.icl or (weights.mtm and helped_by_whole):
            all_tokens = weights.mtm and helped_by_whole  # ICL alone reads [CLS]
            wanted = None if all_tokens else packing.first(prompt.mask)
            states = call("read", prompt.tokens, prompt.mask, wanted, whole_room)
        capacity, hidden_wanted = mlm.capacity(self.maskable, len(ids) // shards(len(ids)), config, schema), None
        if weights.mlm or (weights.mtm and not helped_by_whole):
            if helped_by_whole or not weights.mtm:  # MLM alone reads these states, and of masks only
                hidden_wanted = mlm.masks(hidden, capacity, config, schema)
            hidden_room = room if helped_by_whole else whole_room
            hidden_states = call("read", hidden.tokens, hidden.mask, hidden_wanted, hidden_room)
        if weights.mtm or (table_helps and not helped_by_whole):
            hidden_h = call("represent", shown.ids, shown.numbers)

        total = jnp.zeros(())
        metrics: dict[str, Mean] = {}
        if weights.icl:
            contrast = self._contrast(params, batch, *call("align", h, states))
            total += weights.icl * contrast.loss.value
            metrics |= {
                "icl": contrast.loss,
                "icl/top1_ctr_to_text": contrast.ctr_to_text,
                "icl/top1_text_to_ctr": contrast.text_to_ctr,
                "duplicates": contrast.twins,
            }
        if weights.mlm:
            helper = (h if helped_by_whole else hidden_h) if table_helps else None
            mean, logged = mlm.loss(call, prompt, hidden, hidden_states, hidden_wanted, helper, capacity, schema)
            total += weights.mlm * mean.value
            metrics |= logged
        if weights.mtm:
            read, mask = (states, prompt.mask) if helped_by_whole else (hidden_states, hidden.mask)
            output = apply_method(model, params, "recover_features", hidden_h, read, mask)
            mean, logged = mtm.loss(output, ids, numbers, shown, masks.table, self.counts, noise_key, config, schema)
            total += weights.mtm * mean.value
            metrics |= logged
        return total, {"loss": Mean(total, jnp.ones(())), **metrics, **crowded}

    def _contrast(
        self, params: Params, batch: Batch, z_ctr: Float[Array, "B E"], z_text: Float[Array, "B E"]
    ) -> objectives.Contrast:
        """ICL as configured."""
        config, schema = self.model.config.icl, self.model.schema
        scale, bias = apply_method(self.model, params, "compare")
        columns = [schema.slot(getattr(schema, what)) for what in config.leave_out]
        return objectives.instance_contrast(
            z_ctr,
            z_text,
            batch.values,
            scale=scale,
            bias=bias,
            objective=config.objective,
            duplicates=config.duplicates,
            apart=batch.values[:, np.asarray(columns, int)],
            chunk=config.chunk,
        )
