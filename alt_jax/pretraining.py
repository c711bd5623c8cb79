"""The pretraining task: contrast between the two views of a row, and each view helping to recover the other."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alt_jax import masking, mlm, mtm, objectives
from alt_jax.config import Config
from alt_jax.data.batches import Batch
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import Pieces, feature_ids, maskable_tokens
from alt_jax.errors import InputError
from alt_jax.microbatches import in_turn
from alt_jax.models import packing
from alt_jax.models.alt import ALT
from alt_jax.models.encoder import EncoderConfig
from alt_jax.models.heads import pool
from alt_jax.objectives import Mean
from alt_jax.schema import Schema
from alt_jax.sharding import shards, uncut
from alt_jax.tasks import (
    Params,
    apply_method,
    blank_row,
    caller,
    fit,
    row_numbers,
    row_prompts,
    text_length,
)

_CAPACITY_SAMPLE = 100_000


class Rows(NamedTuple):
    """Some rows of a batch, and what is hidden of them.

    Attributes:
      values: Value ids.
      ids, numbers: Feature ids, and numbers of the numeric fields.
      hide_text: Fields or token positions that MLM hides (`mlm.choose`).
      hide_table: Fields that MTM hides.
      shown: What MTM shows instead.
    """

    values: Int[Array, "B S"]
    ids: Int[Array, "B S"]
    numbers: Float[Array, "B M"]
    hide_text: Bool[Array, "B n"]
    hide_table: Bool[Array, "B F"]
    shown: mtm.Shown


def check(config: Config, schema: Schema) -> None:
    """Refuses a pretraining that cannot be run, before a run folder is made for it.

    Raises:
      InputError: There is no loss, or a value does not fit the dataset.
    """
    if not any((config.loss.icl, config.loss.mlm, config.loss.mtm)):
        raise InputError("All three loss weights are 0, so there is nothing to pretrain; set one of --loss.*.")
    if config.loss.icl and config.pretrain.batch_size == 1:
        raise InputError(
            "ICL tells the rows of a batch apart, but pretrain.batch_size is 1; raise it, or set --loss.icl 0."
        )
    if config.loss.mlm or config.loss.mtm:
        masking.check_masks(schema, config.mask)
    for what in config.icl.leave_out:
        if getattr(schema, what) is None:
            raise InputError(f"icl.leave_out names the {what}, but the dataset declares none; set data.{what}.")
    if config.pretrain.batch_size % config.pretrain.microbatches:
        raise InputError(
            f"pretrain.microbatches {config.pretrain.microbatches} does not divide pretrain.batch_size "
            f"{config.pretrain.batch_size}; change one of them."
        )
    if config.icl.chunk and config.pretrain.batch_size % config.icl.chunk:
        raise InputError(
            f"icl.chunk {config.icl.chunk} does not divide pretrain.batch_size {config.pretrain.batch_size}; "
            "change one of them."
        )


class Views(NamedTuple):
    """Which views of a row the losses look at; each is computed once.

    Attributes:
      table, hidden_table: Whether the CTR tower reads the whole row, and the row as MTM shows it.
      text, hidden_text: Of which tokens of the whole prompt, and of the prompt as MLM hides it, the text tower's states
        are read: of [CLS] (`cls`), of the hidden ones (`masks`), of `all`, or of none.
    """

    table: bool
    hidden_table: bool
    text: Literal["", "cls", "all"]
    hidden_text: Literal["", "masks", "all"]


def views(config: Config) -> Views:
    """The views that a pretraining computes: by its losses, and by what helps them."""
    loss, whole = config.loss, config.mask.helper == "whole"
    table_helps, text_helps = bool(loss.mlm and config.mlm.with_table), bool(loss.mtm and config.mtm.with_text)
    pooled: Literal["cls", "all"] = "cls" if config.text.pooling == "cls" else "all"
    return Views(
        table=bool(loss.icl) or (table_helps and whole),
        hidden_table=bool(loss.mtm) or (table_helps and not whole),
        text="all" if text_helps and whole else pooled if loss.icl else "",
        hidden_text="all" if text_helps and not whole else "masks" if loss.mlm else "",
    )


def reads_table(config: Config) -> bool:
    """Whether a pretraining has a CTR tower."""
    needed = views(config)
    return needed.table or needed.hidden_table


def reads_text(config: Config) -> bool:
    """Whether a pretraining has a text tower."""
    needed = views(config)
    return bool(needed.text or needed.hidden_text)


def hide(model: ALT, pieces: Pieces, values: Int[Array, "B S"], keys: Iterable[jax.Array]) -> Rows:
    """Draws what both sides hide of a batch, with a key for MLM, one for MTM, and one for its replacements."""
    config, schema = model.config, model.schema
    mlm_key, mtm_key, noise_key = keys
    ids, numbers = jnp.asarray(feature_ids(pieces, values)), jnp.asarray(row_numbers(model, pieces, values))
    masks = masking.choose_masks((mlm_key, mtm_key), len(ids), schema, config.mask)
    text = mlm.choose(masks.text, text_length(schema.text.length), mlm_key, config)
    return Rows(values, ids, numbers, text, masks.table, mtm.hide(ids, numbers, masks.table, noise_key, config, schema))


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """w_icl·ICL + w_mlm·MLM + w_mtm·MTM (arXiv 2310.19453); how each works is in `objectives`, `mlm` and `mtm`.

    A term whose weight is 0 is not computed, and what only it needs has no parameters.

    Attributes:
      model: Towers and heads.
      maskable: Maskable tokens of every field in a sample of training rows, which bounds those that a batch hides.
      lengths: Tokens of training rows' prompts, from which follows how much padding can be left out.
      counts: Training count of every feature id: the distribution of MTM's noise.
      common_tokens: `mlm.unigram_scores`.
      nobody: Value ids of a missing user and a missing item (`Dataset.nobody`).
    """

    model: ALT
    maskable: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    common_tokens: np.ndarray
    nobody: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(cls, config: Config, dataset: Dataset, encoder: EncoderConfig) -> "Pretrain":
        """The task of an experiment on a dataset."""
        schema = dataset.schema
        sample = np.asarray(dataset.train.values[:_CAPACITY_SAMPLE])
        maskable = maskable_tokens(dataset.pieces, sample, schema.widths)
        common = mlm.unigram_scores(dataset.token_counts())
        model, nobody = ALT(config, schema, encoder), dataset.nobody if config.icl.leave_out else {}
        return cls(model, maskable, dataset.prompt_tokens(), dataset.feature_counts(), common, nobody)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters for what the loss weights call for."""
        schema, config = self.model.schema, self.model.config
        loss, needed = config.loss, views(config)
        ids, numbers = blank_row(schema)
        tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)

        def reach(model: ALT) -> None:
            states: Any = None
            h: Any = None
            if needed.text or needed.hidden_text:
                states = model.read(tokens, mask, train=False)
            if needed.table or needed.hidden_table:
                h = model.represent(ids, numbers, train=False)
            if loss.icl:
                model.align(h, pool(states, mask, config.text.pooling), train=False)
                model.compare()
            if loss.mlm:
                model.recover_tokens(states[:, 0], h if config.mlm.with_table else None, train=False)
            if loss.mtm:
                model.recover_features(h, states if config.mtm.with_text else None, mask)

        params: Params = self.model.init(key, method=reach)["params"]
        if loss.mtm and config.mtm.method != "rfd":
            scores = mtm.unigram_scores(self.counts, config.mtm, schema)
            bias = params["mtm"]["bias"].at[: len(scores)].set(scores)
            params = params | {"mtm": params["mtm"] | {"bias": bias}}
        return params

    def loss(
        self, params: Params, pieces: Pieces, batch: Batch, key: jax.Array, *, train: bool = True
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """The weighted sum of the three losses over the global batch; labels are not looked at.

        What is drawn is drawn for the global batch, and every mean is over it; only towers and heads see a microbatch.

        Args:
          params: Of `init`'s shapes.
          pieces: Of the prompts.
          batch: Value ids.
          key: Draws masks, noise and dropout.
          train: Whether dropout is on.
        """
        config, weights = self.model.config, self.model.config.loss
        *hide_keys, noise_key, dropout_key = jax.random.split(key, 4)
        rows = hide(self.model, pieces, batch.values, (*hide_keys, noise_key))

        def look(part: Rows) -> tuple[tuple[Array, ...], dict[str, Mean]]:
            return self._look(params, pieces, part, noise_key, dropout_key if train else None)

        projections, sums = in_turn(look, rows, config.pretrain.microbatches)
        metrics = {name: Mean(jnp.sum(mean.total, 0), jnp.sum(mean.weight, 0)) for name, mean in sums.items()}
        if weights.icl:
            z_ctr, z_text = (uncut(z) for z in projections)
            contrast = self._contrast(params, batch, z_ctr, z_text)
            metrics |= {
                "icl": contrast.loss,
                "icl/top1_ctr_to_text": contrast.ctr_to_text,
                "icl/top1_text_to_ctr": contrast.text_to_ctr,
                "duplicates": contrast.twins,
            }
        total = jnp.zeros(())
        for name, weight in (("icl", weights.icl), ("mlm", weights.mlm), ("mtm", weights.mtm)):
            if weight:
                total += weight * metrics[name].value
        return total, {"loss": Mean(total, jnp.ones(())), **metrics}

    def _look(
        self, params: Params, pieces: Pieces, rows: Rows, noise_key: jax.Array, dropout_key: jax.Array | None
    ) -> tuple[tuple[Array, ...], dict[str, Mean]]:
        """What towers and heads make of some rows: both projections for ICL, and the sums of MLM and MTM."""
        model, config, schema = self.model, self.model.config, self.model.schema
        weights, needed = config.loss, views(config)
        call = caller(model, params, dropout_key)
        h: Any = None
        hidden_h = states = hidden_states = h
        sums: dict[str, Mean] = {}
        if needed.table:
            h = call("represent", rows.ids, rows.numbers)
        if needed.text or needed.hidden_text:
            prompt = row_prompts(model, pieces, rows.values, text_length(schema.text.length))
            room, held, sums = fit(prompt.mask, self.lengths)
            prompt = prompt._replace(mask=held, field=jnp.where(held, prompt.field, -1))
            # The released code's attention reads padding, so that has to be computed.
            room_of = {"all": None if config.mtm.attention == "released" else room}
        if needed.text:
            wanted = packing.first(prompt.mask) if needed.text == "cls" else None
            states = call("read", prompt.tokens, prompt.mask, wanted, room_of.get(needed.text, room))
        if needed.hidden_text:
            hidden = mlm.hide(prompt, rows.hide_text, config, schema)
            count, hidden_wanted = len(rows.ids), None
            capacity = mlm.capacity(self.maskable, count // shards(count), config, schema)
            if needed.hidden_text == "masks":
                hidden_wanted = mlm.masks(hidden, capacity, config, schema)
            hidden_room = room_of.get(needed.hidden_text, room)
            hidden_states = call("read", hidden.tokens, hidden.mask, hidden_wanted, hidden_room)
        if needed.hidden_table:
            hidden_h = call("represent", rows.shown.ids, rows.shown.numbers)

        helped_by_whole = config.mask.helper == "whole"
        projections: tuple[Array, ...] = ()
        if weights.icl:
            h_text = pool(states, prompt.mask, config.text.pooling)
            fixed = {"none": (h, h_text), "ctr": (lax.stop_gradient(h), h_text), "text": (h, lax.stop_gradient(h_text))}
            projections = call("align", *fixed[config.icl.locked])
        if weights.mlm:
            helper = (h if helped_by_whole else hidden_h) if config.mlm.with_table else None
            common = self.common_tokens
            sums |= mlm.loss(call, prompt, hidden, hidden_states, hidden_wanted, helper, capacity, common, schema)
        if weights.mtm:
            help_by: tuple[Any, Any] = (None, None)
            if config.mtm.with_text:
                help_by = (states, prompt.mask) if helped_by_whole else (hidden_states, hidden.mask)
            output = apply_method(model, params, "recover_features", hidden_h, *help_by)
            table = rows.ids, rows.numbers, rows.shown, rows.hide_table
            sums |= mtm.loss(output, *table, self.counts, noise_key, config, schema)
        return projections, sums

    def apart(self, values: Int[Array, "B S"]) -> Int[Array, "B E"]:
        """The users, items or both of rows that ICL takes for no negatives of each other where they are the same."""
        columns = []
        for what in self.model.config.icl.leave_out:
            column = values[:, self.model.schema.slot(getattr(self.model.schema, what))]
            if what in self.nobody:  # rows without a user are not of the same one
                column = jnp.where(column == self.nobody[what], -1 - jnp.arange(len(column)), column)
            columns.append(column)
        return jnp.stack(columns, axis=1) if columns else values[:, :0]

    def _contrast(
        self, params: Params, batch: Batch, z_ctr: Float[Array, "B E"], z_text: Float[Array, "B E"]
    ) -> objectives.Contrast:
        """ICL as configured."""
        config = self.model.config.icl
        scale, bias = apply_method(self.model, params, "compare")
        return objectives.instance_contrast(
            z_ctr,
            z_text,
            batch.values,
            scale=scale,
            bias=bias,
            objective=config.objective,
            duplicates=config.duplicates,
            apart=self.apart(batch.values),
            chunk=config.chunk,
        )
