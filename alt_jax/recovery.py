"""What a pretraining hides of some rows, and what the model makes of it, with dropout off."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alt_jax import mlm, mtm, pretraining
from alt_jax.data.prompt import Pieces, Prompt
from alt_jax.models.alt import ALT
from alt_jax.schema import Schema
from alt_jax.tasks import Params, apply_method, caller, row_prompts, text_length


class Hidden(NamedTuple):
    """Some rows and what is hidden of them, drawn as a training step draws it.

    Attributes:
      ids, numbers: Feature ids, and numbers of the numeric fields.
      prompt: Whole prompts.
      text: What the text tower reads instead, where MLM is trained.
      fields: Which fields MTM hides.
      shown: What the CTR tower sees instead, where MTM is trained.
    """

    ids: Int[Array, "B S"]
    numbers: Float[Array, "B M"]
    prompt: Prompt
    text: mlm.Hidden
    fields: Bool[Array, "B F"]
    shown: mtm.Shown


class Recovered(NamedTuple):
    """What a model makes of hidden rows.

    Attributes:
      row, position: Of every hidden token: its row, and its position in the whole prompt.
      tokens: Vocabulary logits of these tokens; None without MLM.
      output: Of MTM's head: a vector per field, the output table and its bias, or for `rfd` a logit per field; None
        without MTM.
    """

    row: Int[np.ndarray, " K"]
    position: Int[np.ndarray, " K"]
    tokens: Float[np.ndarray, "K V"] | None
    output: Any


def hide(model: ALT, pieces: Pieces, values: Int[np.ndarray, "B S"], key: jax.Array) -> Hidden:
    """Hides what `Pretrain.loss` hides of these rows with this key.

    Args:
      model: Schema and configuration.
      pieces: As NumPy arrays.
      values: Value ids.
      key: Of the step.
    """
    config, schema = model.config, model.schema

    @jax.jit
    def draw(pieces: Pieces, values: Int[Array, "B S"], key: jax.Array) -> Hidden:
        rows = pretraining.hide(model, pieces, values, jax.random.split(key, 4)[:3])
        prompt = row_prompts(model, pieces, values, text_length(schema.text.length))
        chosen, fields, shown = rows.hide_text, rows.hide_table, rows.shown
        if not config.loss.mlm:
            chosen = jnp.zeros_like(chosen)
        if not config.loss.mtm:
            fields, shown = jnp.zeros_like(fields), mtm.Shown(rows.ids, rows.numbers)
        return Hidden(rows.ids, rows.numbers, prompt, mlm.hide(prompt, chosen, config, schema), fields, shown)

    hidden: Hidden = draw(pieces, jnp.asarray(values), key)
    return hidden


def recover(model: ALT, params: Params, hidden: Hidden) -> Recovered:
    """Asks the model for everything that is hidden, each side helped by the other as in its training.

    Args:
      model: Towers and heads.
      params: Of a pretraining.
      hidden: Rows.
    """
    config, needed = model.config, pretraining.views(model.config)
    loss, whole = config.loss, config.mask.helper == "whole"
    row, position = np.nonzero(np.asarray(hidden.text.where))
    at = np.asarray(hidden.text.place)[row, position]

    @jax.jit
    def look(params: Params) -> tuple[Any, Any]:
        call = caller(model, params, None)
        h: Any = None
        hidden_h = states = hidden_states = h
        if needed.table:
            h = call("represent", hidden.ids, hidden.numbers)
        if needed.hidden_table:
            hidden_h = call("represent", hidden.shown.ids, hidden.shown.numbers)
        if needed.text:
            states = call("read", hidden.prompt.tokens, hidden.prompt.mask)
        if needed.hidden_text:
            hidden_states = call("read", hidden.text.tokens, hidden.text.mask)
        tokens = output = None
        if loss.mlm:
            helper = (h if whole else hidden_h)[row] if config.mlm.with_table else None
            tokens = call("recover_tokens", hidden_states[row, at], helper)
        if loss.mtm:
            help_by: tuple[Any, Any] = (None, None)
            if config.mtm.with_text:
                help_by = (states, hidden.prompt.mask) if whole else (hidden_states, hidden.text.mask)
            output = apply_method(model, params, "recover_features", hidden_h, *help_by)
        return tokens, output

    tokens, output = jax.device_get(look(params))
    return Recovered(row, position, tokens, output)


def feature_probabilities(output: Any, schema: Schema, row: int, field: int) -> Float[np.ndarray, " n"]:
    """Softmax of MTM's scores over the ids of a field, its out-of-vocabulary id first.

    Args:
      output: Of `recover`, by any method but `rfd`.
      schema: Fields.
      row: Which row.
      field: Position of a field that has ids.
    """
    vectors, table, bias = output
    span = slice(schema.fields[field].offset, schema.fields[field].offset + schema.fields[field].size)
    return softmax(table[span] @ vectors[row, schema.tabular.index(field)] + bias[span])


def softmax(logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Probabilities, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()
