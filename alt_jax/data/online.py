"""Raw rows as value ids, a few at a time: for a service, where `Encoder.encode` would read the vocabulary each time."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from alt_jax.data import fields
from alt_jax.data.dataset import Encoder, column_of, row_of
from alt_jax.data.prompt import FewPieces, Pieces
from alt_jax.data.spelling import Spelled
from alt_jax.data.table_files import require_columns


class OnlineEncoder:
    """Says the same as an `Encoder`, in time and memory that depend on the rows alone.

    It numbers values anew in every call, and gives pieces of these only. For that it keeps a table of all values, some
    200 bytes each.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Makes the table."""
        schema = encoder.schema
        self._encoder, self.schema = encoder, schema
        self._ids: list[dict[str, int]] = []
        base = 0
        for strings in encoder.values:
            self._ids.append(dict(zip(strings, range(base, base + len(strings)), strict=True)))
            base += len(strings)
        self._pieces = FewPieces(
            encoder.tokenizer, encoder.pieces, schema.widths, [field.in_prompt for field in schema.fields]
        )

    def spell(self, table: pa.Table, origin: str) -> list[Spelled]:
        """The columns of raw rows.

        Raises:
          InputError: One is missing or cannot be spelled as text.
        """
        require_columns(table.column_names, self._encoder.columns, origin)
        return [fields.spell(column_of(table, field), field, origin) for field in self.schema.fields]

    def encode(
        self, columns: Sequence[Spelled], origin: str = "the table", *, prompts: bool = True
    ) -> tuple[Int[np.ndarray, "N S"], Pieces]:
        """Value ids of raw rows.

        Args:
          columns: Of every field.
          origin: Name of the table, for messages.
          prompts: Whether prompts will be put together; else new strings are not tokenised.

        Returns:
          Numbers of the values that the rows have, and the pieces of these.

        Raises:
          InputError: A value of a numeric field is no number.
        """
        encoder, fields_ = self._encoder, self.schema.fields
        used = [np.unique(column.codes[column.codes >= 0]) for column in columns]
        strings = [[column.strings[code] for code in chosen] for column, chosen in zip(columns, used, strict=True)]
        known = [
            np.array([ids.get(string, -1) for string in own], np.int64)
            for ids, own in zip(self._ids, strings, strict=True)
        ]
        found = np.concatenate(known)
        is_new = found < 0
        found = found[~is_new]
        # Numbers of the values: those known first, then the new ones, each in the order of fields.
        numbers = np.where(is_new, len(found) + np.cumsum(is_new) - 1, np.cumsum(~is_new) - 1).astype(np.int32)
        parts = []
        for (every, codes, _), chosen, own in zip(
            columns, used, np.split(numbers, np.cumsum([len(chosen) for chosen in used])[:-1]), strict=True
        ):
            number_of = np.full(len(every) + 1, -1, np.int32)  # the last entry serves code -1
            number_of[chosen] = own
            parts.append(number_of[codes])

        new = [
            [string for string, id_ in zip(own, ids, strict=True) if id_ < 0]
            for own, ids in zip(strings, known, strict=True)
        ]
        rows = [
            functools.partial(row_of, column.codes, chosen[ids < 0], origin)
            for column, chosen, ids in zip(columns, used, known, strict=True)
        ]
        made = [encoder.new_ids(*each) for each in zip(fields_, new, rows, strict=True)]
        feature: Any = np.concatenate([np.asarray(encoder.pieces.feature)[found], *(feature for feature, _ in made)])
        number: Any = np.concatenate([np.asarray(encoder.pieces.number)[found], *(number for _, number in made)])
        values = np.concatenate(parts, axis=1)
        if not prompts:
            return values, encoder.pieces._replace(feature=feature, number=number)
        field = np.repeat(np.arange(len(new)), [len(own) for own in new])
        return values, self._pieces(found, [string for own in new for string in own], field, feature, number)
