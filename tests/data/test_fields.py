"""Fields of every kind: reading, bins, histories, and the way through prepare, prompt, model and predict."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_rows import fresh

from alt_jax import bridge, scorer
from alt_jax.config import Config, CTRConfig, DataConfig, FieldConfig, TextConfig
from alt_jax.data import fields
from alt_jax.data.batches import Batch, batch_at
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import compose, feature_ids, maskable_tokens, prompt_lengths, sentence
from alt_jax.data.spelling import text_of
from alt_jax.errors import InputError
from alt_jax.models.alt import ALT
from alt_jax.schema import MASK_ID, PAD_ID
from alt_jax.tasks import Finetune

ROWS, USERS, ITEMS = 400, 12, 9
GENRES = ("drama", "comedy", "film noir", "war?", "")
FIELDS = (
    FieldConfig("user", "User"),
    FieldConfig("age", "Age", kind="numeric", bins=4),
    FieldConfig("item", "Item"),
    FieldConfig("title", "Title", kind="text"),
    FieldConfig("genre", "Genre", kind="multi", slots=3),
    FieldConfig("liked", "Liked before", kind="sequence", of="item", spelled="title", slots=3),
)


def table(genre_lists: bool = False) -> pa.Table:
    rng = np.random.default_rng(4)
    user, item = rng.integers(0, USERS, ROWS), rng.integers(0, ITEMS, ROWS)
    genres = [sorted({GENRES[i % 4], GENRES[(i // 2) % 4]}) if i else [] for i in range(ITEMS)]
    lists = [genres[i] for i in item]
    return pa.table(
        {
            "user": [f"u{u}" for u in user],
            "age": pa.array([None if u == 3 else 20.5 + u for u in user]),
            "item": [f"i{i}" for i in item],
            "title": [f"The {['red', 'blue', 'old', 'new'][i % 4]} house, {i}?" for i in item],
            "genre": pa.array(lists, pa.list_(pa.string())) if genre_lists else ["|".join(each) for each in lists],
            "time": rng.integers(0, 150, ROWS),
            "label": (rng.random(ROWS) < 0.5).astype(int),
        }
    )


def config_of(folder: Path, raw: pa.Table, **changes) -> Config:
    pq.write_table(raw, folder / "rows.parquet")
    values = {"protocol": "random", "fields": FIELDS, "user": "user", "item": "item", "timestamp": "time", **changes}
    data = DataConfig(raw=str(folder / "rows.parquet"), dir=str(folder / "prepared"), **values)
    text = TextConfig(vocab_size=300, hidden=16, layers=1, heads=2, intermediate=16, max_length=160)
    return Config(data=data, text=text, ctr=CTRConfig(dim=4, hidden=(8, 4), init_std=0.1))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Dataset, pa.Table]:
    raw = table()
    config = config_of(tmp_path_factory.mktemp("kinds"), raw)
    return config, prepare(config), raw


def slow_history(raw: pa.Table, train: set[int], row: int, slots: int) -> list[int]:
    """Rows of the user's clicks in training strictly before this one, newest first; of ties, the later in the file."""
    user, time, label = (raw[name].to_pylist() for name in ("user", "time", "label"))
    past = [r for r in train if user[r] == user[row] and time[r] < time[row] and label[r] == 1]
    return sorted(past, key=lambda r: (time[r], r), reverse=True)[:slots]


def expected_values(raw: pa.Table, train: set[int], row: int) -> list[list[str]]:
    """A row's values as the prompt spells them, by hand."""
    item, title = raw["item"].to_pylist(), raw["title"].to_pylist()
    age = raw["age"][row].as_py()
    liked = [title[r] for r in slow_history(raw, train, row, 3)] or [""]
    return [
        [raw["user"][row].as_py()],
        ["" if age is None else str(age)],
        [item[row]],
        [title[row]],
        raw["genre"][row].as_py().split("|"),
        liked,
    ]


def test_prompts_spell_lists_and_histories_as_the_tokenizer_does(prepared):
    _, dataset, raw = prepared
    tokenizer = Encoder.load(dataset.folder).tokenizer
    train = set(dataset.train.rows.tolist())
    schema = dataset.schema
    assert schema.widths == (1, 1, 1, 1, 2, 3)
    assert tokenizer.unk_token_id not in tokenizer(sentence(schema.names, [["", ""]] * 6))["input_ids"]
    histories = 0
    for part in (dataset.train, dataset.valid, dataset.test):
        values = np.asarray(part.values[:60])
        length = schema.text.length
        prompt = compose(dataset.pieces, values, length=length, pad_id=schema.text.pad_id, widths=schema.widths)
        for r, row in enumerate(part.rows[:60].tolist()):
            expected = expected_values(raw, train, row)
            histories += expected[-1] != [""]
            text = sentence(schema.names, expected)
            assert prompt.tokens[r][prompt.mask[r]].tolist() == tokenizer(text)["input_ids"], text
        assert prompt_lengths(dataset.pieces, values, schema.widths).tolist() == prompt.mask.sum(axis=1).tolist()
        spelled = [[(prompt.field[r] == f).sum() for f in range(6)] for r in range(len(values))]
        assert maskable_tokens(dataset.pieces, values, schema.widths).tolist() == spelled
    assert histories > 100


def test_the_jitted_prompt_is_the_numpy_twin(prepared):
    _, dataset, _ = prepared
    schema, values = dataset.schema, np.asarray(dataset.test.values)
    options = {"length": schema.text.length, "pad_id": 0, "widths": schema.widths}
    jitted = jax.jit(lambda pieces, values: compose(pieces, values, **options))(dataset.pieces, values)
    for mine, theirs in zip(jitted, compose(dataset.pieces, values, **options), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), theirs)


def test_feature_ids_of_every_kind(prepared):
    _, dataset, raw = prepared
    schema, train = dataset.schema, set(dataset.train.rows.tolist())
    user, age, item, title, _genre, liked = schema.fields
    vocabulary = dataset.vocabulary()
    id_of = {(f, v): i for f, v, i in zip(vocabulary.field, vocabulary.value, vocabulary.feature, strict=True)}
    assert (title.size, liked.offset, liked.size) == (0, item.offset, item.size)
    assert age.numeric is not None
    assert age.size == 2 + len(age.numeric.edges)
    ages = np.array([a for r, a in enumerate(raw["age"].to_pylist()) if r in train and a is not None])
    assert age.numeric.mean == pytest.approx(ages.mean())
    assert age.numeric.edges == pytest.approx(np.quantile(ages, [0.25, 0.5, 0.75]))
    for part in (dataset.train, dataset.test):
        ids = feature_ids(dataset.pieces, np.asarray(part.values))
        numbers = dataset.pieces.number[part.values[:, 1]]
        for r, row in enumerate(part.rows.tolist()):
            a = raw["age"][row].as_py()
            bin_id = age.offset if a is None else age.offset + 1 + sum(edge <= a for edge in age.numeric.edges)
            history = [id_of[2, raw["item"][p].as_py()] for p in slow_history(raw, train, row, 3)]
            genres = [id_of[4, g] for g in raw["genre"][row].as_py().split("|")]
            expected = [id_of[0, raw["user"][row].as_py()], bin_id, id_of[2, raw["item"][row].as_py()], PAD_ID]
            expected += genres + [PAD_ID] * (2 - len(genres)) + history + [PAD_ID] * (3 - len(history))
            assert ids[r].tolist() == expected
            assert numbers[r] == pytest.approx(0.0 if a is None else (a - age.numeric.mean) / age.numeric.std, abs=1e-6)
    assert user.kind == "category"


def test_lists_are_read_alike_from_text_and_from_parquet_lists(prepared, tmp_path):
    _, dataset, _ = prepared
    other = prepare(config_of(tmp_path, table(genre_lists=True)))
    assert other.schema.data_hash == dataset.schema.data_hash


def test_rows_encode_as_prepared_and_new_values_are_kept(prepared):
    _, dataset, raw = prepared
    train = set(dataset.train.rows.tolist())
    items = raw["item"].to_pylist()
    past = [[items[p] for p in slow_history(raw, train, row, 3)] for row in range(ROWS)]
    given_rows = raw.append_column("liked", pa.array(past, pa.list_(pa.string())))
    encoder = Encoder.load(dataset.folder)
    values, pieces = encoder.encode(given_rows)
    for part in (dataset.train, dataset.valid, dataset.test):
        np.testing.assert_array_equal(values[part.rows], part.values)

    new = pa.table(
        {
            "user": ["nobody"],
            "age": ["1e3"],
            "item": ["i1"],
            "title": ["A new (one)"],
            "genre": ["drama|opera"],
            "liked": ["i2|never seen"],
        }
    )
    values, pieces = encoder.encode(new)
    schema = dataset.schema
    _, age, item, _, genre, _ = schema.fields
    ids = feature_ids(pieces, values)[0].tolist()
    known = feature_ids(dataset.pieces, np.asarray(dataset.train.values))
    assert ids[0] == schema.fields[0].offset
    assert ids[1] == age.offset + age.size - 1
    assert ids[3] == PAD_ID
    assert ids[4] in known[:, 4:6]
    assert ids[5] == genre.offset
    assert ids[6] > item.offset
    assert ids[7:] == [item.offset, PAD_ID]
    assert age.numeric is not None
    assert pieces.number[values[0, 1]] == pytest.approx((1000 - age.numeric.mean) / age.numeric.std)
    length = int(prompt_lengths(pieces, values, schema.widths)[0])
    prompt = compose(pieces, values, length=length, pad_id=0, widths=schema.widths)
    titles = dict(zip(items, raw["title"].to_pylist(), strict=True))
    text = sentence(
        schema.names, ["nobody", "1000", "i1", "A new (one)", ["drama", "opera"], [titles["i2"], "never seen"]]
    )
    assert prompt.tokens[0].tolist() == encoder.tokenizer(text)["input_ids"]


def test_what_a_missing_history_should_hold_is_said(prepared, tmp_path, monkeypatch):
    _, dataset, raw = prepared
    encoder = Encoder.load(dataset.folder)
    said = (
        "has no column 'liked', which holds the last items (as in 'item') that the row's user clicked, 3 at most, "
        "newest first, '|' between them, empty for none; there are user, age, "
    )
    with pytest.raises(InputError, match=re.escape(said)):
        encoder.encode(raw)
    pq.write_table(raw, tmp_path / "rows.parquet")
    pyarrow.csv.write_csv(raw, tmp_path / "rows.csv")
    monkeypatch.setattr(
        scorer.Scorer,
        "load",
        lambda folder, data: SimpleNamespace(encoder=encoder, columns=encoder.columns, config=Config()),
    )
    for path in (tmp_path / "rows.parquet", tmp_path / "rows.csv"):
        with pytest.raises(InputError, match=re.escape(f"{path} {said}")):
            scorer.predict(tmp_path, path, tmp_path / "scores.csv")
    with pytest.raises(InputError, match="has no column 'genre'; there are user"):
        encoder.encode(raw.drop_columns(["genre"]))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4), st.booleans()), min_size=1, max_size=40)
)
def test_a_history_is_the_users_past_and_nothing_else(rows):
    user, time, item, eligible = (np.array(column) for column in zip(*rows, strict=True))
    found = fields.history(user, time, item, eligible.astype(bool), 3)
    for r in range(len(rows)):
        past = [p for p in range(len(rows)) if user[p] == user[r] and time[p] < time[r] and eligible[p]]
        past = sorted(past, key=lambda p: (time[p], p), reverse=True)[:3]
        assert found[r].tolist() == [item[p] for p in past] + [-1] * (3 - len(past))


def past_rows(raw: pa.Table, dataset: Dataset, past: str, outcome: str, row: int, slots: int) -> list[int]:
    """The rows of a history by the words of its options, newest first."""
    user, time, label = (raw[name].to_pylist() for name in ("user", "time", "label"))
    allowed = dataset.train.rows.tolist() if past == "train" else range(ROWS)  # also what time_skip5 leaves out
    wanted = {"positive": (1,), "negative": (0,), "any": (0, 1)}[outcome]
    found = [r for r in allowed if user[r] == user[row] and time[r] < time[row] and label[r] in wanted]
    return sorted(found, key=lambda r: (time[r], r), reverse=True)[:slots]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, 2.5]), min_size=1, max_size=60),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_bins_are_numpys_whatever_the_order_and_the_spelling(rows, bins, random):
    numbers, counts = np.unique(np.array(rows), return_counts=True)
    expected = np.unique(np.quantile(rows, np.linspace(0, 1, bins + 1)[1:-1]))
    found = fields.fit_numeric(numbers, counts, bins)
    assert found.edges == tuple(expected.tolist())
    assert found.mean == pytest.approx(np.mean(rows))
    assert found.std == pytest.approx(np.std(rows) or 1.0, abs=1e-6)
    random.shuffle(rows)
    apart = np.array([*rows, np.nan, 7.0])  # every row spelled in another way, one missing, one not in training
    assert fields.fit_numeric(apart, np.array([1] * len(rows) + [5, 0]), bins).edges == found.edges


@pytest.mark.parametrize("protocol", ["time", "random", "time_skip5", "cold_users"])
def test_whose_rows_and_which_a_history_holds(tmp_path, protocol):
    raw = table().append_column("other", pa.array([f"o{n}" for n in range(ROWS)]))  # every row an item of its own
    many = pa.array([f"u{u}" for u in np.random.default_rng(5).integers(0, 40, ROWS)])
    raw = raw.set_column(raw.column_names.index("user"), "user", many)
    outcomes = ("positive", "negative", "any")
    asked = [] if protocol == "random" else [("all", outcome) for outcome in outcomes]  # refused for random splits
    if protocol != "cold_users":
        asked += [("train", "negative"), ("train", "any")]
    histories = [
        FieldConfig(f"{past} {outcome}", kind="sequence", of="other", slots=5, past=past, outcome=outcome)
        for past, outcome in asked
    ]
    text = TextConfig(vocab_size=900, max_length=400)
    fields_ = (FieldConfig("user"), FieldConfig("other"), *histories)
    config = dataclasses.replace(config_of(tmp_path, raw, protocol=protocol, fields=fields_, item="other"), text=text)
    dataset = prepare(config)
    vocabulary, schema = dataset.vocabulary(), dataset.schema
    own = {v: i for f, v, i in zip(vocabulary.field, vocabulary.value, vocabulary.feature, strict=True) if f == 1}
    beyond = 0
    for part in (dataset.train, dataset.valid, dataset.test):
        ids = feature_ids(dataset.pieces, np.asarray(part.values))
        for r, row in enumerate(part.rows.tolist()):
            for field, (past, outcome) in enumerate(asked, start=2):
                rows = past_rows(raw, dataset, past, outcome, row, 5)
                first = schema.slot(f"{past} {outcome}")
                slots = part.values[r, first : first + schema.widths[field]]
                expected = [f"o{p}" for p in rows] or [""]
                assert [vocabulary.value[v] for v in slots if v >= 0] == expected
                assert [i for i in ids[r, first : first + len(slots)] if i != PAD_ID] == [own[f"o{p}"] for p in rows]
                beyond += len(set(rows) - set(dataset.train.rows.tolist()))
    assert beyond == 0 if protocol == "random" else beyond > 50
    assert [(f.past, f.outcome) for f in schema.fields[2:]] == asked
    plain = dataclasses.replace(schema.fields[2], past="all" if protocol == "random" else "train")
    other = dataclasses.replace(schema, fields=(*schema.fields[:2], plain, *schema.fields[3:]))
    assert other.fingerprint != schema.fingerprint  # another input by the same name


@pytest.mark.parametrize("protocol", ["random", "cold_items"])
def test_a_history_of_all_splits_wants_an_order_of_time(tmp_path, protocol):
    """Elsewhere what is held out may be earlier than a training row, and would stand in its history."""
    history = FieldConfig("seen", kind="sequence", of="item", slots=4, past="all")
    fields_ = (FieldConfig("user"), FieldConfig("item"), history)
    with pytest.raises(InputError, match=r"past 'all' of field 'seen' would show training rows what is held out"):
        prepare(config_of(tmp_path, table(), protocol=protocol, fields=fields_, item="item"))


def test_a_history_of_all_splits_never_holds_the_row_itself_or_later_ones(tmp_path):
    """Labels and items of a row and of all that is not earlier may change: its histories do not."""
    raw = table()
    history = FieldConfig("seen", kind="sequence", of="item", slots=4, past="all", outcome="positive")
    fields_ = (FieldConfig("user"), FieldConfig("item"), history)
    time = raw["time"].to_numpy()
    moment = np.quantile(time, 0.9)
    labels = np.where(time >= moment, 1 - raw["label"].to_numpy(), raw["label"].to_numpy())
    changed = raw.set_column(raw.column_names.index("label"), "label", pa.array(labels))

    def histories(table: pa.Table) -> list[list[str]]:
        dataset = prepare(config_of(tmp_path, table, protocol="time", fields=fields_))
        value, slot = dataset.vocabulary().value, dataset.schema.slot("seen")
        parts = [dataset.split(name) for name in ("train", "valid", "test")]
        rows = [row for part in parts for row in part.values[time[part.rows] <= moment, slot:]]
        return [[value[v] for v in row if v >= 0] for row in rows]

    assert histories(raw) == histories(changed)


def test_how_a_history_is_spelled_is_part_of_what_a_checkpoint_needs(tmp_path, prepared):
    """With a given tokenizer nothing else tells two such datasets apart."""
    config, dataset, raw = prepared
    text = dataclasses.replace(config.text, model=str(dataset.folder / "tokenizer"))
    schemas = [
        prepare(dataclasses.replace(config_of(tmp_path, raw, fields=fields_), text=text)).schema
        for fields_ in (FIELDS, (*FIELDS[:-1], dataclasses.replace(FIELDS[-1], spelled="")), FIELDS)
    ]
    assert [(schema.fields[-1].of, schema.fields[-1].spelled) for schema in schemas[:2]] == [
        ("item", "title"),
        ("item", ""),
    ]
    assert schemas[0].vocabulary_hash == schemas[1].vocabulary_hash
    assert schemas[0].fingerprint == schemas[2].fingerprint != schemas[1].fingerprint


# --- the model ---


@pytest.fixture(scope="module")
def batch(prepared) -> Batch:
    return jax.tree.map(jnp.asarray, batch_at(prepared[1].train, seed=0, step=0, batch_size=16))


def model_of(config: Config, dataset: Dataset) -> ALT:
    return ALT(config, dataset.schema, bridge.encoder_config(config.text, dataset.schema))


def test_pooling_by_hand(prepared, batch):
    """Mean over genres, DIN over the history, no text; the linear part alike."""
    config, dataset, _ = prepared
    config = dataclasses.replace(config, ctr=dataclasses.replace(config.ctr, history="din"))
    ids = np.asarray(feature_ids(dataset.pieces, np.asarray(batch.values)))
    model = model_of(config, dataset)
    params = model.init(jax.random.key(0), "ctr", jnp.asarray(ids), None, None, train=False, method="click")["params"]
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    pooled = model.apply({"params": params}, jnp.asarray(ids), method=lambda model, x: model.ctr.embed(x))
    table, unit = (
        np.asarray(params["ctr"]["embedding"]["embedding"]),
        jax.tree.map(np.asarray, params["ctr"]["attention"]),
    )
    for r, row in enumerate(ids):
        e = table[row]
        genres, past = e[4:6][row[4:6] != PAD_ID], e[6:9][row[6:9] != PAD_ID]
        interest = np.zeros(4)
        for item in past:
            x = np.concatenate([item, e[2], item - e[2], item * e[2]])
            hidden = np.maximum(x @ unit["hidden"]["kernel"] + unit["hidden"]["bias"], 0)
            interest += (hidden @ unit["weight"]["kernel"] + unit["weight"]["bias"]) * item
        expected = np.stack([e[0], e[1], e[2], genres.mean(axis=0), interest])
        np.testing.assert_allclose(pooled[r], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "tower"),
    [
        ("softmax", "dcn_mix"),
        pytest.param("nce", "dlrm", marks=pytest.mark.slow),
        pytest.param("softmax", "dlrm", marks=pytest.mark.slow),
        pytest.param("nce", "dcn_mix", marks=pytest.mark.slow),
    ],
)
def test_all_losses_and_strategies_take_every_kind(prepared, batch, make_pretrain, tower, method):
    config, dataset, _ = prepared
    config = dataclasses.replace(
        config,
        ctr=dataclasses.replace(config.ctr, tower=tower, history="din"),
        mtm=dataclasses.replace(config.mtm, method=method),
        mask=dataclasses.replace(config.mask, rate=0.5),
    )
    pieces = jax.tree.map(jnp.asarray, dataset.pieces)
    task = make_pretrain(config, batch_size=16, dataset=dataset)
    named = set()
    for each in (task, Finetune(task.model, "joint")):
        params = fresh(each)
        (loss, metrics), grads = jax.jit(jax.value_and_grad(each.loss, has_aux=True))(
            params, pieces, batch, jax.random.key(1)
        )
        assert np.isfinite(loss)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        named |= set(metrics)
    assert "bce/joint" in named
    found = {name.rpartition("/")[2] for name in named if name.startswith("mtm/") and name.count("/") == 2}
    assert found == {"User", "Age", "Item", "Genre", "Liked before"}  # text has no ids to be found among


def test_a_masked_number_is_not_shown(prepared, batch, make_pretrain, monkeypatch):
    """With every field masked, a tower that takes numbers must not tell rows apart."""
    config, dataset, _ = prepared
    config = dataclasses.replace(config, ctr=dataclasses.replace(config.ctr, tower="dlrm"))
    task = make_pretrain(config, batch_size=16, dataset=dataset)
    seen = []
    apply = ALT.apply

    def spy(self, variables, *args, method=None, **options):
        if method == "represent":
            seen.append(args)
        return apply(self, variables, *args, method=method, **options)

    monkeypatch.setattr(ALT, "apply", spy)
    monkeypatch.setattr(
        "alt_jax.masking.choose_fields", lambda key, rows, units, rate, fields=None: jnp.ones((rows, 6), bool)
    )
    pieces = jax.tree.map(jnp.asarray, dataset.pieces)

    @jax.jit
    def views(params):
        task.loss(params, pieces, batch, jax.random.key(1))
        return seen

    (ids, numbers), (masked_ids, masked_numbers) = views(fresh(task))
    assert (numbers != 0).any()
    assert (masked_numbers == 0).all()
    assert (masked_ids == jnp.where(ids == PAD_ID, PAD_ID, MASK_ID)).all()


# --- what cannot be ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"timestamp": None}, "'liked' is a sequence, which needs data.user and data.timestamp"),
        (
            {"fields": (FieldConfig("user"), FieldConfig("past", kind="sequence", of="itme"), FieldConfig("item"))},
            "did you mean 'item'",
        ),
        (
            {"fields": (*FIELDS[:3], FieldConfig("title", kind="numeric"))},
            "Numeric field 'title' .* is not a finite number",
        ),
        (
            {"fields": (*FIELDS[:3], FieldConfig("p", kind="sequence", of="item", spelled="titel"))},
            "spelled by column 'titel'",
        ),
        ({"timestamp": None}, "protocol 'random' cannot fill it, since .*rows.parquet has no timestamp declared"),
        ({"user": None}, "protocol 'random' cannot fill it, since .*rows.parquet has no user declared"),
        ({"protocol": "cold_users"}, "Protocol 'cold_users' cannot fill field 'liked', a sequence of training rows"),
    ],
)
def test_a_field_that_cannot_be_filled_is_named(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        prepare(config_of(tmp_path, table(), **changes))
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("kind", "option"),
    [("category", {"past": "all"}), ("multi", {"outcome": "any"}), ("text", {"bins": 4}), ("numeric", {"slots": 3})],
)
def test_an_option_of_another_kind_is_refused(kind, option):
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"{name} of field 'x' has no effect on kind '{kind}'; leave it out"):
        FieldConfig("x", kind=kind, **option)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1.260", " 20.0", "", "1e3", "0.10"]),
        pa.array(["1.26", "20", " ", "1000", ".1"]),
        pa.array([1.26, 20.0, None, 1000.0, 0.1]),
        pa.array(np.array([1.26, 20, np.nan, 1000, 0.1], np.float32)),
    ],
)
def test_a_number_has_one_spelling_whatever_holds_it(column):
    """So that a row of a CSV file has the prompt, and the score, of the same row in JSON or Parquet."""
    field = FieldConfig("price", kind="numeric")
    expected = ["1.26", "20", "", "1000", "0.1"]
    strings, codes, _ = fields.spell(pa.chunked_array([column]), field, "t")
    assert [strings[code] for code in codes[:, 0]] == expected
    assert len(set(strings)) == len(strings)
    strings, codes, _ = fields.spell_rows([[text_of(value)] for value in column.to_pylist()], field)
    if column.type != pa.float32():  # which JSON has not
        assert [strings[code] for code in codes[:, 0]] == expected


def test_what_is_no_number_is_still_refused_as_it_was_written():
    strings, *_ = fields.spell(pa.chunked_array([["n/a", "inf", "7"]]), FieldConfig("price", kind="numeric"), "t")
    assert strings[:3] == ["n/a", "inf", "7"]
    with pytest.raises(InputError, match="holds 'n/a', which is not a finite number"):
        fields.parse_numbers(strings, "price", "t")
