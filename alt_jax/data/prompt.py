"""Prompts put together on the device from pieces that were tokenised once.

A prompt `"<Field> is <value>. <Field> is <value>. ..."` is a function of the row, so only value ids travel. (Contract;
to be filled in.)
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Int


class Pieces(NamedTuple):
    """Tokens of every piece of every prompt. Value ids come first, then [CLS], [SEP] and one prefix per field.

    Attributes:
      tokens: All pieces' tokens, one after the other.
      start, length: Where each piece lies in `tokens`.
      maskable: How many leading tokens of the piece belong to a field's value (0 for template pieces).
      feature: Feature id of each value id; unseen values have their field's out-of-vocabulary id.
    """

    tokens: Int[Array, " T"]
    start: Int[Array, " P"]
    length: Int[Array, " P"]
    maskable: Int[Array, " P"]
    feature: Int[Array, " V"]


class Prompt(NamedTuple):
    """A batch of prompts: tokens, which of them are real, and the field whose value they spell (-1: template)."""

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    field: Int[Array, "B L"]
