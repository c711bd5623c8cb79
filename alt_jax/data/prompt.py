r"""Prompts put together on the device from pieces that were tokenised once.

A prompt `"<Field> is <value>. <Field> is <value>. ..."` is a function of the row, so only value ids travel. Each field
contributes two pieces: its prefix `"<Field> is"` (with a leading space unless it comes first) and its value piece
`" <value>."`, space and full stop inside. The composed tokens equal the tokenizer's own for the whole sentence, because
nothing crosses from one piece to the next in the two families that text towers use:

- Every boundary lies between a visible character (the `s` of `is`, or the full stop) and a space.
- BERT's WordPiece: cleaning, accent stripping, lower-casing and the spacing of CJK characters act on each character
  alone (canonical reordering never crosses a space, which is a starter), and white space always ends a word.
- Byte-level BPE: the split pattern goes from left to right and never looks back. Before a boundary, the run of letters
  or of punctuation ends at the space whether or not text follows; behind it, the match depends only on what follows.
  The one look-ahead, `\s+(?!\S)`, sits at the end of a run of white space, and no piece ends in white space.
  `add_prefix_space` adds to a text that does not start with a space: the first prefix, as in the whole sentence.
- Inside a piece everything may interact, and does: a value's last `?` and the full stop are one pre-token (`?.`), and
  white space that opens a value joins the template's space. That is why both belong to the piece.
- Special-token strings in the data (a title `[MASK]`) are plain text here. A tokenizer whose other added tokens hold
  or swallow a space behind a visible character is refused, since those could cross.

Whatever this does not cover (another pre-tokenizer, another template than `[CLS] ... [SEP]`) is refused after comparing
a sample of whole sentences with their pieces.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from alt_jax.errors import InputError

# Values tokenised at a time: enough to keep all cores busy, few enough that the encodings stay small in memory.
_BATCH = 32768
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


def sentence(names: Sequence[str], values: Sequence[str]) -> str:
    """The prompt of one row as text: `"<Field> is <value>."` for every field, joined by spaces."""
    return " ".join(f"{name} is {value}." for name, value in zip(names, values, strict=True))


def tokenize_pieces(
    tokenizer: PreTrainedTokenizerFast,
    names: Sequence[str],
    values: Sequence[Sequence[str]],
    features: Int[np.ndarray, " V"],
    max_tokens: Sequence[int] | None,
    max_length: int,
) -> tuple[Pieces, tuple[int, ...]]:
    """Tokenises every value, prefix and special token once.

    A value piece over its field's cap keeps its first `cap - 1` tokens and the closing full stop, so no field is lost.

    Args:
      tokenizer: Has cls and sep tokens.
      names: Field names in prompt order.
      values: Distinct strings of each field; value ids number them field after field.
      features: Feature id of every value id.
      max_tokens: Cap of each field, closing full stop included; None chooses them: spare room is shared out evenly,
        missing room is taken from the longest fields.
      max_length: No prompt of these pieces is longer, special tokens included.

    Returns:
      The pieces as int32 NumPy arrays, and the caps.

    Raises:
      InputError: `max_length` leaves a field less than two tokens or is exceeded by the given caps, or the tokenizer
        does not split sentences where the pieces meet.
    """
    count = sum(len(strings) for strings in values)
    if len(values) != len(names) or len(features) != count:
        raise ValueError(f"{len(names)} names, {len(values)} fields and {len(features)} features of {count} values")
    prefixes = [f"{' ' if i else ''}{name} is" for i, name in enumerate(names)]
    backend = _plain_text_backend(tokenizer)
    _check_composition(tokenizer, backend, names, prefixes, values)
    backend.post_processor = None  # It would add special tokens, and trim the spaces out of the tokens' offsets.

    value_tokens, length, maskable = _encode_values(backend, list(chain.from_iterable(values)))
    prefix_tokens = [backend.encode(prefix).ids for prefix in prefixes]
    field = np.repeat(np.arange(len(names)), [len(strings) for strings in values])
    longest = np.full(len(names), 2)  # Leaves room for a value and the full stop even where only "" was seen.
    np.maximum.at(longest, field, length)
    room = max_length - 2 - sum(len(tokens) for tokens in prefix_tokens)
    caps = _choose_caps(longest, room, max_length) if max_tokens is None else np.asarray(max_tokens)
    if caps.min() < 2 or caps.sum() > room:
        raise InputError(
            f"Values of up to {caps.tolist()} tokens do not fit prompts of {max_length} tokens, of which the template "
            f"takes {max_length - room}; prepare the data again."
        )

    too_long = length > caps[field]
    kept = np.minimum(length, caps[field])
    start = np.cumsum(length) - length
    offset = np.cumsum(kept) - kept
    tokens = value_tokens[np.arange(kept.sum()) + np.repeat(start - offset, kept)]
    tokens[(offset + kept - 1)[too_long]] = backend.encode("a.").ids[-1]
    maskable = np.where(too_long, np.minimum(maskable, kept - 1), maskable)

    template = [[tokenizer.cls_token_id], [tokenizer.sep_token_id], *prefix_tokens]
    length = np.concatenate([kept, [len(piece) for piece in template]])
    arrays: list[Any] = [
        np.concatenate([tokens, *template]),
        np.cumsum(length) - length,
        length,
        np.concatenate([maskable, np.zeros(len(template))]),
        features,
    ]
    return Pieces(*(array.astype(np.int32) for array in arrays)), tuple(caps.tolist())


def compose(pieces: Pieces, values: Int[Array | np.ndarray, "B F"], *, length: int, pad_id: int) -> Prompt:
    """Puts prompts together: `[CLS] prefix_0 value_0 … prefix_F value_F [SEP]`, then padding.

    Runs inside jit, and as its own twin on NumPy arrays. Each of the 2F + 2 segments shifts all positions from its own
    first one on, so a position's place in `pieces.tokens` is a sum of steps: no search, one gather per token, and
    intermediates of [B, L].

    Args:
      pieces: Of `tokenize_pieces`.
      values: Value ids.
      length: L, at least the longest of these prompts (see `prompt_lengths`).
      pad_id: Fills the rest.
    """
    xp: Any = np if isinstance(pieces.tokens, np.ndarray) and isinstance(values, np.ndarray) else jnp
    rows, fields = values.shape
    segments = _segments(xp, pieces, values)  # [B, 2F + 2]
    lengths = xp.take(pieces.length, segments, mode="clip")
    end = xp.cumsum(lengths, axis=1)
    begin = end - lengths
    shift = xp.take(pieces.start, segments, mode="clip") - begin
    step = xp.diff(shift, axis=1, prepend=0)
    maskable_end = begin + xp.take(pieces.maskable, segments, mode="clip")

    position = xp.arange(length, dtype=np.int32).reshape(1, length)
    index = xp.broadcast_to(position, (rows, length))
    for s in range(2 * fields + 2):
        index = index + xp.where(position >= begin[:, s : s + 1], step[:, s : s + 1], 0)
    field = xp.full((rows, length), -1, dtype=np.int32)
    for f in range(fields):
        s = 2 * f + 2
        inside = (position >= begin[:, s : s + 1]) & (position < maskable_end[:, s : s + 1])
        field = xp.where(inside, np.int32(f), field)
    mask = position < end[:, -1:]
    tokens = xp.where(mask, xp.take(pieces.tokens, index, mode="clip"), np.int32(pad_id))
    return Prompt(tokens, mask, field)


def prompt_lengths(pieces: Pieces, values: Int[Array | np.ndarray, "N F"]) -> Int[Array | np.ndarray, " N"]:
    """Tokens of each row's prompt, special tokens included."""
    xp: Any = np if isinstance(pieces.tokens, np.ndarray) and isinstance(values, np.ndarray) else jnp
    template = pieces.length[pieces.feature.shape[0] :].sum(dtype=np.int32)
    return xp.take(pieces.length, values, mode="clip").sum(axis=1, dtype=np.int32) + template


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


def _segments(xp: Any, pieces: Pieces, values: Int[Array | np.ndarray, "B F"]) -> Any:
    """Piece ids in prompt order: [CLS], then prefix and value of every field, [SEP]."""
    rows, fields = values.shape
    cls_piece = pieces.feature.shape[0]
    prefix = xp.broadcast_to(xp.arange(fields, dtype=np.int32).reshape(1, fields) + (cls_piece + 2), (rows, fields))
    body = xp.stack([prefix, values], axis=2).reshape(rows, 2 * fields)
    ends = xp.zeros((rows, 1), dtype=body.dtype) + cls_piece
    return xp.concatenate([ends, body, ends + 1], axis=1)


def _choose_caps(longest: Int[np.ndarray, " F"], room: int, max_length: int) -> Int[np.ndarray, " F"]:
    """Shares spare room evenly; where room is missing, lowers the longest caps to the highest level that fits."""
    missing = 2 * len(longest) - room
    if missing > 0:
        raise InputError(
            f"A prompt of {len(longest)} fields needs at least {max_length + missing} tokens; text.max_length is "
            f"{max_length}."
        )
    spare = room - longest.sum()
    if spare >= 0:
        return longest + spare // len(longest)
    levels = np.arange(2, longest.max() + 1)
    fits = np.minimum(longest[None, :], levels[:, None]).sum(axis=1) <= room
    return np.minimum(longest, levels[fits].max())


def _plain_text_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A private copy that takes special-token strings in the text for plain text, and neither cuts nor pads."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _encode_values(
    backend: Tokenizer, strings: Sequence[str]
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " V"], Int[np.ndarray, " V"]]:
    """Tokens of all value pieces, and for each their number and that of the maskable ones.

    A token is maskable if it spells characters of the value. So is a token of the template's space alone in front of
    such a one (the value then starts with white space), hence the maskable tokens are those up to the last one that
    overlaps the value.
    """
    tokens = [np.zeros(0, np.int32)]
    length: list[int] = []
    maskable: list[int] = []
    for low in range(0, len(strings), _BATCH):
        batch = strings[low : low + _BATCH]
        encodings = backend.encode_batch([f" {string}." for string in batch])
        ids = [encoding.ids for encoding in encodings]
        tokens.append(np.fromiter(chain.from_iterable(ids), np.int32))
        length += map(len, ids)
        for string, encoding in zip(batch, encodings, strict=True):
            offsets, last = encoding.offsets, 1 + len(string)
            kept = len(offsets)
            while kept and not (offsets[kept - 1][0] < last and offsets[kept - 1][1] > 1):
                kept -= 1
            maskable.append(kept)
    return np.concatenate(tokens), np.asarray(length, np.int64), np.asarray(maskable, np.int64)


def _check_composition(
    tokenizer: PreTrainedTokenizerFast,
    backend: Tokenizer,
    names: Sequence[str],
    prefixes: Sequence[str],
    values: Sequence[Sequence[str]],
) -> None:
    """Raises InputError if the tokenizer joins text across pieces, as far as its added tokens and a sample tell."""
    for token in backend.get_added_tokens_decoder().values():
        if not token.special and (token.rstrip or re.search(r"\S\s", token.content)):
            raise InputError(
                f"The tokenizer's added token {token.content!r} can reach beyond a value, so prompts cannot be put "
                "together from tokenised values; remove it or use another text.model."
            )
    rows = [[strings[i * len(strings) // _SAMPLE] if strings else "" for strings in values] for i in range(_SAMPLE)] + [
        [probe] * len(names) for probe in _PROBES
    ]
    for row in rows:
        parts = [piece for prefix, value in zip(prefixes, row, strict=True) for piece in (prefix, f" {value}.")]
        encodings = backend.encode_batch(parts, add_special_tokens=False)
        body = chain.from_iterable(encoding.ids for encoding in encodings)
        whole = backend.encode(sentence(names, row)).ids
        if [tokenizer.cls_token_id, *body, tokenizer.sep_token_id] != whole:
            raise InputError(
                f"The tokenizer does not read {sentence(names, row)!r} as [CLS], its parts split at spaces and [SEP], "
                "so prompts cannot be put together from tokenised values; use that of a BERT or RoBERTa model."
            )
