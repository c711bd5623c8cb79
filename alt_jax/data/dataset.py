"""The prepared dataset: a folder of arrays that a schema describes.

```
schema.json           the contract: fields, feature ids, tokenizer, sizes, hashes
vocabulary.parquet    field, value, feature_id, count (in training), in the order of value ids
pieces.npz            tokens of every value, prefix and special token
tokenizer/            as Hugging Face saves it
config.json           every value of the configuration that it was prepared with
{train,valid,test}/   rows in shards of `data.shard_rows`: value ids, labels, numbers in the raw table (see `shards`)
```

Value ids number the distinct strings of field 0, then of field 1, and so on. Within a field come first the values with
a feature id of their own, most frequent first, then those that share the field's out-of-vocabulary id.
"""

import functools
import hashlib
import itertools
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from alt_jax.config import DataConfig
from alt_jax.data import fields
from alt_jax.data.prompt import Pieces, longest_values, tokenize_pieces, without_idle_limit
from alt_jax.data.shards import Opened, Rows, array_of, check_files, open_for_training, open_rows, state
from alt_jax.data.sources.original import DAMAGED_ZIP
from alt_jax.data.storage import CONFIG, ENTRIES, PIECES, SCHEMA, TOKENIZER, VOCABULARY, Folder, Place, place
from alt_jax.data.table_files import require_columns
from alt_jax.data.tokenizer import MOST_IDS, load_tokenizer, vocabulary_size
from alt_jax.errors import InputError, shortened
from alt_jax.schema import FIRST_FIELD_ID, PAD_ID, SPLITS, Field, Schema

if TYPE_CHECKING:
    import transformers

_PIECE_TYPES = (*[np.dtype(np.int32)] * 5, np.dtype(np.float32), np.dtype(np.int32))
_VOCABULARY = pa.schema(
    [
        *(("field", pa.int32()), ("value", pa.string()), ("text", pa.string())),
        *(("feature_id", pa.int32()), ("count", pa.int64())),
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """Every distinct value of every field, in the order of value ids.

    Attributes:
      field: Position of the field.
      value: The string, as in the raw table.
      text: The string, as in the prompt.
      feature: Feature id.
      count: Training rows that have it.
    """

    field: Int[np.ndarray, " V"]
    value: list[str]
    text: list[str]
    feature: Int[np.ndarray, " V"]
    count: Int[np.ndarray, " V"]

    def fields(self, number: int) -> list[list[str]]:
        """Values by field."""
        bounds = np.searchsorted(self.field, np.arange(number + 1))
        return [self.value[low:high] for low, high in itertools.pairwise(bounds)]

    def save(self, path: Path) -> None:
        """Writes Parquet."""
        columns = (self.field, self.value, self.text, self.feature, self.count)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _VOCABULARY, strict=True)]
        pq.write_table(pa.table(arrays, _VOCABULARY), path)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          InputError: The file is missing or is not a vocabulary.
        """
        try:
            table = pq.read_table(path)
            numbers = {name: table[name].to_numpy() for name in ("field", "feature_id", "count")}
            value, text = (table[name].to_pylist() for name in ("value", "text"))
        except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise _damaged(path, error) from None
        if table.schema != _VOCABULARY or any(column.null_count for column in table.columns):
            raise InputError(f"{path} has other columns than `prepare` writes; prepare the dataset again.")
        return cls(numbers["field"], value, text, numbers["feature_id"], numbers["count"])


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset.

    A split is opened when it is first asked for, and where it has several shards, each of them is; each file is then
    read once to compare its hash, 1.2 GB/s on one core.

    Attributes:
      place: Where it lies.
      schema: The contract.
      pieces: NumPy arrays to put prompts together from; no limit where no row's prompt is cut.
      memory_gib: What the training rows may take of memory.
      opened: The files that have been read so far, as they were then: all that any split's `Rows.check` looks at.
    """

    place: Place
    schema: Schema
    pieces: Pieces
    memory_gib: float
    opened: Opened

    @classmethod
    def load(cls, name: str | Path, memory_gib: float = DataConfig.memory_gib) -> "Dataset":
        """Opens a prepared folder or URL and checks that every file is there.

        Args:
          name: The folder or URL.
          memory_gib: As in `alt_jax.config.DataConfig`, which decides the order that training reads rows in.

        Raises:
          InputError: It is not a prepared dataset, or one of its files is missing, cut short or foreign.
        """
        found = place(name)
        opened: Opened = {}
        if isinstance(found, Folder):  # of a URL there are copies of our own
            opened = {found.local(file): state(found.local(file)) for file in (SCHEMA, PIECES, VOCABULARY, CONFIG)}
        schema = Schema.load(found.folder / SCHEMA)
        sizes = found.sizes()
        for entry in ENTRIES:
            if not any(file.split("/")[0] == entry for file in sizes):
                raise InputError(f"{name} lacks {entry}, so it is not a whole prepared dataset; prepare again.")
        for split in SPLITS:
            if split not in schema.splits:
                raise InputError(f"{found / SCHEMA} has no split {split}; prepare again.")
        check_files(found, sizes, schema.splits, sum(schema.widths))
        held = sum(size for file, size in sizes.items() if file.startswith(f"{TOKENIZER}/"))
        if schema.text.vocab_size > max(MOST_IDS, held):
            raise InputError(f"{found / SCHEMA} has more tokens than {TOKENIZER} can hold; prepare again.")
        for file in sizes:
            entry = file.split("/")[0]
            if entry in ENTRIES and entry not in SPLITS:
                found.local(file)
        pieces = _load_pieces(found.folder / PIECES, schema)
        if not schema.cut:
            pieces = pieces._replace(limit=pieces.limit[:0])
        return cls(found, schema, pieces, memory_gib, opened)

    @property
    def folder(self) -> Path:
        """Has everything but the rows, which are there only if the dataset lies in a folder."""
        return self.place.folder

    @functools.cached_property
    def train(self) -> Rows:
        """The training part.

        Raises:
          InputError: This is the first time, and a file is not as it was prepared, or a shard is too large for memory.
        """
        split, slots = self.schema.splits["train"], sum(self.schema.widths)
        return open_for_training(self.place, "train", split, slots, self.memory_gib, self.opened)

    @functools.cached_property
    def valid(self) -> Rows:
        """The validation part; raises as `train` does."""
        return self._open("valid")

    @functools.cached_property
    def test(self) -> Rows:
        """The test part; raises as `train` does."""
        return self._open("test")

    def _open(self, name: str) -> Rows:
        return open_rows(self.place, name, self.schema.splits[name], sum(self.schema.widths), self.opened)

    def split(self, name: str) -> Rows:
        """The split called `train`, `valid` or `test`.

        Raises:
          InputError: There is no such split.
        """
        if name not in SPLITS:
            raise InputError(f"No split {name!r}; there are {', '.join(SPLITS)}.")
        rows: Rows = getattr(self, name)
        return rows

    def vocabulary(self) -> Vocabulary:
        """All values with their training counts."""
        return _load_vocabulary(self.folder / VOCABULARY, self.schema)

    @functools.cached_property
    def nobody(self) -> dict[str, int]:
        """Value id that a missing `user` or `item` has; not of those that are never missing."""
        vocabulary, found = self.vocabulary(), {}
        for what, name in (("user", self.schema.user), ("item", self.schema.item)):
            if name is None:
                continue
            low, high = np.searchsorted(vocabulary.field, self.schema.index(name) + np.arange(2))
            if "" in (own := vocabulary.value[low:high]):
                found[what] = int(low) + own.index("")
        return found

    def entity(self, split: str, what: str) -> Int[np.ndarray, " N"]:
        """The user or the item of every row of a split as a value id: -1 where it is missing, which is nobody.

        Args:
          split: Which part.
          what: `user` or `item`, which the schema names.
        """
        values = np.asarray(self.split(split).values[:, self.schema.slot(getattr(self.schema, what))])
        return np.where(values == self.nobody[what], np.int32(-1), values) if what in self.nobody else values

    def prompt_tokens(self, most: int = 1 << 20) -> Int[np.ndarray, " N"]:
        """Tokens of the prompts of the training rows, short ones first; of many rows, so many quantiles."""
        rows = np.cumsum(self.schema.splits["train"].prompts)  # that have no more tokens
        number = min(int(rows[-1]), most)
        return np.searchsorted(rows, (2 * np.arange(number) + 1) * rows[-1] // (2 * number), side="right")

    def feature_counts(self) -> Int[np.ndarray, " num_ids"]:
        """How many training rows have each feature id; the padding and mask ids have 0."""
        vocabulary = self.vocabulary()
        counts = np.zeros(self.schema.num_ids, np.int64)
        owns = np.array([field.kind not in ("sequence", "text") for field in self.schema.fields])[vocabulary.field]
        np.add.at(counts, vocabulary.feature[owns], vocabulary.count[owns])
        return counts

    def token_counts(self) -> Int[np.ndarray, "F V"]:
        """How often the training rows' values of each field have each token, each value in its last form."""
        vocabulary, pieces = self.vocabulary(), self.pieces
        counts = np.zeros((len(self.schema.fields), self.schema.text.vocab_size), np.int64)
        tokens = pieces.maskable[: len(vocabulary.field)]
        value = np.repeat(np.arange(len(tokens)), tokens)
        first = np.cumsum(tokens) - tokens
        at = pieces.start[value] + np.arange(len(value)) - first[value]
        np.add.at(counts, (vocabulary.field[value], pieces.tokens[at]), vocabulary.count[value])
        return counts


@dataclass(frozen=True)
class Encoder:
    """Turns raw rows into value ids. Needs the first four entries of a prepared folder, not its rows.

    Attributes:
      schema: The contract.
      pieces: As in the dataset, with their limit.
      tokenizer: What made them.
      values: Distinct strings of each field; value ids number them field after field.
    """

    schema: Schema
    pieces: Pieces
    tokenizer: "transformers.PreTrainedTokenizerFast"
    values: list[list[str]]

    @classmethod
    def load(cls, folder: str | Path) -> "Encoder":
        """Opens a prepared folder, or a copy made by `copy_encoder`.

        Raises:
          InputError: A file is missing or damaged, or the vocabulary is not the one that the schema was made with.
        """
        folder = Path(folder)
        schema = Schema.load(folder / SCHEMA)
        vocabulary = _load_vocabulary(folder / VOCABULARY, schema)
        offsets = [f.offset for f in schema.fields]
        if vocabulary_hash(schema.names, offsets, vocabulary) != schema.vocabulary_hash:
            raise InputError(f"{folder / VOCABULARY} is not the vocabulary of {folder / SCHEMA}; prepare again.")
        pieces = _load_pieces(folder / PIECES, schema)
        if len(pieces.feature) != len(vocabulary.value):
            raise InputError(f"{folder / PIECES} does not belong to {folder / VOCABULARY}; prepare again.")
        tokenizer = load_tokenizer(str(folder / TOKENIZER))
        if vocabulary_size(tokenizer) != schema.text.vocab_size:
            raise InputError(f"{folder / TOKENIZER} is not the tokenizer of {folder / SCHEMA}; prepare again.")
        return cls(schema, pieces, tokenizer, vocabulary.fields(len(schema.fields)))

    @property
    def columns(self) -> dict[str, str]:
        """Columns that raw rows must have, each with a clause; see `Schema.columns`."""
        return self.schema.columns

    def encode(
        self, table: pa.Table, origin: str = "the table", *, prompts: bool = True
    ) -> tuple[Int[np.ndarray, "N S"], Pieces]:
        """Value ids of raw rows.

        Strings that the dataset has not seen get new value ids behind all others: their text is kept, their feature id
        is the field's out-of-vocabulary id.

        Args:
          table: Holds at least the schema's columns.
          origin: Name of the table, for messages.
          prompts: Whether prompts will be put together; else new strings are not tokenised, which takes the longest.

        Returns:
          Value ids, and pieces that hold the dataset's values and the new ones, with a limit only where a prompt of
          these rows is cut; without `prompts`, only feature ids and numbers of these.

        Raises:
          InputError: A column is missing or cannot be spelled as text.
        """
        require_columns(table.column_names, self.columns, origin)
        parts: list[np.ndarray] = []
        new: list[list[str]] = []
        rows: list[Callable[[int], str]] = []
        base, fresh = 0, sum(len(strings) for strings in self.values)
        for field, strings in zip(self.schema.fields, self.values, strict=True):
            distinct, codes, _ = fields.spell(column_of(table, field), field, origin)
            used = np.zeros(len(distinct) + 1, bool)  # the last entry serves code -1, here and in `ids`
            used[codes] = True
            found = pc.index_in(pa.array(distinct, pa.string()), value_set=pa.array(strings, pa.string()))
            ids = np.append(base + pc.fill_null(found, -1 - base).to_numpy(), np.int32(-1))
            unseen = np.flatnonzero(used[:-1] & (ids[:-1] < 0))
            ids[unseen] = fresh + np.arange(len(unseen))
            parts.append(ids[codes])
            new.append([distinct[code] for code in unseen])
            rows.append(functools.partial(row_of, codes, unseen, origin))
            base, fresh = base + len(strings), fresh + len(unseen)
        values, pieces = np.concatenate(parts, axis=1), self._extended(new, rows, prompts)
        return values, without_idle_limit(pieces, values, self.schema.widths) if prompts else pieces

    def serving_pieces(self) -> tuple[Pieces, int]:
        """What a program needs to score rows of value ids without this encoder.

        Returns:
          The dataset's pieces, and behind its V values one id a field, V + f, that stands for all values of field f
          that the dataset has not seen: it has the feature id that they have, and is spelled as nothing. And how many
          tokens no prompt of these pieces exceeds.
        """
        schema, known = self.schema, len(self.pieces.feature)
        pieces = self._extended([[""] for _ in schema.fields], ["" for _ in schema.fields], True)
        counts = [len(strings) for strings in self.values]
        field = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.arange(len(counts))])
        assert len(field) == known + len(counts)
        last, inner = longest_values(pieces, field, len(counts))
        template = np.asarray(pieces.length)[len(field) : len(field) + 2 + len(counts)]
        longest = int(template.sum() + last.sum() + (np.asarray(schema.widths) - 1) @ inner)
        if longest <= schema.text.max_length:
            pieces = pieces._replace(limit=pieces.limit[:0])
        return pieces, min(longest, schema.text.max_length)

    def _extended(self, new: list[list[str]], origins: Sequence[str | Callable[[int], str]], prompts: bool) -> Pieces:
        """The pieces with further values between the known ones and the template's."""
        schema, text = self.schema, self.schema.text
        ids = [self.new_ids(*each) for each in zip(schema.fields, new, origins, strict=True)]
        features, numbers = (np.concatenate(arrays) for arrays in zip(*ids, strict=True))
        feature: Any = np.concatenate([self.pieces.feature, features])
        number: Any = np.concatenate([self.pieces.number, numbers])
        if not prompts:
            return self.pieces._replace(feature=feature, number=number)
        spelled = [field.in_prompt for field in schema.fields]
        extra = tokenize_pieces(
            self.tokenizer, schema.names, new, features, text.max_length, schema.widths, spelled=spelled
        )
        known, template = len(self.pieces.feature), 2 + len(schema.fields)

        def joined(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            # values, template, then values in the form that another follows
            own, more = ours[:known], theirs[: len(features)]
            inner = ours[known + template :], theirs[len(features) + template :]
            return np.concatenate([own, more, theirs[len(features) : len(features) + template], *inner])

        # The known values' pieces come first in `tokens` too, so the old template's tokens stay behind unused.
        start = joined(np.asarray(self.pieces.start), np.asarray(extra.start) + np.int32(len(self.pieces.tokens)))
        arrays: list[Any] = [
            np.concatenate([self.pieces.tokens, extra.tokens]),
            start,
            joined(np.asarray(self.pieces.length), np.asarray(extra.length)),
            joined(np.asarray(self.pieces.maskable), np.asarray(extra.maskable)),
            feature,
            number,
            extra.limit,
        ]
        return Pieces(*arrays)

    def new_ids(
        self, field: Field, strings: list[str], origin: str | Callable[[int], str]
    ) -> tuple[Int[np.ndarray, " V"], Float[np.ndarray, " V"]]:
        """Feature ids and numbers of strings that the dataset has not seen.

        Args:
          field: Whose they are.
          strings: To be numbered.
          origin: Where they come from, for messages; see `alt_jax.data.fields.parse_numbers`.

        Raises:
          InputError: The field is numeric, and one is no number that models compute with.
        """
        feature, number = np.full(len(strings), field.offset, np.int32), np.zeros(len(strings), np.float32)
        if field.numeric is not None:
            numbers = fields.parse_numbers(strings, field.column, origin)
            number = fields.scaled(field.numeric, numbers, strings, field.column, origin)
            feature = field.offset + fields.bin_of(field.numeric, numbers)
        elif field.kind == "text":
            feature[:] = PAD_ID
        return feature.astype(np.int32), number


def column_of(table: pa.Table, field: Field) -> pa.ChunkedArray:
    """A field's column; nothing, where no tower reads it and rows need not have it."""
    if field.column in table.column_names:
        return table[field.column]
    return pa.chunked_array([pa.nulls(table.num_rows)])


def row_of(codes: Int[np.ndarray, "N S"], chosen: Int[np.ndarray, " V"], origin: str, i: int) -> str:
    """Where the first row is that has the i-th of the chosen codes."""
    return f"data row {int((codes == chosen[i]).any(axis=1).argmax()) + 1} of {origin}"


def encode(dataset: Dataset, table: pa.Table, origin: str = "the table") -> tuple[Int[np.ndarray, "N S"], Pieces]:
    """Value ids of raw rows, and pieces that also hold the strings new to the dataset; see `Encoder.encode`."""
    return Encoder.load(dataset.folder).encode(table, origin)


def copy_encoder(folder: Path, to: Path) -> None:
    """Copies what `Encoder.load` needs, so that an export can score raw rows by itself."""
    to.mkdir(parents=True, exist_ok=True)
    for entry in (SCHEMA, VOCABULARY, PIECES):
        shutil.copyfile(folder / entry, to / entry)
    shutil.copytree(folder / TOKENIZER, to / TOKENIZER, dirs_exist_ok=True)


def vocabulary_hash(names: Sequence[str], offsets: Sequence[int], vocabulary: Vocabulary) -> str:
    """SHA-256 over the values of every field that have a feature id of their own, in the order of value ids."""
    digest = hashlib.sha256()
    for f, (name, offset) in enumerate(zip(names, offsets, strict=True)):
        own = np.flatnonzero((vocabulary.field == f) & (vocabulary.feature > offset))
        hash_strings(digest, [name, *(vocabulary.value[i] for i in own)])
    return digest.hexdigest()


def hash_strings(digest: "hashlib._Hash", strings: Sequence[str]) -> None:
    """Feeds strings in such a way that no two lists of strings give the same bytes."""
    encoded = [string.encode() for string in strings]
    digest.update(np.array([len(encoded), *(len(part) for part in encoded)], "<i8").tobytes())
    digest.update(b"".join(encoded))


def _load_vocabulary(path: Path, schema: Schema) -> Vocabulary:
    vocabulary = Vocabulary.load(path)
    for number, bound in ((vocabulary.field, len(schema.fields)), (vocabulary.feature, schema.num_ids)):
        if number.min(initial=0) < 0 or number.max(initial=0) >= bound:
            raise InputError(f"{path} does not belong to {SCHEMA} beside it; prepare again.")
    return vocabulary


def _load_pieces(path: Path, schema: Schema) -> Pieces:
    try:
        with zipfile.ZipFile(path) as file:
            members = [file.getinfo(f"{name}.npy") for name in Pieces._fields]
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # so that none can be a bomb
                raise zipfile.BadZipFile("its arrays are compressed")
            arrays: list[Any] = [array_of(file.read(member)) for member in members]
            pieces = Pieces(*arrays)
    except (*DAMAGED_ZIP, ValueError, KeyError) as error:
        raise _damaged(path, error) from None
    if any(array.ndim != 1 or array.dtype != dtype for array, dtype in zip(pieces, _PIECE_TYPES, strict=True)):
        raise InputError(f"{path} has arrays of other types than `prepare` writes; prepare again.")
    values = len(pieces.feature)
    count = values + 2 + len(schema.fields) + (values if max(schema.widths) > 1 else 0)
    if not len(pieces.start) == len(pieces.length) == len(pieces.maskable) == count:
        raise InputError(f"{path} does not belong to the fields of {SCHEMA} beside it; prepare again.")
    most = max(pieces.tokens.max(initial=0), pieces.limit[1:].max(initial=0))
    if pieces.feature.max(initial=0) >= schema.num_ids or most >= schema.text.vocab_size:
        raise InputError(f"{path} has ids beyond those of {SCHEMA} beside it; prepare again.")
    # An id belongs to a value or to a bin, or is a field's out-of-vocabulary id: what claims more would only take room.
    bins = sum(2 + (len(f.numeric.edges) if f.numeric else 0) for f in schema.fields)
    if schema.num_ids > FIRST_FIELD_ID + values + bins:
        raise InputError(f"{path} has fewer values than {SCHEMA} beside it has ids; prepare again.")
    if len(pieces.limit) != 3 or pieces.limit[0] != schema.text.max_length:
        raise InputError(f"{path} was made for prompts of another length than {SCHEMA} beside it; prepare again.")
    least = min(int(array.min(initial=0)) for array in pieces if array.dtype == np.int32)
    held = np.minimum(pieces.length, pieces.limit[0])
    if least < 0 or (pieces.start.astype(np.int64) + held > len(pieces.tokens)).any():
        raise InputError(f"{path} has pieces that lie outside its tokens; prepare again.")
    return pieces


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (
        "it does not exist" if isinstance(error, FileNotFoundError) else shortened(str(error).strip().split("\n")[0])
    )
    return InputError(f"{path} cannot be read ({reason}); prepare the dataset again.")
