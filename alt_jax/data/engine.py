"""What counts the values of raw rows and writes them: one machine or many, with the same outcome, bit for bit."""

from abc import ABC, abstractmethod
from pathlib import Path

from alt_jax.config import FieldConfig
from alt_jax.data import values
from alt_jax.data.prompt import Pieces
from alt_jax.data.protocols import Split
from alt_jax.data.rows import Part
from alt_jax.data.sources.raw import RawData
from alt_jax.data.values import Tally, Values
from alt_jax.progress import Meter
from alt_jax.schema import FIRST_FIELD_ID

SCRATCH = "scratch"  # a folder within the dataset's, for all that is no part of it


class Engine(ABC):
    """Work on raw rows for `prepare`. An engine says who counts and writes; what comes of the counts is not its own.

    Attributes:
      raw: Raw rows.
      split: Their splits and labels.
      folder: Takes the dataset.
      shard_rows: Rows of a shard.
    """

    def __init__(self, raw: RawData, split: Split, folder: Path, shard_rows: int) -> None:
        """Raises InputError if a sequence cannot be made of the rows."""
        values.check_sequences(raw)
        self.raw, self.split, self.folder, self.shard_rows = raw, split, folder, shard_rows

    def collect(self, min_count: int) -> list[Values]:
        """The values of every field.

        Args:
          min_count: Training rows that a value of a category must have.

        Raises:
          InputError: A field's column cannot be read as its kind, or no value of it is frequent enough.
        """
        found: dict[str, Values] = {}
        offset = FIRST_FIELD_ID
        # Columns are what takes the longest, so progress is told by them.
        with Meter("prepare", len(self.raw.fields), unit="columns") as meter:
            for field in self.raw.fields:
                if field.kind != "sequence":
                    found[field.column] = values.of_column(field, self.tally(field), offset, min_count, self.raw.origin)
                    self.keep(field, found[field.column])
                    offset += found[field.column].size
                    meter.advance(1)
            for field in self.raw.fields:
                if field.kind == "sequence":
                    found[field.column] = self.sequence(field, found[field.of])
                    meter.advance(1)
        return [found[field.column] for field in self.raw.fields]

    @abstractmethod
    def tally(self, field: FieldConfig) -> Tally:
        """Counts the strings of a field that is no sequence.

        Raises:
          InputError: Its column has no plain spelling.
        """

    @abstractmethod
    def keep(self, field: FieldConfig, found: Values) -> None:
        """Hears what came of the tally that it gave last."""

    @abstractmethod
    def sequence(self, field: FieldConfig, item: Values) -> Values:
        """The values of a sequence, given those of its items; asked for after all other fields."""

    @abstractmethod
    def write(self, fields: list[Values], pieces: Pieces) -> dict[str, list[Part]]:
        """Writes the shards of every split.

        Args:
          fields: What `collect` returned.
          pieces: Tells how long a row's prompt is.
        """

    @abstractmethod
    def close(self) -> None:
        """Removes what the engine needed on the way, after an error too."""
