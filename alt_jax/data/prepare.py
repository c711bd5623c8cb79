"""`prepare`: raw rows to a prepared dataset (see `alt_jax.data.dataset` for what the folder holds)."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alt_jax import console
from alt_jax.config import Config, FieldConfig
from alt_jax.data import aggregates, protocols, rows, sources
from alt_jax.data.dataset import (
    CONFIG,
    PIECES,
    SCHEMA,
    TOKENIZER,
    VOCABULARY,
    Dataset,
    Vocabulary,
    vocabulary_hash,
)
from alt_jax.data.declared import own_columns
from alt_jax.data.engine import Engine
from alt_jax.data.frames import as_table
from alt_jax.data.local import Local
from alt_jax.data.prompt import longest_values, sentence, tokenize_pieces
from alt_jax.data.protocols import SPLITS
from alt_jax.data.sources.raw import RawData
from alt_jax.data.summary import report
from alt_jax.data.target import check_target, written
from alt_jax.data.tokenizer import check_ids, load_tokenizer, tokenizer_fingerprint, train_wordpiece, vocabulary_size
from alt_jax.data.values import Values
from alt_jax.schema import Field, Schema, TextSchema

if TYPE_CHECKING:
    import transformers


def prepare(
    config: Config,
    engine: Callable[[RawData, protocols.Split, Path, int], Engine] = Local,
    *,
    table: Any = None,
) -> Dataset:
    """Reads, filters, labels, splits and tokenises raw data, writes the prepared dataset and reports on it.

    A folder appears in one step when it is whole; behind a URL, `schema.json`, without which it is no dataset, is
    written last. It replaces an earlier prepared dataset, but nothing else. Where several processes prepare the same
    new folder at once, the first to finish is the one that stays.

    Args:
      config: Says of what, how and where.
      engine: What counts and writes.
      table: The rows of source `table`, where they are in memory instead of in `data.raw`: whatever
        `alt_jax.data.frames.as_table` takes, a data frame of pandas or Polars for instance.

    Raises:
      InputError: The config, the raw data or the target folder cannot be used.
    """
    clock = [time.perf_counter()]
    target, replace = check_target(config.data.dir)
    protocol = protocols.get(config.data.protocol)
    where, to = config.data.raw or ("memory" if table is not None else "its download"), target.name
    console.log(f"prepare · {config.data.source} · {where} → {to}", stage="prepare", raw=config.data.raw, data=to)
    raw = sources.load(
        config.data,
        None if table is None else as_table(table, dict.fromkeys(own_columns(config.data), ""), "the table"),
    )
    split = protocols.apply(protocol, raw, config.data.positive_above)
    raw = aggregates.resolve(protocol, raw, split, named=[field.column for field in config.data.fields])
    names = tuple(f.name for f in raw.fields)
    name_of = {f.column: f.name for f in raw.fields}
    buckets = {f.column: f.hash_buckets for f in raw.fields}
    spelled = [f.in_prompt for f in raw.fields]
    clock.append(time.perf_counter())

    with (
        written(target, replace) as folder,
        contextlib.closing(engine(raw, split, folder, config.data.shard_rows)) as work,
    ):
        fields = work.collect(config.data.min_count)
        vocabulary = _vocabulary(fields)
        vocabulary.save(folder / VOCABULARY)
        clock.append(time.perf_counter())

        if config.text.model:
            tokenizer = load_tokenizer(config.text.model)
            check_ids(tokenizer, config.text.model)
        else:
            shown = [(name, found) for name, found, one in zip(names, fields, spelled, strict=True) if one]
            template = sentence(
                [name for name, _ in shown], [["", ""] if found.slots > 1 else "" for _, found in shown]
            )
            tokenizer = train_wordpiece(_training_texts(shown), config.text.vocab_size, template)
        tokenizer.save_pretrained(str(folder / TOKENIZER))
        strings = [found.spelled for found in fields]
        widths = tuple(found.slots for found in fields)
        numbers = np.concatenate([found.number for found in fields])
        most, features = config.text.max_length, vocabulary.feature
        pieces = tokenize_pieces(tokenizer, names, strings, features, most, widths, numbers, spelled)
        np.savez(folder / PIECES, **pieces._asdict())
        template = np.asarray(pieces.length)[len(vocabulary.value) : len(vocabulary.value) + 2 + len(names)].sum()
        longest = np.maximum(*longest_values(pieces, vocabulary.field, len(names)))
        longest = np.where(spelled, np.clip(longest, 2, most - template), 0)
        clock.append(time.perf_counter())

        parts = work.write(fields, pieces)
        splits = {
            name: rows.prepared_split(parts[name], protocols.split_hash(raw, split.rows[name])) for name in SPLITS
        }
        schema = Schema(
            source=raw.source,
            protocol=protocol.name,
            fields=tuple(
                _field(declared, found, tokens, buckets[declared.of or declared.column])
                for declared, found, tokens in zip(raw.fields, fields, longest.tolist(), strict=True)
            ),
            linked=tuple(tuple(name_of[column] for column in group) for group in raw.linked),
            user=None if raw.user is None else name_of[raw.user],
            item=None if raw.item is None else name_of[raw.item],
            text=_text_schema(
                config,
                tokenizer,
                length=max(len(split.prompts) for split in splits.values()) - 1,
                uncut_length=max(part.longest for written_ in parts.values() for part in written_),
            ),
            splits=splits,
            vocabulary_hash=vocabulary_hash(names, [found.offset for found in fields], vocabulary),
            data_hash=rows.data_hash(folder, splits, names, vocabulary),
        )
        (folder / CONFIG).write_text(config.to_json() + "\n", encoding="utf-8")
        schema.save(folder / SCHEMA)
        Dataset.load(folder)  # whatever would not be loaded does not take the place of what would
    clock.append(time.perf_counter())
    dataset = Dataset.load(config.data.dir)
    report(raw, split, dataset, vocabulary, fields)
    stages = zip(("read and split", "values", "text", "rows"), itertools.pairwise(clock), strict=True)
    seconds = {stage: round(end - begin, 1) for stage, (begin, end) in stages}
    console.log(
        f"prepared {target.name} in {clock[-1] - clock[0]:.1f} s: "
        + " · ".join(f"{stage} {passed:.1f} s" for stage, passed in seconds.items()),
        seconds=seconds,
    )
    return dataset


def _vocabulary(found: list[Values]) -> Vocabulary:
    return Vocabulary(
        field=np.repeat(np.arange(len(found), dtype=np.int32), [len(values.strings) for values in found]),
        value=[string for values in found for string in values.strings],
        text=[string for values in found for string in values.spelled],
        feature=np.concatenate([values.feature for values in found]),
        count=np.concatenate([values.counts for values in found]),
    )


def _training_texts(fields: list[tuple[str, Values]]) -> Iterator[str]:
    """Texts to train a WordPiece vocabulary on: every distinct training value, more often if it is frequent.

    Writing out every training row would make frequent values dominate and cost minutes; each value once would treat a
    genre like a typing error. A value that n rows have comes ⌈log2(1 + n)⌉ times.
    """
    for name, found in fields:
        for string, count in zip(found.spelled, found.counts.tolist(), strict=True):
            text = sentence([name], [string])
            for _ in range(math.ceil(math.log2(1 + count))):
                yield text


def _field(declared: FieldConfig, found: Values, most: int, buckets: int) -> Field:
    return Field(
        name=declared.name,
        column=declared.column,
        offset=found.offset,
        size=found.size,
        max_tokens=most,
        kind=declared.kind,
        slots=found.slots,
        separator=declared.separator,
        numeric=found.numeric,
        of=declared.of,
        spelled=declared.spelled,
        past=declared.past,
        outcome=declared.outcome,
        hash_buckets=buckets,
        type=found.type,
        in_prompt=declared.in_prompt,
    )


def _text_schema(
    config: Config, tokenizer: "transformers.PreTrainedTokenizerFast", *, length: int, uncut_length: int
) -> TextSchema:
    return TextSchema(
        tokenizer=config.text.model or "trained",
        fingerprint=tokenizer_fingerprint(tokenizer),
        vocab_size=vocabulary_size(tokenizer),
        pad_id=tokenizer.pad_token_id,
        cls_id=tokenizer.cls_token_id,
        sep_id=tokenizer.sep_token_id,
        mask_id=tokenizer.mask_token_id,
        length=length,
        max_length=config.text.max_length,
        uncut_length=uncut_length,
    )
