"""What a pretraining has taught both towers, asked on validation rows with dropout off."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from alt_jax import mlm, mtm, sharding, sharding_rules, stages
from alt_jax.checkpoint import load_params
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import Pieces, feature_ids
from alt_jax.errors import InputError
from alt_jax.models import packing
from alt_jax.models.heads import pool
from alt_jax.mtm import Shown
from alt_jax.objectives import Mean
from alt_jax.pretraining import Pretrain, hide
from alt_jax.report import measures
from alt_jax.report.measures import Ranks
from alt_jax.run import Run
from alt_jax.schema import MASK_ID, PAD_ID
from alt_jax.sharding import make_mesh, own_rows, place, replicate, replicated, split_rows
from alt_jax.tasks import Params, apply_method, caller, row_numbers, row_prompts, text_length

_ROWS = 1024  # of validation at most
_BATCH = 64  # at a time: a field of a million ids then takes 256 MB of scores
_PASSES = 4  # over the rows, with other masks, so that every field is hidden often enough
HELPS = ("helped", "alone")


class Views(NamedTuple):
    """Both views of the rows in the space where ICL compares them, and their similarities as ICL scales them."""

    ctr: Float[np.ndarray, "N E"]
    text: Float[np.ndarray, "N E"]
    similarity: Float[np.ndarray, "N N"]


class Retrieval(NamedTuple):
    """How often a row's other view is among the most similar ones: from id to text, from text to ids."""

    ctr_to_text: Ranks
    text_to_ctr: Ranks


@dataclass(frozen=True)
class Tokens:
    """MLM of a field: hidden tokens, and how many of them were guessed."""

    tokens: int
    accuracy: float


@dataclass(frozen=True)
class Detection:
    """RFD of a field: the replaced ones, how many of them were found, and how many others were taken for replaced."""

    rows: int
    found: float
    false_alarm: float


@dataclass(frozen=True)
class Recovery:
    """One field, hidden and recovered.

    Each is by what helps: `helped` by the other view of the row, as in pretraining, or `alone`: the other tower is
    shown the row with all fields masked. What the run did not train is absent.

    Attributes:
      name: The field's.
      text: MLM.
      table: MTM, by the rank of the true id among the field's own, or for `rfd` the replacements that were found.
      most_frequent: Share of the rows that have the field's most frequent id of training.
    """

    name: str
    text: dict[str, Tokens]
    table: dict[str, Ranks | Detection]
    most_frequent: float


@dataclass(frozen=True)
class Aligned:
    """A pretraining, looked at.

    Attributes:
      step: Of the parameters.
      rows: Validation rows.
      passes: Over them, to recover what is hidden.
      after: Views of them; None without ICL.
      before: Those that the pretraining started from; None without ICL, or if what it started from is gone.
      why_not: Why there is no `before`.
      same: Which of the rows are equal.
      recovery: By field; empty without MLM and MTM.
    """

    step: int
    rows: int
    passes: int
    after: Views | None
    before: Views | None
    why_not: str
    same: Bool[np.ndarray, "N N"]
    recovery: list[Recovery]

    def retrieval(self, views: Views) -> Retrieval:
        """How well each view finds the other among all rows."""
        there, back = (measures.partner_rank(s, self.same) for s in (views.similarity, views.similarity.T))
        return Retrieval(measures.of_ranks(there), measures.of_ranks(back))


def look(run: Run, dataset: Dataset) -> Aligned:
    """Reads the newest checkpoint of a pretraining and asks it about some validation rows.

    Raises:
      InputError: There is no whole checkpoint, a file of the dataset is not as it was prepared, there are fewer
        validation rows than devices, or those do not fit the run.
    """
    mesh, rules = make_mesh(), sharding_rules.rules(run.config)
    sharding_rules.check_rules(mesh, rules)
    task = Pretrain.build(run.config, dataset, run.encoder)
    found, step = load_params(run.folder)
    params = place(mesh, found, rules)
    values, batch = _sample(dataset, mesh)
    pieces = replicate(mesh, dataset.pieces)
    after = before = None
    why_not = ""
    if run.config.loss.icl:
        project = _Projector(task, mesh, pieces, values, batch)
        after = project(params)
        try:
            init_from = run.origin.init_from
            start, _ = stages.starting_params(
                task, mesh, run, dataset, None if init_from is None else Path(init_from), rules
            )
            before = project(place(mesh, start, rules))
        except InputError as error:
            why_not = str(error)
    recovery = _recovery(task, mesh, params, pieces, values, batch, dataset)
    same = (values[:, None] == values[None, :]).all(axis=2)
    return Aligned(step, len(values), _PASSES, after, before, why_not, same, recovery)


def _sample(dataset: Dataset, mesh: Mesh) -> tuple[Int[np.ndarray, "N S"], int]:
    """Value ids of validation rows from first to last, a whole number of batches, and the size of a batch."""
    rows = dataset.valid.values
    batch = min(_BATCH, len(rows)) // mesh.size * mesh.size
    if not batch:
        raise InputError(f"The validation part has {len(rows)} rows, fewer than the {mesh.size} devices; use fewer.")
    number = min(_ROWS, len(rows)) // batch * batch
    return np.asarray(rows[np.linspace(0, len(rows) - 1, number).astype(int)]), batch


def _batches(mesh: Mesh, values: Int[np.ndarray, "N S"], batch: int) -> Iterator[jax.Array]:
    own = own_rows(mesh, batch)
    for low in range(0, len(values), batch):
        yield split_rows(mesh, values[low : low + batch][own])


class _Projector:
    """`projector(params)` gives the views of the rows."""

    def __init__(self, task: Pretrain, mesh: Mesh, pieces: Pieces, values: Int[np.ndarray, "N S"], batch: int) -> None:
        self._task, self._mesh, self._pieces, self._values, self._batch = task, mesh, pieces, values, batch
        self._project = jax.jit(self._of_batch, out_shardings=replicated(mesh))

    def __call__(self, params: Params) -> Views:
        with jax.set_mesh(self._mesh):
            parts = [
                jax.device_get(self._project(params, self._pieces, values))
                for values in _batches(self._mesh, self._values, self._batch)
            ]
        ctr, text = (np.concatenate(side).astype(np.float64) for side in zip(*parts, strict=True))
        scale, bias = (float(x) for x in apply_method(self._task.model, params, "compare"))
        return Views(ctr, text, scale * ctr @ text.T + bias)

    def _of_batch(
        self, params: Params, pieces: Pieces, values: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
        model = self._task.model
        call = caller(model, params, None)
        prompt = row_prompts(model, pieces, values, text_length(model.schema.text.length))
        h = call("represent", feature_ids(pieces, values), row_numbers(model, pieces, values))
        pooling = model.config.text.pooling
        states = call("read", prompt.tokens, prompt.mask, packing.first(prompt.mask) if pooling == "cls" else None)
        views: tuple[Array, Array] = call("align", h, pool(states, prompt.mask, pooling))
        return views


def _recovery(
    task: Pretrain,
    mesh: Mesh,
    params: Params,
    pieces: Pieces,
    values: Int[np.ndarray, "N S"],
    batch: int,
    dataset: Dataset,
) -> list[Recovery]:
    """Hides and recovers as pretraining does, several times."""
    loss = task.model.config.loss
    if not (loss.mlm or loss.mtm):
        return []
    recover = jax.jit(partial(_recover, task), out_shardings=replicated(mesh))
    sums: dict[str, dict[str, np.ndarray]] = {how: {} for how in HELPS}  # total and weight of every metric
    ranks: dict[str, list[np.ndarray]] = {how: [] for how in HELPS}
    with jax.set_mesh(mesh):
        for number in range(_PASSES):
            for part, rows in enumerate(_batches(mesh, values, batch)):
                key = jax.random.fold_in(jax.random.key(0), number * len(values) + part)
                means, own = jax.device_get(recover(params, pieces, rows, key))
                for how, metrics in means.items():
                    for name, mean in metrics.items():
                        sums[how][name] = sums[how].get(name, np.zeros(2)) + np.array([mean.total, mean.weight])
                for how, rank in own.items():
                    ranks[how].append(rank)
    joined = {how: np.concatenate(parts) for how, parts in ranks.items() if parts}
    found = []
    for f, field in enumerate(task.model.schema.fields):
        text: dict[str, Tokens] = {}
        table: dict[str, Ranks | Detection] = {}
        for how in HELPS:
            right, hit, calm = (sums[how].get(f"{what}/{field.name}", np.zeros(2)) for what in _BY_FIELD)
            own = joined[how][:, f] if how in joined else np.zeros(0, np.int64)
            if right[1]:
                text[how] = Tokens(int(right[1]), float(right[0] / right[1]))
            if (own > 0).any():
                table[how] = measures.of_ranks(own[own > 0])
            elif hit[1] and calm[1]:
                table[how] = Detection(int(hit[1]), float(hit[0] / hit[1]), float(calm[0] / calm[1]))
        if text or table:
            found.append(Recovery(field.name, text, table, _most_frequent(dataset, values, f)))
    return found


_BY_FIELD = ("mlm/accuracy", "mtm/accuracy", "mtm/false_alarm")  # as the losses log them


def _most_frequent(dataset: Dataset, values: Int[np.ndarray, "N S"], f: int) -> float:
    """Share of a field's most frequent id of training among the rows that have any id of training in the field.

    NaN where there is none, or the field has no ids of its own.
    """
    schema = dataset.schema
    field = schema.fields[f]
    if field.size < 2 or field.kind in ("text", "sequence"):
        return float("nan")
    own = slice(field.offset + 1, field.offset + field.size)
    most = own.start + int(dataset.feature_counts()[own].argmax())
    ids = np.asarray(feature_ids(dataset.pieces, values))[:, np.asarray(schema.field_of_slot) == f]
    known = ids[((ids != PAD_ID) & (ids != field.offset)).any(axis=1)]  # as `_ranks` has it
    return float((known == most).any(axis=1).mean()) if len(known) else float("nan")


def _recover(
    task: Pretrain, params: Params, pieces: Pieces, values: Int[Array, "B S"], key: jax.Array
) -> tuple[dict[str, dict[str, Mean]], dict[str, Int[Array, "B F"]]]:
    """Hides some fields of a batch as pretraining does, and lets the model recover them.

    Returns:
      By what helps: metrics of the losses themselves; and the rank of every row's hidden ids among all of their field,
      -1 where nothing of the field is hidden that training knew.
    """
    model, config, schema = task.model, task.model.config, task.model.schema
    call = caller(model, params, None)
    rows = hide(model, pieces, values, jax.random.split(key, 3))
    prompt = row_prompts(model, pieces, values, text_length(schema.text.length))
    hidden = mlm.hide(prompt, rows.hide_text, config, schema)
    whole = config.mask.helper == "whole"
    means: dict[str, dict[str, Mean]] = {how: {} for how in HELPS}
    ranks: dict[str, Int[Array, "B F"]] = {}
    if config.loss.mlm:
        masked_states = call("read", hidden.tokens, hidden.mask)
        shown = Shown(rows.ids, rows.numbers) if whole else rows.shown
        blank = Shown(jnp.where(rows.ids == PAD_ID, PAD_ID, MASK_ID), 0 * rows.numbers)
        capacity = mlm.capacity(task.maskable, len(values) // sharding.shards(len(values)), config, schema)
        tables = {"helped": shown, "alone": blank} if config.mlm.with_table else {"alone": None}
        for how, table in tables.items():
            h = None if table is None else call("represent", *table)
            means[how] |= mlm.loss(call, prompt, hidden, masked_states, None, h, capacity, task.common_tokens, schema)
    if config.loss.mtm:
        h = call("represent", *rows.shown)
        nothing = mlm.hide(prompt, jnp.ones_like(rows.hide_text), config, schema)
        prompts = {"helped": prompt if whole else hidden, "alone": nothing} if config.mtm.with_text else {"alone": None}
        for how, text in prompts.items():
            help_by = (None, None) if text is None else (call("read", text.tokens, text.mask), text.mask)
            output = apply_method(model, params, "recover_features", h, *help_by)
            if config.mtm.method == "rfd":
                counts = rows.ids, rows.numbers, rows.shown, rows.hide_table, task.counts
                means[how] |= mtm.loss(output, *counts, key, config, schema)
            else:
                ranks[how] = _ranks(task, output, rows.ids, rows.hide_table)
    return means, ranks


def _ranks(
    task: Pretrain, output: tuple[Array, Array, Array], ids: Int[Array, "B S"], hidden: Bool[Array, "B F"]
) -> Int[Array, "B F"]:
    """The best rank of a hidden field's ids among all of the field; of two equal scores the lower id comes first."""
    vectors, table, bias = output
    schema = task.model.schema
    found, first = [], 0
    for f, field in enumerate(schema.fields):
        best = jnp.full(len(ids), field.size + 1)
        if field.kind != "text":
            span = slice(field.offset, field.offset + field.size)
            scores = vectors[:, schema.tabular.index(f)] @ table[span].T + bias[span][None, :]
            for s in range(first, first + field.slots):
                known = (ids[:, s] != PAD_ID) & (ids[:, s] != field.offset)
                at = jnp.where(known, ids[:, s] - field.offset, 0)[:, None]
                own = jnp.take_along_axis(scores, at, axis=1)
                before = (scores > own) | ((scores == own) & (jnp.arange(field.size)[None, :] < at))
                best = jnp.where(known, jnp.minimum(best, 1 + before.sum(axis=1)), best)
        first += field.slots
        found.append(jnp.where(hidden[:, f] & (best <= field.size), best, -1))
    return jnp.stack(found, axis=1)
