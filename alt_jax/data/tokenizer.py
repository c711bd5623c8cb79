"""Tokenizers: loaded from Hugging Face files, or trained on the data; and what identifies one."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from alt_jax.errors import InputError, first_line

if TYPE_CHECKING:
    import transformers

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = ("cls", "sep", "pad", "mask")
_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_ALPHABET = 1000
MOST_IDS = 1 << 20  # with gaps of any size; above it, at most _GAPS ids a token
_GAPS = 4
_UNKNOWN = "a \U0010ffff"
_ALPHANUMERIC = re.compile(r"([a-z0-9]+)(\.?)")  # with the full stop that closes a prompt's value


def _library() -> ModuleType:
    """transformers, imported where a tokenizer is made: it takes a second, and most commands need none.

    Its advice to install PyTorch, which nothing here uses, is not for the users of alt-jax.
    """
    given = os.environ.get(_NO_ADVICE)
    os.environ[_NO_ADVICE] = given or "1"
    try:
        import transformers  # noqa: PLC0415 - see above
    finally:
        if given is None:
            del os.environ[_NO_ADVICE]
        else:
            os.environ[_NO_ADVICE] = given
    return transformers


def load_tokenizer(name_or_folder: str) -> "transformers.PreTrainedTokenizerFast":
    """Loads a Hugging Face tokenizer by hub name or from a folder; code that comes with one is never run.

    Raises:
      InputError: It cannot be had, is not backed by the `tokenizers` library, or lacks a special token.
    """
    library = _library()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
        if isinstance(tokenizer, library.PreTrainedTokenizerFast):
            _check_gaps(tokenizer)
            tokenizer.backend_tokenizer.encode(_UNKNOWN)  # which one that lacks its own unknown token cannot
            _check_unknown(tokenizer.backend_tokenizer)
    except Exception as error:  # tokenizers raises bare Exceptions, the hub half a dozen kinds: all mean the same here
        reason = first_line(error)
        raise InputError(f"No tokenizer can be loaded from {name_or_folder!r}: {reason}.") from error
    if not isinstance(tokenizer, library.PreTrainedTokenizerFast):
        raise InputError(
            f"Tokenizer {name_or_folder!r} has no tokenizer.json form (a fast tokenizer); use one that has."
        )
    missing = [role for role in _ROLES if getattr(tokenizer, f"{role}_token_id") is None]
    if missing:
        raise InputError(
            f"Tokenizer {name_or_folder!r} has no {' or '.join(missing)} token; use that of a BERT, RoBERTa or "
            "ModernBERT model."
        )
    return tokenizer


def vocabulary_size(tokenizer: "transformers.PreTrainedTokenizerFast") -> int:
    """The largest id + 1, hence the embeddings that are needed: ids may have gaps, so there may be fewer tokens."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_ids(tokenizer: "transformers.PreTrainedTokenizerFast", name_or_folder: str) -> None:
    """Compares a tokenizer with the `config.json` of its model, if there is one.

    Raises:
      InputError: An id has no embedding, or a special token has that of another token.
    """
    vocabulary, size = tokenizer.get_vocab(), vocabulary_size(tokenizer)
    own = {getattr(tokenizer, f"{role}_token_id"): getattr(tokenizer, f"{role}_token") for role in _ROLES}
    for token, number in vocabulary.items():  # where ids have gaps, one that is added may get the last one's id
        if token != own.get(number, token):
            raise InputError(
                f"Tokenizer {name_or_folder!r} has the id {number} twice, for {own[number]!r} and {token!r}; number "
                "its tokens anew."
            )
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = _library().utils.cached_file(name_or_folder, "config.json", **options)
    if path is None:
        return
    try:
        rows = json.loads(Path(path).read_bytes()).get("vocab_size")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no model's config ({first_line(error)}).") from None
    if isinstance(rows, int) and size > rows:
        token = next(token for token, number in vocabulary.items() if number == size - 1)
        raise InputError(
            f"The tokenizer of {name_or_folder} has ids up to {size - 1} ({token!r}), but the model has embeddings for "
            f"{rows} tokens; use the tokenizer that it was trained with."
        )


def _check_gaps(tokenizer: "transformers.PreTrainedTokenizerFast") -> None:
    """Raises ValueError if ids have gaps that no table has: to write the tokenizer takes time for each of them."""
    tokens, size = len(tokenizer.get_vocab()), vocabulary_size(tokenizer)
    if size > max(MOST_IDS, _GAPS * tokens):
        raise ValueError(f"it has {tokens:,} tokens, but ids up to {size - 1:,}")


def _check_unknown(backend: Tokenizer) -> None:
    """Raises ValueError if a vocabulary lacks its own unknown token: the first word that needs it would be a crash."""
    model = json.loads(backend.to_str())["model"]
    token, vocabulary = model.get("unk_token"), model.get("vocab")
    if token is not None and isinstance(vocabulary, dict) and token not in vocabulary:
        raise ValueError(f"its vocabulary has no {token!r}, which it has for unknown words")


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, template: str = "."
) -> "transformers.PreTrainedTokenizerFast":
    """Trains a lower-casing BERT WordPiece; the same texts always give the same tokenizer, in whatever order.

    Args:
      texts: What it should spell well.
      vocab_size: Most tokens, if there are no more characters.
      template: What every prompt has: each character of it has a token, however rare it is in the texts.

    The library's trainer alone gives another vocabulary in every process: it numbers continuation characters, and drops
    rare characters of equal count, in the order of a randomly seeded hash map. So both lists are settled here first.
    """
    library = _library()
    bert = library.BertTokenizer(
        vocab={token: i for i, token in enumerate(_SPECIAL)}, do_lower_case=True
    ).backend_tokenizer
    chunks: Counter[str] = Counter()
    for text, repeated in groupby(texts):
        count = sum(1 for _ in repeated)
        # What has a short way takes it, since there may be a million ids: here and below, ASCII as BERT reads it.
        plain = text.isascii() and text.isprintable()
        for chunk in (text.lower() if plain else bert.normalizer.normalize_str(text)).split():
            chunks[chunk] += count
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        found = _ALPHANUMERIC.fullmatch(chunk)
        split = found.groups() if found else [word for word, _ in bert.pre_tokenizer.pre_tokenize_str(chunk)]
        for word in filter(None, split):
            words[word] += count
    always = [word for word, _ in bert.pre_tokenizer.pre_tokenize_str(bert.normalizer.normalize_str(template))]
    for word in always:
        words.setdefault(word, 1)
    needed = set("".join(always))
    seen: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            seen[character] += count
    # A third: every character may need a continuation form too, and the rest is for longer pieces.
    room = max(len(needed), min(_ALPHABET, vocab_size // 3))
    alphabet = sorted(sorted(seen, key=lambda character: (character not in needed, -seen[character], character))[:room])
    continuations = {f"##{character}" for word in words for character in word[1:]}
    continuations &= {f"##{character}" for character in alphabet}

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL, *sorted(continuations)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_repeat(words), trainer)
    return library.BertTokenizer(vocab=backend.get_vocab(), do_lower_case=True)


def tokenizer_fingerprint(tokenizer: "transformers.PreTrainedTokenizerFast") -> str:
    """SHA-256 over the serialised tokenizer without its truncation and padding, which calls set as they please."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _repeat(words: Counter[str]) -> Iterator[str]:
    """Texts in which every word occurs as often as counted, none of them long."""
    for word, count in words.items():
        for done in range(0, count, 1000):
            yield " ".join([word] * min(1000, count - done))
