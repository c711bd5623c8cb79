"""The schema: the one contract between prepared data and models.

Feature ids are global in one embedding table: 0 is padding, 1 is the mask, then every field has a contiguous range that
opens with its own out-of-vocabulary id. *Value ids* number the distinct strings of each field, those seen in training
first; a value that training never saw keeps its text but maps to the out-of-vocabulary feature id.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from alt_jax.errors import InputError, shortened

PAD_ID = 0
MASK_ID = 1
FIRST_FIELD_ID = 2
FORMAT_VERSION = 4
SPLITS = ("train", "valid", "test")

_STRICT = ConfigDict(extra="forbid")
_MOST_SLOTS = _MOST_TOKENS = 1 << 20


Kind = Literal["category", "numeric", "multi", "sequence", "text"]


@dataclass(frozen=True, config=_STRICT)
class Numeric:
    """How a numeric field's numbers become bins and inputs: inner edges of the bins, mean and standard deviation."""

    edges: tuple[float, ...]
    mean: float
    std: float


@dataclass(frozen=True, config=_STRICT)
class Field:
    """One field.

    Attributes:
      name: As written in the prompt, `"<name> is <value>."`.
      column: Column of the raw table that holds it.
      offset: First feature id of the field, which is its out-of-vocabulary id.
      size: Number of feature ids, the out-of-vocabulary id included.
      max_tokens: Tokens that a prompt has of the field's longest value, the closing full stop included.
      kind: See `alt_jax.data.fields`. A `text` field has no feature ids, a `sequence` those of its item's field.
      slots: Values that a row has at most.
      separator: Between values that a raw table stores as one string.
      numeric: Bins of a numeric field.
      of, spelled: Columns of a `sequence`'s items and of their spelling; see `alt_jax.config.FieldConfig`.
      past, outcome: Which rows a `sequence` was made of, likewise.
      hash_buckets: Values, those of a `sequence`'s item included, are numbers of buckets, so many; 0: as they are.
      type: What its values are, which decides how they are spelled (`alt_jax.data.spelling`).
      in_prompt: Whether the prompt spells it. A field of kind `text` that is not in the prompt is no input at all: it
        tells users or items apart.
    """

    name: str
    column: str
    offset: int
    size: int
    max_tokens: int
    kind: Kind = "category"
    slots: int = 1
    separator: str = ""
    numeric: Numeric | None = None
    of: str = ""
    spelled: str = ""
    past: Literal["train", "all"] = "train"
    outcome: Literal["positive", "negative", "any"] = "positive"
    hash_buckets: int = 0
    type: Literal["string", "number", "boolean", "time"] = "string"
    in_prompt: bool = True

    @property
    def is_input(self) -> bool:
        """Whether any tower reads it."""
        return self.in_prompt or self.kind != "text"


@dataclass(frozen=True, config=_STRICT)
class TextSchema:
    """What the prompts were tokenised with.

    Attributes:
      tokenizer: Name or folder the tokenizer came from, or `"trained"`; for messages only.
      fingerprint: SHA-256 over the serialised tokenizer; datasets and text towers must agree on it.
      vocab_size: The largest token id + 1.
      pad_id, cls_id, sep_id, mask_id: Special tokens.
      length: Tokens of the longest prompt in the dataset, special tokens included.
      max_length: Upper bound for any row: longer prompts are cut to it.
      uncut_length: Tokens of the longest prompt before it was cut, hence the least bound that cuts none of these.
    """

    tokenizer: str
    fingerprint: str
    vocab_size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    length: int
    max_length: int
    uncut_length: int


@dataclass(frozen=True, config=_STRICT)
class Shard:
    """Some consecutive rows of a split: how many, and the SHA-256 of their files `values`, `labels` and `rows`."""

    rows: int
    sha256: dict[str, str]


@dataclass(frozen=True, config=_STRICT)
class Split:
    """One split.

    Attributes:
      rows: How many.
      positives: How many of them are positive.
      unlabelled: How many of them have no label (the training part alone).
      cut: How many of them have a prompt that was cut.
      hash: Which raw rows they are (`alt_jax.data.protocols.split_hash`), whatever was made of them.
      prompts: How many have a prompt of 0, 1, 2, … tokens.
      shards: The files that hold them (`alt_jax.data.shards`). Splits are equal whatever the size of their shards.
    """

    rows: int
    positives: int
    hash: str = ""
    prompts: tuple[int, ...] = ()
    unlabelled: int = 0
    cut: int = 0
    shards: tuple[Shard, ...] = dataclasses.field(default=(), compare=False)

    @property
    def labelled(self) -> int:
        """Rows that have a label."""
        return self.rows - self.unlabelled


@dataclass(frozen=True, config=_STRICT)
class Schema:
    """Everything a model needs to know about a prepared dataset.

    Attributes:
      source: Name of the data source, e.g. `movielens_1m`.
      protocol: Name of the protocol preset that filtered, labelled and split the rows.
      fields: In prompt order.
      linked: Groups of field names that determine one another and may be masked together.
      user, item: Field names of the user and the item; None when the table has none.
      text: Tokenisation of the prompts.
      splits: `train`, `valid` and `test`.
      vocabulary_hash: SHA-256 over the ordered training vocabulary of every field.
      data_hash: SHA-256 over the values and labels of all splits, in order; two datasets with the same hash hold the
        same rows of the same fields.
      version: Format version of the prepared folder.
    """

    source: str
    protocol: str
    fields: tuple[Field, ...]
    linked: tuple[tuple[str, ...], ...]
    user: str | None
    item: str | None
    text: TextSchema
    splits: dict[str, Split]
    vocabulary_hash: str
    data_hash: str
    version: int = FORMAT_VERSION

    @property
    def num_ids(self) -> int:
        """Rows of the shared embedding table."""
        return max(f.offset + f.size for f in self.fields)

    @property
    def names(self) -> tuple[str, ...]:
        """Field names in prompt order."""
        return tuple(f.name for f in self.fields)

    @property
    def columns(self) -> dict[str, str]:
        """Columns that raw rows must have; for histories, which no raw table has, a clause that says what they hold."""
        did = {"positive": "clicked", "negative": "did not click", "any": "saw"}
        columns = {field.column: "" for field in self.fields if field.is_input}
        for f in self.fields:
            if f.kind == "sequence":
                columns[f.column] = (
                    f", which holds the last items (as in {f.of!r}) that the row's user {did[f.outcome]}, {f.slots} at "
                    f"most, newest first, {f.separator!r} between them, empty for none"
                )
        return columns

    def columns_of(self, strategy: str | None) -> dict[str, str]:
        """Those of the `columns` that a model of a strategy reads: `ctr` no texts, `plm` what is in the prompt."""
        unread = {
            field.column
            for field in self.fields
            if (strategy == "ctr" and field.kind == "text") or (strategy == "plm" and not field.in_prompt)
        }
        return {column: clause for column, clause in self.columns.items() if column not in unread}

    def index(self, name: str) -> int:
        """Position of the field called `name`.

        Raises:
          InputError: There is no such field.
        """
        if name not in self.names:
            raise InputError(f"No field {name!r} in the schema; its fields are {', '.join(self.names)}.")
        return self.names.index(name)

    @property
    def widths(self) -> tuple[int, ...]:
        """Slots of every field."""
        return tuple(f.slots for f in self.fields)

    def slot(self, name: str) -> int:
        """Column of the first value of the field called `name`.

        Raises:
          InputError: There is no such field.
        """
        return sum(self.widths[: self.index(name)])

    @property
    def entities(self) -> dict[str, str]:
        """The fields that tell users and items apart, as `user` and `item`; not one that is hashed: buckets do not."""
        named = {"user": self.user, "item": self.item}
        return {what: name for what, name in named.items() if name and not self.fields[self.index(name)].hash_buckets}

    @property
    def tabular(self) -> tuple[int, ...]:
        """Positions of the fields that have feature ids, which are all but those of kind `text`."""
        return tuple(f for f, field in enumerate(self.fields) if field.kind != "text")

    @property
    def numeric_slots(self) -> tuple[int, ...]:
        """Columns of the numeric fields."""
        return tuple(self.slot(field.name) for field in self.fields if field.kind == "numeric")

    @property
    def field_of_slot(self) -> tuple[int, ...]:
        """Position of the field that every slot belongs to."""
        return tuple(f for f, width in enumerate(self.widths) for _ in range(width))

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Maskable groups of field positions: the linked groups, and every other field on its own."""
        linked = [tuple(self.index(name) for name in group) for group in self.linked]
        taken = {i for group in linked for i in group}
        alone = [(i,) for i in range(len(self.fields)) if i not in taken]
        return tuple(sorted([*linked, *alone]))

    @property
    def prompts(self) -> tuple[int, ...]:
        """How many rows of all splits have a prompt of 0, 1, 2, … tokens."""
        return tuple(map(sum, itertools.zip_longest(*(split.prompts for split in self.splits.values()), fillvalue=0)))

    @property
    def cut(self) -> int:
        """Rows of all splits whose prompt was cut to `TextSchema.max_length`."""
        return sum(split.cut for split in self.splits.values())

    @property
    def mean_tokens(self) -> float:
        """Mean length of all prompts in tokens; NaN where it is not known."""
        rows = sum(self.prompts)
        return sum(tokens * count for tokens, count in enumerate(self.prompts)) / rows if rows else math.nan

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must share with a dataset: fields, vocabulary and tokenizer (not rows or lengths)."""
        parts = [
            [
                (
                    f.name,
                    f.offset,
                    f.size,
                    f.kind,
                    f.slots,
                    f.of,
                    f.spelled,
                    f.past,
                    f.outcome,
                    f.hash_buckets,
                    f.type,
                    f.in_prompt,
                )
                for f in self.fields
            ],
            [dataclasses.asdict(f.numeric) for f in self.fields if f.numeric is not None],
            self.vocabulary_hash,
            self.text.fingerprint,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes the schema as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Schema":
        """Reads `schema.json`.

        Raises:
          InputError: The file is missing, is not JSON, or was written in another format.
        """
        try:
            schema = TypeAdapter(Schema).validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; run `alt-jax prepare` first or correct --data.dir.") from None
        except (ValidationError, UnicodeDecodeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            reason = shortened(reason)
            raise InputError(f"{path} is not a schema of format {FORMAT_VERSION} ({reason}); prepare again.") from None
        if schema.version != FORMAT_VERSION:
            raise InputError(
                f"{path} is of format {schema.version}, not {FORMAT_VERSION}; prepare again, and train again on that."
            )
        for problem in _contradictions(schema):
            raise InputError(f"{path} contradicts itself ({shortened(problem)}); prepare again.")
        return schema


def _contradictions(schema: Schema) -> Iterator[str]:
    """What no prepared dataset has: it would fail far from here, or ask for any amount of memory."""
    names = set(schema.names)
    if not names or len(names) < len(schema.fields):
        yield "it has no fields, or two of one name"
    if sum(schema.widths) > _MOST_SLOTS:
        yield f"a row has more than {_MOST_SLOTS} slots"
    for name in (*(name for group in schema.linked for name in group), schema.user, schema.item):
        if name is not None and name not in names:
            yield f"there is no field {name!r}"
    yield from _impossible_fields(schema.fields)
    text = schema.text
    if not all(0 <= token < text.vocab_size < 2**31 for token in (text.pad_id, text.cls_id, text.sep_id, text.mask_id)):
        yield "a special token lies outside the tokenizer's"
    if not 0 <= text.length <= text.max_length <= _MOST_TOKENS:
        yield f"prompts have {text.length} tokens of {text.max_length} at most"
    if text.uncut_length < text.length or (schema.cut > 0) != (text.uncut_length > text.max_length):
        yield f"{schema.cut} prompts are cut, of which the longest had {text.uncut_length} tokens"
    for name, split in schema.splits.items():
        sizes = split.unlabelled, split.cut, split.rows - split.cut, *split.prompts
        if not 0 <= split.positives <= split.labelled or min(sizes) < 0:
            yield f"split {name!r} has impossible sizes"
        if split.prompts and sum(split.prompts) != split.rows:
            yield f"split {name!r} has {split.rows} rows and {sum(split.prompts)} prompts"


def _impossible_fields(fields: tuple[Field, ...]) -> Iterator[str]:
    for field in fields:
        own = field.size == 0 if field.kind == "text" else field.size > 0
        sizes = min(field.offset, field.max_tokens, field.slots - 1, field.hash_buckets) >= 0
        if not (own and sizes and field.offset + field.size < 2**31 and field.max_tokens <= _MOST_TOKENS):
            yield f"field {field.name!r} has impossible sizes"
        if (field.kind == "numeric") != (field.numeric is not None):
            yield f"field {field.name!r} has bins but is no number, or is one and has none"
        if field.numeric and not (0 < field.numeric.std < math.inf and math.isfinite(field.numeric.mean)):
            yield f"field {field.name!r} has an impossible mean or standard deviation"
