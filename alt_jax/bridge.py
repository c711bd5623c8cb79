"""The bridge between the stages: which parameters a run starts from, every leaf accounted for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from alt_jax import cluster, run_files
from alt_jax.checkpoint import load_params
from alt_jax.config import PLMConfig, Strategy, TextConfig
from alt_jax.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from alt_jax.errors import InputError
from alt_jax.models import huggingface
from alt_jax.models.bert import BertConfig
from alt_jax.models.encoder import EncoderConfig
from alt_jax.run import Run
from alt_jax.schema import Schema
from alt_jax.tasks import text_length

# What each stage takes from a pretraining: new sub-tree ← old sub-tree.
TRANSFERRED: dict[str, dict[str, str]] = {
    "pretrain": {"ctr": "ctr", "text": "text"},
    "ctr": {"ctr": "ctr"},
    "plm": {"text": "text", "text_second": "text"},
    "joint": {"ctr": "ctr", "text": "text"},
}
_TEXT_TOWERS = ("text", "text_second")


def encoder_config(config: TextConfig, schema: Schema) -> EncoderConfig:
    """The text tower's architecture: the model folder's, or a BERT of the configured sizes.

    Raises:
      InputError: The dataset was prepared with another tokenizer, the tower lacks some of its tokens or positions for
        the longest prompts, or the tower's heads do not divide its width.
    """
    if config.model:
        folder = huggingface.resolve(config.model)
        encoder = huggingface.load_config(folder)
        if tokenizer_fingerprint(load_tokenizer(str(folder))) != schema.text.fingerprint:
            raise InputError(
                f"The dataset was prepared with the tokenizer {schema.text.tokenizer!r}, not with that of "
                f"{config.model}; prepare it again with --text.model {config.model}."
            )
        if schema.text.vocab_size > encoder.vocab_size:
            raise InputError(
                f"{config.model}: the tokenizer has {schema.text.vocab_size} tokens, but the model has embeddings for "
                f"{encoder.vocab_size}; use the tokenizer that the model was trained with."
            )
    else:
        if config.hidden % config.heads:
            raise InputError(f"text.hidden {config.hidden} is not divisible by text.heads {config.heads}; change one.")
        encoder = BertConfig(
            vocab_size=schema.text.vocab_size,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate,
            max_position_embeddings=text_length(max(config.max_length, schema.text.max_length)),
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=schema.text.pad_id,
        )
        if schema.text.tokenizer != "trained":
            raise InputError(
                f"The dataset was prepared with the tokenizer {schema.text.tokenizer!r}, but text.model is empty; "
                "prepare it again, or name that model."
            )
    if schema.text.max_length > encoder.max_length:
        raise InputError(
            f"Prompts have up to {schema.text.max_length} tokens, but the text tower reads {encoder.max_length}; "
            f"prepare again with --text.max-length {encoder.max_length}."
        )
    return encoder


def check_towers(config: PLMConfig, schema: Schema) -> None:
    """Refuses two text towers where the prompt cannot be split between them.

    Raises:
      InputError: The dataset declares no item, or no field comes before it.
    """
    if config.towers == "two" and (schema.item is None or schema.index(schema.item) == 0):
        raise InputError(
            "finetune.plm.towers 'two' splits the prompt before the item's field, but the dataset "
            f"{'declares no item' if schema.item is None else 'has no field before it'}; set data.item, or order "
            "data.fields with the user's first."
        )


def load_text(params: dict[str, Any], config: TextConfig, encoder: EncoderConfig) -> tuple[dict[str, Any], list[str]]:
    """Puts a language model's weights into fresh parameters; returns them and a summary."""
    towers = [name for name in params if name in _TEXT_TOWERS]
    if not towers or not config.model or config.init == "scratch":
        return params, [f"{name}: fresh ({count(tree):,} parameters)" for name, tree in params.items()]
    with cluster.together():
        weights = huggingface.load_weights(huggingface.resolve(config.model), encoder)
    summary = [
        f"{name}: {f'from {config.model}' if name in towers else 'fresh'} ({count(tree):,} parameters)"
        for name, tree in params.items()
    ]
    return {**params, **dict.fromkeys(towers, weights)}, summary


def transfer(
    params: dict[str, Any],
    stage: Literal["pretrain"] | Strategy,
    pretrained: Path,
    schema: Schema,
    fresh: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Replaces the sub-trees that a stage takes over by those of a pretraining run.

    Args:
      params: Fresh parameters of the stage.
      stage: A finetuning strategy, or a further pretraining; decides which sub-trees are taken: `TRANSFERRED`.
      pretrained: Run folder of the pretraining.
      schema: Of the dataset to train on.
      fresh: The summary lines of `load_text`, where `params` come from there.

    Returns:
      The parameters, and a summary line per sub-tree: loaded or fresh.

    Raises:
      InputError: The run has another schema, another width or lacks a leaf, or is not a pretraining run.
    """
    with cluster.together():
        Run.load(pretrained)  # whole
        run_files.check_pretraining(pretrained, schema)
    found, step = load_params(pretrained)
    taken, summary = {}, []
    said = fresh or [f"{name}: fresh ({count(tree):,} parameters)" for name, tree in params.items()]
    for (name, tree), line in zip(params.items(), said, strict=True):
        old = TRANSFERRED[stage].get(name)
        # A pretraining on texts alone has no CTR tower, one without text no text tower: where both are wanted, that one
        # starts as without a pretraining.
        if old is None or (stage in ("pretrain", "joint") and old not in found):
            summary.append(line)
            continue
        if old not in found:
            raise InputError(
                f"{pretrained} has no parameters for {old!r}, only for {', '.join(found)}; pretrain with losses that "
                "need them, or choose another strategy."
            )
        _check_leaves(found[old], tree, old, pretrained)
        taken[name] = found[old]
        summary.append(f"{name}: from {pretrained}, step {step} ({count(tree):,} parameters)")
    used = {TRANSFERRED[stage][name] for name in taken}
    summary.append(f"left behind: {', '.join(name for name in found if name not in used) or 'nothing'}")
    return {**params, **taken}, summary


def count(tree: Any) -> int:
    """Number of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _check_leaves(found: Any, expected: Any, name: str, pretrained: Path) -> None:
    """Same leaves, same shapes; anything else is named."""
    theirs = {jax.tree_util.keystr(k): leaf.shape for k, leaf in jax.tree_util.tree_leaves_with_path(found)}
    ours = {jax.tree_util.keystr(k): leaf.shape for k, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{pretrained} does not fit: {name}{key} is {theirs.get(key, 'absent')} there and "
                f"{ours.get(key, 'absent')} here; use the tower sizes that it was pretrained with."
            )
