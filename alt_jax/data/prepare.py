"""`prepare`: raw rows to a prepared dataset (see `alt_jax.data.dataset` for what the folder holds)."""

import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from transformers import PreTrainedTokenizerFast

from alt_jax.config import Config
from alt_jax.data import aggregates, protocols, sources, values
from alt_jax.data.dataset import (
    CONFIG,
    PIECES,
    SCHEMA,
    TOKENIZER,
    VOCABULARY,
    Dataset,
    Vocabulary,
    hash_strings,
    vocabulary_hash,
)
from alt_jax.data.prompt import prompt_lengths, sentence, tokenize_pieces
from alt_jax.data.protocols import SPLITS
from alt_jax.data.summary import report
from alt_jax.data.target import check_target, written
from alt_jax.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_wordpiece
from alt_jax.data.values import Values
from alt_jax.errors import InputError
from alt_jax.schema import Field, Schema, Split, TextSchema


def prepare(config: Config) -> Dataset:
    """Reads, filters, labels, splits and tokenises raw data, writes the prepared folder and reports on it.

    The folder appears in one step when it is whole; it replaces an earlier prepared dataset, but nothing else. Where
    several processes prepare the same new folder at once, the first to finish is the one that stays.

    Raises:
      InputError: The config, the raw data or the target folder cannot be used.
    """
    began = time.perf_counter()
    target = check_target(config.data.dir)
    replace = (target / SCHEMA).exists()
    protocol = protocols.get(config.data.protocol)
    raw = sources.load(config.data)
    split = protocols.apply(protocol, raw, config.data.positive_above)
    raw = aggregates.resolve(protocol, raw, split, named=[field.column for field in config.data.fields])

    fields = values.collect(raw, split, config.data.min_count)
    vocabulary = _vocabulary(fields)
    names = tuple(f.name for f in raw.fields)
    if config.text.model:
        tokenizer = load_tokenizer(config.text.model)
    else:
        tokenizer = train_wordpiece(_training_texts(names, fields), config.text.vocab_size)
    widths = tuple(found.codes.shape[1] for found in fields)
    strings = [found.spelled for found in fields]
    numbers = np.concatenate([found.number for found in fields])
    pieces, caps = tokenize_pieces(
        tokenizer, names, strings, vocabulary.feature, None, config.text.max_length, widths, numbers
    )

    rows = {name: _value_ids(fields, numbers) for name, numbers in split.rows.items()}
    labels = {name: split.positive[numbers].astype(np.uint8) for name, numbers in split.rows.items()}
    lengths = np.concatenate([np.asarray(prompt_lengths(pieces, rows[name], widths)) for name in SPLITS])
    name_of = {f.column: f.name for f in raw.fields}
    schema = Schema(
        source=raw.source,
        protocol=protocol.name,
        fields=tuple(
            Field(
                name=f.name,
                column=f.column,
                offset=found.offset,
                size=found.size,
                max_tokens=cap,
                kind=f.kind,
                slots=width,
                separator=f.separator,
                numeric=found.numeric,
                of=f.of,
                spelled=f.spelled,
                past=f.past,
                outcome=f.outcome,
            )
            for f, found, cap, width in zip(raw.fields, fields, caps, widths, strict=True)
        ),
        linked=tuple(tuple(name_of[column] for column in group) for group in raw.linked),
        user=None if raw.user is None else name_of[raw.user],
        item=None if raw.item is None else name_of[raw.item],
        text=_text_schema(config, tokenizer, int(lengths.max())),
        splits={
            name: Split(
                rows=len(labels[name]),
                positives=int(labels[name].sum(dtype=np.int64)),
                hash=protocols.split_hash(raw, split.rows[name]),
            )
            for name in SPLITS
        },
        vocabulary_hash=vocabulary_hash(names, [found.offset for found in fields], vocabulary),
        data_hash=_data_hash(names, vocabulary, rows, labels),
    )
    arrays = {
        name: {"values": rows[name], "labels": labels[name], "rows": split.rows[name].astype(np.int64)}
        for name in SPLITS
    }
    with written(target, replace) as folder:
        vocabulary.save(folder / VOCABULARY)
        np.savez(folder / PIECES, **pieces._asdict())
        tokenizer.save_pretrained(str(folder / TOKENIZER))
        for name, parts in arrays.items():
            (folder / name).mkdir()
            for part, array in parts.items():
                np.save(folder / name / f"{part}.npy", array)
        (folder / CONFIG).write_text(config.to_json() + "\n", encoding="utf-8")
        schema.save(folder / SCHEMA)
    report(raw, split, schema=schema, vocabulary=vocabulary, fields=fields, rows=rows, lengths=lengths)
    print(f"prepared {target} in {time.perf_counter() - began:.1f} s")
    return Dataset.load(target)


def prepared_by(config: Config) -> dict[str, Any]:
    """The values that `prepare` reads, by their dotted names: configs that agree in them can share a dataset."""
    unread = {"data.dir"} | ({"text.vocab_size"} if config.text.model else set())
    text = ("text.model", "text.vocab_size", "text.max_length")
    return {
        name: value
        for name, value in config.flat().items()
        if (name.startswith("data.") or name in text) and name not in unread
    }


def check_prepared(config: Config) -> None:
    """Refuses a config that its dataset was not prepared with: what differs would have no effect, yet be recorded.

    Where the raw rows lie may differ, and so may the text model, whose tokenizer `bridge.encoder_config` compares.

    Raises:
      InputError: They differ in something else; names the first value. Or the folder's config is missing or damaged.
    """
    path = Path(config.data.dir) / CONFIG
    try:
        found = prepared_by(Config.from_json(path.read_text(encoding="utf-8"), str(path)))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error).rstrip('.')}); prepare again.") from None
    for name, wanted in prepared_by(config).items():
        if name in ("data.raw", "text.model") or name not in found or found[name] == wanted:
            continue
        if name in ("data.fields", "data.linked"):  # which no option sets
            raise InputError(
                f"{config.data.dir} was prepared with other {name}; use the config that it was prepared with, or "
                "prepare again."
            )
        raise InputError(
            f"{config.data.dir} was prepared with {name} = {found[name]!r}, not {wanted!r}; pass "
            f"--{name.replace('_', '-')} {found[name]}, or prepare again."
        )


def _vocabulary(found: list[Values]) -> Vocabulary:
    return Vocabulary(
        field=np.repeat(np.arange(len(found), dtype=np.int32), [len(values.strings) for values in found]),
        value=[string for values in found for string in values.strings],
        text=[string for values in found for string in values.spelled],
        feature=np.concatenate([values.feature for values in found]),
        count=np.concatenate([values.counts for values in found]),
    )


def _training_texts(names: tuple[str, ...], fields: list[Values]) -> Iterator[str]:
    """Texts to train a WordPiece vocabulary on: every distinct training value, more often if it is frequent.

    Writing out every training row would make frequent values dominate and cost minutes; each value once would treat a
    genre like a typing error. A value that n rows have comes ⌈log2(1 + n)⌉ times.
    """
    for name, found in zip(names, fields, strict=True):
        for string, count in zip(found.spelled, found.counts.tolist(), strict=True):
            text = sentence([name], [string])
            for _ in range(math.ceil(math.log2(1 + count))):
                yield text


def _value_ids(fields: list[Values], numbers: Int[np.ndarray, " N"]) -> Int[np.ndarray, "N S"]:
    """Value ids of raw rows, every field's slots side by side; -1 where a list is shorter than its slots."""
    parts, base = [], 0
    for found in fields:
        codes = found.codes[numbers]
        parts.append(np.where(codes < 0, -1, codes + base))
        base += len(found.strings)
    return np.concatenate(parts, axis=1).astype(np.int32)


def _text_schema(config: Config, tokenizer: PreTrainedTokenizerFast, length: int) -> TextSchema:
    return TextSchema(
        tokenizer=config.text.model or "trained",
        fingerprint=tokenizer_fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        cls_id=tokenizer.cls_token_id,
        sep_id=tokenizer.sep_token_id,
        mask_id=tokenizer.mask_token_id,
        length=length,
        max_length=config.text.max_length,
    )


def _data_hash(
    names: tuple[str, ...],
    vocabulary: Vocabulary,
    rows: dict[str, Int[np.ndarray, "_ F"]],
    labels: dict[str, UInt8[np.ndarray, " _"]],
) -> str:
    """SHA-256 over names, values, and the value ids and labels of every split."""
    digest = hashlib.sha256()
    hash_strings(digest, names)
    hash_strings(digest, vocabulary.value)
    digest.update(vocabulary.field.astype("<i4").tobytes())
    for name in SPLITS:
        hash_strings(digest, [name, str(len(labels[name]))])
        digest.update(rows[name].astype("<i4").tobytes())
        digest.update(labels[name].tobytes())
    return digest.hexdigest()
