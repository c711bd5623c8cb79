"""Tokenizers: training is deterministic, saving loses nothing, unusable ones are refused in a sentence."""

import json
import os
import subprocess
import sys

import pytest
from modernbert_tokenizer import modernbert_like
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alt_jax.data.tokenizer import check_ids, load_tokenizer, tokenizer_fingerprint, train_wordpiece, vocabulary_size
from alt_jax.errors import InputError

WORDS = ("Amélie", "Ñandú", "猫", "zebra", "quiz", "jazz", "vex", "fjord")
TEXTS = [f"Title is {word}. Age is {i}." for i, word in enumerate(WORDS * 3)]


def test_training_is_the_same_in_every_process_and_order():
    """The library's trainer alone is not: it goes by randomly seeded hash maps."""
    script = (
        "import sys, json; from alt_jax.data.tokenizer import *;"
        "print(tokenizer_fingerprint(train_wordpiece(json.loads(sys.argv[1])[::-1], 120)))"
    )
    command = [sys.executable, "-c", script, json.dumps(TEXTS)]
    other = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert other.stdout.strip() == tokenizer_fingerprint(train_wordpiece(iter(TEXTS), 120))


def test_trained_tokenizer_lowercases_splits_words_and_keeps_its_special_ids():
    tokenizer = train_wordpiece(TEXTS, 120)
    assert len(tokenizer) <= 120
    roles = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (*roles, tokenizer.mask_token_id) == (0, 1, 2, 3, 4)
    assert tokenizer.tokenize("Title is AMÉLIE.")[:2] == ["title", "is"]
    ids = tokenizer("Zebra 猫 is Amelie.").input_ids
    assert ids[0] == 2
    assert ids[-1] == 3
    assert 1 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "zebra 猫 is amelie."
    assert tokenizer.convert_tokens_to_ids(".") != 1


def test_rare_characters_make_way_in_a_small_vocabulary():
    tokenizer = train_wordpiece([*TEXTS, "\u2603"], 60)
    assert len(tokenizer) <= 60
    assert "." in tokenizer.get_vocab()
    assert tokenizer.convert_tokens_to_ids("\u2603") == 1


def test_saved_tokenizer_loads_identically(tmp_path):
    tokenizer = train_wordpiece(TEXTS, 120)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == tokenizer_fingerprint(tokenizer)
    for family in ("bert", "distilbert", "electra"):  # As in an exported text tower's folder.
        (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
        loaded = load_tokenizer(str(tmp_path))
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
        assert loaded("Title is zebra.").input_ids == tokenizer("Title is zebra.").input_ids


def test_saved_modernbert_tokenizer_loads_identically(tmp_path):
    tokenizer = modernbert_like(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "modernbert"}')
    loaded = load_tokenizer(str(tmp_path))
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert loaded("Title is  x.").tokens() == tokenizer("Title is  x.").tokens() != loaded("Title is x.").tokens()


def test_fingerprint_ignores_padding_and_truncation_but_not_the_vocabulary():
    tokenizer = train_wordpiece(TEXTS, 120)
    fingerprint = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a b c d"], padding="max_length", truncation=True, max_length=4, split_special_tokens=True)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_fingerprint(tokenizer) == fingerprint
    assert tokenizer_fingerprint(train_wordpiece(TEXTS, 100)) != fingerprint
    tokenizer.add_tokens(["zebra"])
    assert tokenizer_fingerprint(tokenizer) != fingerprint


def test_missing_and_broken_tokenizers_are_refused(tmp_path):
    with pytest.raises(InputError, match="No tokenizer can be loaded") as missing:
        load_tokenizer(str(tmp_path / "absent"))
    assert "\n" not in str(missing.value)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="No tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))


def test_remote_code_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "custom"}')
    custom = {"auto_map": {"AutoTokenizer": ["custom.Custom", None]}, "tokenizer_class": "Custom"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(custom))
    (tmp_path / "custom.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match="No tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))


def test_tokenizers_without_special_tokens_are_refused(tmp_path):
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no sep or pad or mask token"):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_without_its_unknown_token_is_refused(tmp_path):
    """Also where the character that is tried has a token: the first word that has none would be a crash."""
    vocabulary = {token: n for n, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace("\U0010ffff", "a")
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"its vocabulary has no '\[UNK\]', which it has for unknown words"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("size", [20, 60, 400])
def test_every_character_of_the_template_has_a_token(size):
    """Also of a field that no text has, in a vocabulary that is too small for the characters of the values."""
    template = "Größe_№7 is ., . Café-Übername is . 猫 is . X is ., ."
    values = "".join(map(chr, range(0x400, 0x480)))
    tokenizer = train_wordpiece([*TEXTS, *(f"Title is {a}{b}." for a in values for b in values)], size, template)
    unknown = tokenizer.unk_token_id
    assert unknown not in tokenizer(template).input_ids
    assert all(unknown not in tokenizer(word).input_ids for word in template.split())
    assert (unknown in tokenizer(" ".join(values)).input_ids) == (size < 400)


def test_a_template_that_the_texts_have_changes_nothing():
    template = "Title is . Age is ."
    assert tokenizer_fingerprint(train_wordpiece(TEXTS, 120, template)) == tokenizer_fingerprint(
        train_wordpiece(TEXTS, 120)
    )


def bert_folder(folder, words, vocab_size=None):
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = {"model_type": "bert"} | ({} if vocab_size is None else {"vocab_size": vocab_size})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", ".", "is"]


def test_ids_may_have_gaps_that_embeddings_have_too(tmp_path):
    """A line that is there twice: one token fewer than ids."""
    folder = bert_folder(tmp_path, [*VOCABULARY[:6], *VOCABULARY[5:]], vocab_size=10)
    tokenizer = load_tokenizer(folder)
    assert (len(tokenizer), vocabulary_size(tokenizer)) == (9, 10)
    check_ids(tokenizer, folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert vocabulary_size(saved) == 10
    check_ids(saved, str(tmp_path / "saved"))  # no config beside it


def test_ids_beyond_the_embeddings_are_refused(tmp_path):
    folder = bert_folder(tmp_path, VOCABULARY, vocab_size=9)
    tokenizer = load_tokenizer(folder)
    check_ids(tokenizer, folder)
    tokenizer.add_tokens(["extra"])
    with pytest.raises(InputError, match=r"ids up to 9 \('extra'\), but the model has embeddings for 9 tokens"):
        check_ids(tokenizer, folder)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json is no model's config"):
        check_ids(tokenizer, folder)


def test_special_tokens_with_the_id_of_another_are_refused(tmp_path):
    """An added token gets the number of tokens as its id, which is the last one's where a line was there twice."""
    words = [word for word in VOCABULARY if word != "[MASK]"]
    folder = bert_folder(tmp_path, [*words[:5], *words[4:]], vocab_size=20)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.mask_token_id == tokenizer.get_vocab()["is"]
    with pytest.raises(InputError, match=r"has the id 8 twice, for '\[MASK\]' and 'is'; number"):
        check_ids(tokenizer, folder)


def test_ids_with_impossible_gaps_are_refused(tmp_path):
    """At once: the library would go through all of them to write the tokenizer."""
    train_wordpiece(TEXTS, 60).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["model"]["vocab"]["zzz"] = 2**31 - 8
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"No tokenizer can be loaded .*: it has \d+ tokens, but ids up to 2,147,483,640"
    ):
        load_tokenizer(str(tmp_path))
