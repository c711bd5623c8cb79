r"""Prompts put together on the device from pieces that were tokenised once.

A prompt `"<Field> is <value>. <Field> is <value>. ..."` is a function of the row, so only value ids travel. Each field
contributes two pieces: its prefix `"<Field> is"` (with a leading space unless it comes first) and its value piece
`" <value>."`, space and full stop inside. A field of several values, `"<Field> is a, b, c."`, contributes one piece for
each of its slots, all but the last of the form `" <value>,"`; an absent slot has value id -1. A prompt that is longer
than `text.max_length` loses the ends of its longest values, and no other prompt loses anything (see `_slots`). The
composed tokens equal the tokenizer's own for the whole sentence, because nothing crosses from one piece to the next in
the two families that text towers use:

- Every boundary lies between a visible character (the `s` of `is`, or the full stop) and a space.
- BERT's WordPiece: cleaning, accent stripping, lower-casing and the spacing of CJK characters act on each character
  alone (canonical reordering never crosses a space, which is a starter), and white space always ends a word.
- Byte-level BPE: the split pattern goes from left to right and never looks back. Before a boundary, the run of letters
  or of punctuation ends at the space whether or not text follows; behind it, the match depends only on what follows.
  The one look-ahead, `\s+(?!\S)`, sits at the end of a run of white space, and no piece ends in white space.
  `add_prefix_space` adds to a text that does not start with a space: the first prefix, as in the whole sentence.
- Inside a piece everything may interact, and does: a value's last `?` and the full stop are one pre-token (`?.`), and
  white space that opens a value joins the template's space. That is why both belong to the piece.
- ModernBERT's NFC composes nothing across a space either, which is a starter and part of no composition.
- Special-token strings in the data (a title `[MASK]`) are plain text here. Other added tokens are cut out of the text
  first, from left to right. ModernBERT's runs of two and more spaces cannot cross: no piece ends in white space, so a
  run lies within the piece that it opens or is inside of. A tokenizer is refused for added tokens that hold or swallow
  a space behind a visible character, or that open with one and must not follow a word: those look across.

Whatever this does not cover (another pre-tokenizer, another template than `[CLS] ... [SEP]`) is refused after comparing
a sample of whole sentences with their pieces.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from alt_jax.errors import InputError
from alt_jax.schema import PAD_ID

if TYPE_CHECKING:
    import transformers

# Values tokenised at a time: enough to keep all cores busy, few enough that the encodings stay small in memory.
_BATCH = 32768
# Rows whose lengths are in memory at a time.
_ROWS = 1 << 20
# Sentences compared before a tokenizer is trusted: over so many of the data's values, and over values that strain it.
_SAMPLE = 64
_PROBES = (
    "",
    " ",
    "  a  b ",
    "\na\n",
    "?",
    "...",
    "it's",
    "'s",
    "e\u0301",
    "\u0301",
    "\u732b",
    "[SEP]",
    "<mask>",
    "</s>",
)


class Pieces(NamedTuple):
    """Tokens of every piece of every prompt.

    Value ids come first, then [CLS], [SEP] and one prefix per field; then, if a field has several slots, every value
    once more in the form that another value follows (empty for the values of fields with one slot).

    Attributes:
      tokens: All pieces' tokens, one after the other; of a piece longer than any prompt, as many as a prompt may have.
      start: Where each piece begins in `tokens`.
      length: How many tokens the piece has, those that `tokens` leaves out included.
      maskable: How many leading tokens of the piece belong to a field's value (0 for template pieces).
      feature: Feature id of each value id; unseen values have their field's out-of-vocabulary id.
      number: Number of each value id of a numeric field, standardised; 0 elsewhere.
      limit: Most tokens of a prompt, and the tokens of the full stop and the comma that close a value which is cut.
        Empty where no row in question has a longer prompt, so that programs need not look (C is 3 or 0).
    """

    tokens: Int[Array, " T"]
    start: Int[Array, " P"]
    length: Int[Array, " P"]
    maskable: Int[Array, " P"]
    feature: Int[Array, " V"]
    number: Float[Array, " V"]
    limit: Int[Array, " C"]


class Prompt(NamedTuple):
    """A batch of prompts: tokens, which of them are real, and the field whose value they spell (-1: template)."""

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    field: Int[Array, "B L"]


def sentence(names: Sequence[str], values: Sequence[str | Sequence[str]]) -> str:
    """The prompt of one row as text: `"<Field> is <value>."` for every field, joined by spaces.

    A field of several values has them joined: `"<Field> is a, b."`
    """
    spelled = [value if isinstance(value, str) else ", ".join(value) for value in values]
    return " ".join(f"{name} is {value}." for name, value in zip(names, spelled, strict=True))


def feature_ids(pieces: Pieces, values: Int[Array | np.ndarray, "B S"]) -> Int[Array | np.ndarray, "B S"]:
    """Feature ids of value ids; an absent slot has the padding id."""
    xp: Any = np if isinstance(pieces.feature, np.ndarray) and isinstance(values, np.ndarray) else jnp
    return xp.where(values < 0, np.int32(PAD_ID), xp.take(pieces.feature, values, mode="clip"))


def tokenize_pieces(
    tokenizer: "transformers.PreTrainedTokenizerFast",
    names: Sequence[str],
    values: Sequence[Sequence[str]],
    features: Int[np.ndarray, " V"],
    max_length: int,
    widths: Sequence[int] | None = None,
    numbers: Float[np.ndarray, " V"] | None = None,
    spelled: Sequence[bool] | None = None,
) -> Pieces:
    """Tokenises every value, prefix and special token once.

    Args:
      tokenizer: Has cls and sep tokens.
      names: Field names in prompt order.
      values: Distinct strings of each field; value ids number them field after field.
      features: Feature id of every value id.
      max_length: Most tokens of a prompt, special tokens included.
      widths: Slots of each field; None: one each.
      numbers: Number of every value id, where its field is numeric; None: there are none.
      spelled: Whether each field is in the prompt; the pieces of one that is not are empty. None: all are.

    Returns:
      The pieces as NumPy arrays, with a limit.

    Raises:
      InputError: `max_length` leaves a field less than two tokens, or the tokenizer does not split sentences where the
        pieces meet.
    """
    count = sum(len(strings) for strings in values)
    if len(values) != len(names) or len(features) != count:
        raise ValueError(f"{len(names)} names, {len(values)} fields and {len(features)} features of {count} values")
    slots = np.ones(len(names), np.int64) if widths is None else np.asarray(widths)
    shown = [True] * len(names) if spelled is None else list(spelled)
    own = [i for i, one in enumerate(shown) if one]
    prefixes = {i: f"{' ' if i != own[0] else ''}{names[i]} is" for i in own}
    backend = _plain_text_backend(tokenizer)
    _check_composition(
        tokenizer, backend, [names[i] for i in own], list(prefixes.values()), [values[i] for i in own], slots[own]
    )
    backend.post_processor = None  # It would add special tokens, and trim the spaces out of the tokens' offsets.

    prefix_tokens = [backend.encode(prefixes[i]).ids if i in prefixes else [] for i in range(len(names))]
    least = 2 + sum(len(tokens) for tokens in prefix_tokens) + 2 * len(own)
    if least > max_length:
        raise InputError(
            f"A prompt of {len(own)} fields needs at least {least} tokens, but text.max_length is {max_length}; "
            "raise it, or leave fields out."
        )
    pieces = [np.asarray(piece) for piece in ([tokenizer.cls_token_id], [tokenizer.sep_token_id], *prefix_tokens)]
    template = _Encoded(
        np.concatenate(pieces), np.array([len(piece) for piece in pieces]), np.zeros(len(pieces), np.int64)
    )
    counts = [len(strings) for strings in values]
    last = [strings if one else None for strings, one in zip(values, shown, strict=True)]
    parts = [_encode_fields(backend, last, counts, ".", max_length), template]
    if slots.max(initial=1) > 1:  # a value that is never followed by another has an empty piece for that
        several = [strings if width > 1 else None for strings, width in zip(last, slots, strict=True)]
        parts.append(_encode_fields(backend, several, counts, ",", max_length))
    number = np.zeros(len(features), np.float32) if numbers is None else numbers
    limit = np.array([max_length, *_closing(backend)], np.int32)
    return _joined(parts, features, number, limit)


def longest_values(
    pieces: Pieces, field: Int[np.ndarray, " V"], number: int
) -> tuple[Int[np.ndarray, " F"], Int[np.ndarray, " F"]]:
    """Tokens of the longest value of each field, as the last of its field and as one that another follows.

    Args:
      pieces: As NumPy arrays.
      field: Position of every value's field.
      number: F, of fields.
    """
    length = np.asarray(pieces.length)
    last, inner = np.zeros((2, number), np.int64)
    np.maximum.at(last, field, length[: len(field)])
    if len(length) > len(field) + 2 + number:
        np.maximum.at(inner, field, length[len(field) + 2 + number :])
    return last, inner


def without_idle_limit(pieces: Pieces, values: Int[np.ndarray, "N S"], widths: Sequence[int]) -> Pieces:
    """The pieces, without their limit if no prompt of these rows is longer."""
    for low in range(0, len(values), _ROWS):
        kept, whole = kept_and_whole(pieces, values[low : low + _ROWS], widths)
        if (kept < whole).any():
            return pieces
    return pieces._replace(limit=pieces.limit[:0])


class FewPieces:
    """Pieces of a few values at a time, in time that depends on these and not on how many there are in all."""

    def __init__(
        self,
        tokenizer: "transformers.PreTrainedTokenizerFast",
        pieces: Pieces,
        widths: Sequence[int],
        spelled: Sequence[bool] | None = None,
    ) -> None:
        """Prepares the tokenizer.

        Args:
          tokenizer: That of `pieces`, which `tokenize_pieces` has accepted.
          pieces: Of all known values, as NumPy arrays, with their limit.
          widths: Slots of each field.
          spelled: Whether each field is in the prompt; None: all are.
        """
        self._pieces, self._widths, self._most = pieces, np.asarray(widths), int(pieces.limit[0])
        self._spelled = np.ones(len(widths), bool) if spelled is None else np.asarray(spelled)
        self._backend = _plain_text_backend(tokenizer)
        self._backend.post_processor = None

    def __call__(
        self,
        known: Int[np.ndarray, " K"],
        new: Sequence[str],
        field: Int[np.ndarray, " N"],
        feature: Int[np.ndarray, " V"],
        number: Float[np.ndarray, " V"],
    ) -> Pieces:
        """Pieces of V = K + N values.

        Args:
          known: Value ids of the first K.
          new: Strings of the others, which are tokenised.
          field: Positions of their fields.
          feature: Feature ids of all V.
          number: Standardised numbers of all V, where their field is numeric.
        """
        template = len(self._pieces.feature) + np.arange(2 + len(self._widths))
        shown = self._spelled[field]  # others have an empty piece
        parts = [self._taken(known), self._new(new, shown, "."), self._taken(template)]
        if self._widths.max() > 1:
            followed = self._new(new, shown & (self._widths[field] > 1), ",")
            parts += [self._taken(template[-1] + 1 + known), followed]
        return _joined(parts, feature, number, np.asarray(self._pieces.limit))

    def _new(self, strings: Sequence[str], chosen: Bool[np.ndarray, " N"], mark: str) -> "_Encoded":
        """Pieces of strings; empty ones of those that are not chosen."""
        own = [string for string, one in zip(strings, chosen, strict=True) if one]
        found = _encode_values(self._backend, own, mark, self._most)
        length, maskable = np.zeros((2, len(strings)), np.int64)
        length[chosen], maskable[chosen] = found.length, found.maskable
        return _Encoded(found.tokens, length, maskable)

    def _taken(self, ids: Int[np.ndarray, " K"]) -> "_Encoded":
        start, length = (np.asarray(array)[ids].astype(np.int64) for array in (self._pieces.start, self._pieces.length))
        held = np.minimum(length, self._most)
        shift = np.repeat(start - np.cumsum(held) + held, held)
        tokens = np.asarray(self._pieces.tokens)[np.arange(len(shift)) + shift]
        return _Encoded(tokens, length, np.asarray(self._pieces.maskable)[ids])


def compose(
    pieces: Pieces,
    values: Int[Array | np.ndarray, "B S"],
    *,
    length: int,
    pad_id: int,
    widths: Sequence[int] | None = None,
    fields: Sequence[int] | None = None,
) -> Prompt:
    """Puts prompts together: `[CLS] prefix_0 value_0 … prefix_F value_F [SEP]`, then padding.

    Runs inside jit, and as its own twin on NumPy arrays. Each segment shifts all positions from its own first one on,
    so a position's place in `pieces.tokens` is a sum of steps: no search, one gather per token, and intermediates of
    [B, L].

    Args:
      pieces: Of `tokenize_pieces`.
      values: Value ids; -1 where a field has fewer values than slots.
      length: L, at least the longest of these prompts (see `prompt_lengths`).
      pad_id: Fills the rest.
      widths: Slots of each field; None: one each.
      fields: Positions of the fields to spell out; None: all. The first keeps the space that it has in a whole prompt.
    """
    xp: Any = np if isinstance(pieces.tokens, np.ndarray) and isinstance(values, np.ndarray) else jnp
    rows = values.shape[0]
    widths = (1,) * values.shape[1] if widths is None else widths
    fields = range(len(widths)) if fields is None else fields
    slots = _slots(xp, pieces, values, widths, fields)
    template = pieces.feature.shape[0] + np.arange(2 + len(widths), dtype=np.int32)  # piece ids
    own = pieces.length[template[0] : template[-1] + 1]
    segments = _in_order(xp, xp.asarray(template), slots.form, widths, fields)  # [B, F + S + 2]
    lengths = _in_order(xp, own, slots.kept, widths, fields)
    end = xp.cumsum(lengths, axis=1)
    begin = end - lengths
    shift = xp.take(pieces.start, segments, mode="clip") - begin
    step = xp.diff(shift, axis=1, prepend=0)
    maskable_end = begin + _in_order(xp, xp.zeros_like(own), slots.maskable, widths, fields)

    position = xp.arange(length, dtype=np.int32).reshape(1, length)
    index = xp.broadcast_to(position, (rows, length))
    for s in range(segments.shape[1]):
        index = index + xp.where(position >= begin[:, s : s + 1], step[:, s : s + 1], 0)
    mask = position < end[:, -1:]
    tokens = xp.where(mask, xp.take(pieces.tokens, index, mode="clip"), np.int32(pad_id))
    field = xp.full((rows, length), -1, dtype=np.int32)
    if slots.cut is not None:
        cut = _in_order(xp, xp.zeros_like(own, dtype=bool), slots.cut, widths, fields)
        closed_at = xp.where(cut, end - 1, -1)
        closing = xp.where(segments < template[0], pieces.limit[1], pieces.limit[2])
    s = 1
    for f in fields:
        for _ in range(widths[f]):
            s += 1
            inside = (position >= begin[:, s : s + 1]) & (position < maskable_end[:, s : s + 1])
            field = xp.where(inside, np.int32(f), field)
            if slots.cut is not None:
                tokens = xp.where(position == closed_at[:, s : s + 1], closing[:, s : s + 1], tokens)
        s += 1
    return Prompt(tokens, mask, field)


def prompt_lengths(
    pieces: Pieces, values: Int[Array | np.ndarray, "N S"], widths: Sequence[int] | None = None
) -> Int[Array | np.ndarray, " N"]:
    """Tokens of each row's prompt, special tokens included."""
    return kept_and_whole(pieces, values, widths)[0]


def kept_and_whole(
    pieces: Pieces, values: Int[Array | np.ndarray, "N S"], widths: Sequence[int] | None = None
) -> tuple[Int[Array | np.ndarray, " N"], Int[Array | np.ndarray, " N"]]:
    """Tokens of each row's prompt, special tokens included, and of the same prompt if no value of it were cut."""
    xp: Any = np if isinstance(pieces.tokens, np.ndarray) and isinstance(values, np.ndarray) else jnp
    widths = (1,) * values.shape[1] if widths is None else widths
    first = pieces.feature.shape[0]
    template = pieces.length[first : first + 2 + len(widths)].sum(dtype=np.int32)
    slots = _slots(xp, pieces, values, widths, range(len(widths)))
    kept = slots.kept.sum(axis=1, dtype=np.int32) + template
    return kept, kept if slots.cut is None else slots.whole + template


def maskable_tokens(pieces: Pieces, values: Int[np.ndarray, "N S"], widths: Sequence[int]) -> Int[np.ndarray, "N F"]:
    """Maskable tokens of every field of every row."""
    slots = _slots(np, pieces, values, widths, range(len(widths)))
    return np.add.reduceat(slots.maskable, np.cumsum(widths) - np.asarray(widths), axis=1)


def mask_fields(
    prompt: Prompt, chosen: Bool[Array | np.ndarray, "B F"], mask_id: int
) -> tuple[Int[Array | np.ndarray, "B L"], Bool[Array | np.ndarray, "B L"]]:
    """Hides the values of the chosen fields.

    Returns:
      The tokens with every token of a chosen field's value replaced by `mask_id`, and where that happened.
    """
    xp: Any = np if isinstance(prompt.tokens, np.ndarray) and isinstance(chosen, np.ndarray) else jnp
    where = xp.zeros(prompt.tokens.shape, dtype=bool)
    for f in range(chosen.shape[1]):
        where = where | ((prompt.field == f) & chosen[:, f : f + 1])
    return xp.where(where, np.int32(mask_id), prompt.tokens), where


class _Slots(NamedTuple):
    """What prompts hold of the values in their slots.

    Attributes:
      form: Piece id, the one with a full stop for a field's last value; -1 for none.
      kept: Tokens of it in the prompt, 0 for none.
      maskable: How many of these belong to the value.
      whole: Tokens of a row's pieces if none were cut.
      cut: Which pieces lose tokens; None: none of these rows'.
    """

    form: Int[Array, "B S"]
    kept: Int[Array, "B S"]
    maskable: Int[Array, "B S"]
    whole: Int[Array, " B"]
    cut: Bool[Array, "B S"] | None


def _slots(
    xp: Any, pieces: Pieces, values: Int[Array | np.ndarray, "B S"], widths: Sequence[int], fields: Sequence[int]
) -> _Slots:
    """Shares a prompt's tokens out among its values.

    A prompt that is longer than the limit is cut to it: its longest values all to one length, as large as fits, and the
    tokens that are then left over go to the first of these, one each. A value that is cut ends in its closing mark. No
    field is lost, since two tokens for each of them fit. Where they do not for each value of the lists, the longest
    lists lose their last values first.
    """

    def found(values: Any) -> tuple[Any, Any, Any]:
        form = _forms(xp, pieces, values, widths)
        length, maskable = (
            xp.where(form < 0, 0, xp.take(array, form, mode="clip")) for array in (pieces.length, pieces.maskable)
        )
        return form, length, maskable

    form, length, maskable = found(values)
    field = np.repeat(np.arange(len(widths)), widths)
    spelled = np.isin(field, np.asarray(fields))[None, :]
    whole = xp.where(spelled, length, 0).sum(axis=1, dtype=np.int32)
    if not pieces.limit.shape[0]:
        return _Slots(form, length, maskable, whole, None)
    template = pieces.feature.shape[0] + np.asarray([0, 1, *(2 + f for f in fields)])
    room = pieces.limit[0] - pieces.length[template].sum(dtype=np.int32)
    too_long = (whole > room)[:, None]
    if xp is np and not too_long.any():
        return _Slots(form, length, maskable, whole, None)
    if max(widths) > 1:
        ends = np.cumsum(widths)
        place = np.arange(len(field)) - (ends - widths)[field]  # of each slot in its field
        here = (length > 0) & spelled
        held = xp.stack([here[:, end - width : end].sum(axis=1) for end, width in zip(ends, widths, strict=True)], 1)
        held = xp.where(too_long, _share(xp, held, room // 2), held)
        form, length, maskable = found(xp.where(place[None, :] < held[:, field], values, np.int32(-1)))
    kept = _share(xp, xp.where(spelled, length, 0), room)
    cut = kept < length
    return _Slots(form, kept, xp.where(cut, xp.minimum(maskable, kept - 1), maskable), whole, cut & spelled)


def _share(xp: Any, wanted: Int[Array | np.ndarray, "B n"], room: Any) -> Any:
    """Shares a room out to n: to each what it wants, but at most the level at which all of it fits.

    What is left over goes to the first that want more, one each. With the wishes in rising order, and P_j the sum of
    the first j, level c takes the least of all P_j + (n - j) c. So the largest that fits is the largest of all
    (room - P_j) / (n - j), rounded down.
    """
    rising = xp.sort(wanted, axis=1)
    before = xp.cumsum(rising, axis=1) - rising
    left_of = np.arange(wanted.shape[1], 0, -1, dtype=np.int32)[None, :]
    level = ((room - before) // left_of).max(axis=1, keepdims=True)
    given = xp.minimum(wanted, level)
    more = wanted > level
    spare = room - given.sum(axis=1, keepdims=True)
    return (given + (more & (xp.cumsum(more, axis=1) <= spare))).astype(np.int32)


def _forms(xp: Any, pieces: Pieces, values: Int[Array | np.ndarray, "B S"], widths: Sequence[int]) -> Any:
    """Piece id of every slot: the form with a full stop for a field's last value, that with a comma for the others."""
    if max(widths) == 1:
        return values
    comma = pieces.feature.shape[0] + 2 + len(widths)
    ends = np.cumsum(widths) - 1  # the last slot of each field, behind which nothing of it can follow
    followed = xp.concatenate([values[:, 1:] >= 0, xp.zeros_like(values[:, :1], dtype=bool)], axis=1)
    followed = followed & ~np.isin(np.arange(values.shape[1]), ends)[None, :]
    return xp.where((values >= 0) & followed, values + np.int32(comma), values)


def _in_order(xp: Any, template: Any, slots: Any, widths: Sequence[int], fields: Sequence[int]) -> Any:
    """What the pieces have, in prompt order: [CLS], then prefix and values of every field, [SEP].

    Args:
      xp: NumPy or jax.numpy.
      template: Of [CLS], [SEP] and the fields' prefixes, [2 + F].
      slots: Of the values, [B, S].
      widths: Slots of each field.
      fields: Which of them.
    """
    # One permutation, known when the program is written.
    order = [0]
    for f in fields:
        slot = 2 + len(widths) + sum(widths[:f])
        order += [2 + f, *range(slot, slot + widths[f])]
    template = xp.broadcast_to(template.reshape(1, -1), (slots.shape[0], template.shape[0]))
    return xp.concatenate([template, slots], axis=1)[:, np.asarray([*order, 1])]


def _plain_text_backend(tokenizer: "transformers.PreTrainedTokenizerFast") -> Tokenizer:
    """A private copy that takes special-token strings in the text for plain text, and neither cuts nor pads."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _closing(backend: Tokenizer) -> list[int]:
    """The tokens that end a value that is cut: the full stop, and the comma."""
    return [backend.encode(f"a{mark}").ids[-1] for mark in ".,"]


class _Encoded(NamedTuple):
    """Some pieces, as `Pieces` has them: their first tokens, their lengths, and how many tokens are maskable."""

    tokens: Int[np.ndarray, " T"]
    length: Int[np.ndarray, " P"]
    maskable: Int[np.ndarray, " P"]


def _joined(
    parts: Sequence[_Encoded], feature: np.ndarray, number: Float[np.ndarray, " V"], limit: Int[np.ndarray, " C"]
) -> Pieces:
    tokens, length, maskable = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    held = np.minimum(length, limit[0])
    arrays = (tokens, np.cumsum(held) - held, length, maskable, feature)
    filled: list[Any] = [*(array.astype(np.int32) for array in arrays), number, limit]
    return Pieces(*filled)


def _encode_values(backend: Tokenizer, strings: Sequence[str], mark: str, most: int) -> _Encoded:
    """All value pieces, `" <value>"` and the mark that closes it; of each, `most` tokens.

    A token is maskable if it spells characters of the value. So is a token of the template's space alone in front of
    such a one (the value then starts with white space), hence the maskable tokens are those up to the last one that
    overlaps the value.
    """
    tokens = [np.zeros(0, np.int32)]
    length: list[int] = []
    maskable: list[int] = []
    for low in range(0, len(strings), _BATCH):
        batch = strings[low : low + _BATCH]
        encodings = backend.encode_batch([f" {string}{mark}" for string in batch])
        ids = [encoding.ids for encoding in encodings]
        tokens.append(np.fromiter(chain.from_iterable(own[:most] for own in ids), np.int32))
        length += map(len, ids)
        for string, encoding in zip(batch, encodings, strict=True):
            offsets, last = encoding.offsets, 1 + len(string)
            kept = len(offsets)
            while kept and not (offsets[kept - 1][0] < last and offsets[kept - 1][1] > 1):
                kept -= 1
            maskable.append(min(kept, most))
    return _Encoded(np.concatenate(tokens), np.asarray(length, np.int64), np.asarray(maskable, np.int64))


def _encode_fields(
    backend: Tokenizer, values: Sequence[Sequence[str] | None], counts: Sequence[int], mark: str, most: int
) -> _Encoded:
    """The value pieces of fields; None gives as many empty pieces."""
    empty = np.zeros(0, np.int64)
    parts = [
        _Encoded(empty, np.zeros(count, np.int64), np.zeros(count, np.int64))
        if strings is None
        else _encode_values(backend, strings, mark, most)
        for strings, count in zip(values, counts, strict=True)
    ]
    return _Encoded(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _check_composition(
    tokenizer: "transformers.PreTrainedTokenizerFast",
    backend: Tokenizer,
    names: Sequence[str],
    prefixes: Sequence[str],
    values: Sequence[Sequence[str]],
    slots: Int[np.ndarray, " F"],
) -> None:
    """Raises InputError if the tokenizer joins text across pieces, as far as its added tokens and a sample tell."""
    for token in backend.get_added_tokens_decoder().values():
        looks_back = token.single_word and token.content[:1].isspace()
        if not token.special and (token.rstrip or looks_back or re.search(r"\S\s", token.content)):
            raise InputError(
                f"The tokenizer's added token {token.content!r} can reach beyond a value, so prompts cannot be put "
                "together from tokenised values; remove it or use another text.model."
            )
    rows = [[strings[i * len(strings) // _SAMPLE] if strings else "" for strings in values] for i in range(_SAMPLE)] + [
        [probe] * len(names) for probe in _PROBES
    ]
    for row in rows:
        lists = [[value] * min(int(width), 2) for value, width in zip(row, slots, strict=True)]
        parts = [
            piece
            for prefix, several in zip(prefixes, lists, strict=True)
            for piece in (prefix, *(f" {value}," for value in several[:-1]), f" {several[-1]}.")
        ]
        encodings = backend.encode_batch(parts, add_special_tokens=False)
        body = chain.from_iterable(encoding.ids for encoding in encodings)
        whole = backend.encode(sentence(names, lists)).ids
        if [tokenizer.cls_token_id, *body, tokenizer.sep_token_id] != whole:
            raise InputError(
                f"The tokenizer does not read {sentence(names, lists)!r} as [CLS], its parts split at spaces and "
                "[SEP], so prompts cannot be put together from tokenised values; use that of a BERT, RoBERTa or "
                "ModernBERT model."
            )
