"""Raw rows to scores, a few at a time: the same as a dataset's rows have, in programs that are compiled once."""

import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import COLUMNS, FIELDS, every_kind, random_scorer

from alt_jax import scorer as scorers
from alt_jax.config import Config
from alt_jax.data import fields
from alt_jax.data.dataset import Encoder
from alt_jax.data.online import OnlineEncoder
from alt_jax.data.prompt import compose, feature_ids, maskable_tokens, prompt_lengths
from alt_jax.data.sources.raw import as_text
from alt_jax.data.spelling import text_of
from alt_jax.errors import InputError
from alt_jax.evaluate import Probabilities
from alt_jax.scorer import Scorer, predict
from alt_jax.sharding import make_mesh, replicate


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return every_kind(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def rows(config: Config) -> pa.Table:
    """50 rows, known ones and such with new values, lists and nulls."""
    raw = pq.read_table(config.data.raw).slice(0, 50).drop_columns(["label", "time"])
    new = {
        "_user": [None if n % 7 == 0 else n % 12 for n in range(50)],
        "model_age": [None if n % 5 == 0 else n / 3 for n in range(50)],
        "json": [f"A {'very ' * (n % 9)}new film" if n % 2 else "The red house, 0?" for n in range(50)],
        "query": [f"q{n * n}" for n in range(50)],
    }
    for name, values in new.items():
        raw = raw.set_column(raw.column_names.index(name), name, pa.array(values))
    liked = pa.array([[f"i{i}" for i in range(n % 5)] if n % 11 else ["i1", "never seen"] for n in range(50)])
    return raw.append_column("liked", liked)


_string = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["i1", "drama", "The old house, 2?", "3", "[MASK]", ""]
)


@pytest.fixture(scope="module")
def encoders(config: Config) -> tuple[Encoder, OnlineEncoder]:
    encoder = Encoder.load(config.data.dir)
    return encoder, OnlineEncoder(encoder)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(_string, st.none() | st.floats(-1e6, 1e6), st.lists(_string, max_size=4)), min_size=1))
def test_the_online_encoder_says_what_the_encoder_says(encoders, drawn):
    encoder, online = encoders
    strings, numbers, lists = zip(*drawn, strict=True)
    columns = dict.fromkeys(COLUMNS, pa.array(strings, pa.string()))
    columns |= {"model_age": pa.array(numbers, pa.float64()), "the genre": pa.array(lists, pa.list_(pa.string()))}
    table = pa.table({**columns, "liked": pa.array(["|".join(each) for each in lists])})
    values, pieces = encoder.encode(table)
    few, their = online.encode(online.spell(table, "rows"))
    schema = encoder.schema
    lengths = prompt_lengths(pieces, values, schema.widths)
    np.testing.assert_array_equal(prompt_lengths(their, few, schema.widths), lengths)
    np.testing.assert_array_equal(feature_ids(their, few), feature_ids(pieces, values))
    np.testing.assert_array_equal(their.number[few[:, 1]], pieces.number[values[:, 1]])
    np.testing.assert_array_equal(
        maskable_tokens(their, few, schema.widths), maskable_tokens(pieces, values, schema.widths)
    )
    one, two = (
        compose(p, v, length=int(lengths.max()), pad_id=0, widths=schema.widths)
        for p, v in ((pieces, values), (their, few))
    )
    for mine, theirs in zip(two, one, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    without, bare = online.encode(online.spell(table, "rows"), prompts=False)
    np.testing.assert_array_equal(feature_ids(bare, without), feature_ids(pieces, values))
    assert len(their.feature) <= few.size


@given(st.text() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.none())
def test_a_value_is_spelled_as_in_a_column(value):
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
    kind = pa.uint64() if isinstance(value, int) and value >= 2**63 else None
    assert text_of(value) == as_text(pa.array([value], kind), "c", "t").to_pylist()[0]


@pytest.mark.parametrize("field", [field for field in FIELDS if field.kind in ("multi", "category")])
def test_rows_are_spelled_as_columns(field):
    lists = [["a", "b", "a", "d"], [""], ["b"], [], ["x", "a"]]
    if field.kind == "category":
        lists = [[each[0] if each else ""] for each in lists]
    column = pa.array([each[0] for each in lists] if field.kind == "category" else lists)
    expected, found = fields.spell(pa.chunked_array([column]), field, "t"), fields.spell_rows(lists, field)
    for row in range(len(lists)):
        mine, theirs = ([s.strings[c] for c in s.codes[row] if c >= 0] for s in (found, expected))
        assert mine == theirs


@pytest.mark.parametrize("strategy", ["ctr", "plm", "joint"])
def test_scores_are_those_of_a_dataset_whatever_holds_the_rows(config, rows, strategy, monkeypatch):
    scorer = random_scorer(config, strategy)
    values, pieces = scorer.encoder.encode(rows)
    mesh = make_mesh(jax.devices()[:1])
    params = random_scorer(config, strategy)._params
    expected = Probabilities(scorer.task, mesh, pieces)(replicate(mesh, params), values)
    assert np.ptp(expected) > 0.02
    found = scorer.score(rows)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = np.concatenate([scorer.score(rows.slice(n, 1)) for n in range(9)])
    np.testing.assert_allclose(alone, expected[:9], rtol=1e-5)

    class Frame:
        """What Polars and pandas have."""

        def __arrow_c_stream__(self, requested_schema=None):
            return rows.__arrow_c_stream__(requested_schema)

    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    for same in (columns | {"label": [{}] * 50}, rows.to_pylist(), tuple(rows.to_pylist()), Frame()):
        np.testing.assert_array_equal(scorer.score(same), found)
    assert scorer.score(rows.slice(0, 0)).shape == (0,)
    assert scorer.score([]).shape == (0,)
    monkeypatch.setattr(scorers, "_MANY", 0)  # as tables of many rows are scored
    np.testing.assert_allclose(scorer.score(rows), expected, rtol=1e-5)


def test_pandas(config, rows):
    pandas = pytest.importorskip("pandas")
    frame = rows.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    scorer = random_scorer(config, "ctr")
    np.testing.assert_array_equal(scorer.score(frame.sample(frac=1, random_state=0).sort_index()), scorer.score(rows))
    frame["item"] = [1, {"a": 1}] * 25
    with pytest.raises(InputError, match="columns of one kind each"):
        scorer.score(frame)


def test_all_devices_share_the_rows(config, rows):
    one = random_scorer(config, "ctr")
    every = Scorer(one.task, jax.device_get(one._params), one.encoder, jax.local_devices())
    assert every.sizes == (8, 64, 512, 4096)
    np.testing.assert_allclose(every.score(rows), one.score(rows), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["ctr", "joint"])
def test_nothing_is_compiled_after_the_warm_up(config, rows, strategy):
    one = random_scorer(config, strategy)
    scorer = Scorer(one.task, one._params, one.encoder, jax.devices()[:1])
    scorer.warm_up(8)
    programs = scorer.programs(8)
    assert {size for size, _ in programs} == {1, 8}
    assert scorer._program._cache_size() == len(programs) == 2 * len(scorer.lengths)
    for count in (1, 2, 7, 8, 9, 13):
        new = [{**dict.fromkeys(COLUMNS, f"{'new ' * (9 * n)}{count}"), "model_age": n} for n in range(count)]
        assert len(scorer.score(new)) == count
        scorer.score(rows.slice(0, count))
    assert scorer._program._cache_size() == len(programs)


@pytest.mark.parametrize("strategy", ["ctr", "plm"])
def test_batches_hold_every_row_once_and_little_else(config, rows, strategy):
    scorer = random_scorer(config, strategy)
    assert scorer.lengths[-1] >= scorer.encoder.schema.text.max_length or strategy == "ctr"
    for count in (0, 1, 2, 4, 5, 8, 9, 63, 65, 129, 300, 4097):
        table = pa.concat_tables([rows] * -(-count // 50)).slice(0, count) if count else rows.slice(0, 0)
        values, pieces = scorer._online.encode(scorer._online.spell(table, "rows"))
        lengths = prompt_lengths(pieces, values, scorer.encoder.schema.widths)
        batches = list(scorer.batches(values, pieces))
        assert sorted(np.concatenate([[], *(chosen for chosen, _, _ in batches)]).tolist()) == list(range(count))
        for chosen, padded, length in batches:
            assert len(padded) in scorer.sizes
            assert len(padded) <= 2 * len(chosen)
            assert padded[: len(chosen)].tolist() == chosen.tolist()
            assert length in scorer.lengths
            assert strategy == "ctr" or lengths[padded].max() <= length


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["the genre"]), "News has no column 'the genre'; did you mean|there are"),
        (lambda t: t.drop_columns(["liked"]), "News has no column 'liked', which holds the last items"),
        (lambda t: [{**t.to_pylist()[0]}, {"item": "i1"}], "Row 1 of News has no column '_user'; add it"),
        (
            lambda t: [{**t.to_pylist()[0], "item": [1]}, {**t.to_pylist()[0]}],
            "cannot be read as columns of one kind each",
        ),
        (lambda t: [{**t.to_pylist()[0], "model_age": "old"}], "'old', which is not a finite number"),
        (lambda t: [{**t.to_pylist()[0], "item": {"a": 1}}], "holds struct<a: int64>, which has no plain spelling"),
        (lambda t: {**t.to_pydict(), "item": ["i1"]}, "cannot be read as columns of one kind each"),
        (lambda t: [{**t.to_pylist()[0], "item": 2**70}], "cannot be read as columns of one kind each"),
        (lambda t: t.to_pylist()[0], "Column '_user' of News is one value; give a list of dicts"),
        (lambda t: {**t.to_pydict(), "item": 3}, "Column 'item' of News is one value"),
        (lambda t: {**t.to_pydict(), "item": np.ones(len(t), complex)}, "cannot be read as columns of one kind each"),
        (lambda t: 3, "News is a int; give a pyarrow.Table"),
        (lambda t: "rows.csv", "News is a str; give a pyarrow.Table"),
        (lambda t: [t], "News is a list; give a pyarrow.Table"),
    ],
)
def test_what_cannot_be_scored_is_said(config, rows, change, said):
    with pytest.raises(InputError, match=said):
        random_scorer(config, "ctr").score(change(rows), "News")


def test_importing_the_package_imports_no_jax():
    code = (
        "import alt_jax, sys; assert 'jax' not in sys.modules; print(alt_jax.Scorer.__module__, 'jax' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["alt_jax.scorer", "True"]
    import alt_jax

    with pytest.raises(AttributeError, match="no attribute 'Score'"):
        alt_jax.Score  # noqa: B018


def test_what_a_model_does_not_read_may_be_left_out(config, rows, tmp_path, monkeypatch):
    scorer = random_scorer(config, "ctr")
    expected = scorer.score(rows)
    less = rows.drop_columns("json")
    np.testing.assert_array_equal(scorer.score(less), expected)
    np.testing.assert_array_equal(scorer.score(less.append_column("json", pa.array([{}] * len(rows)))), expected)
    with pytest.raises(InputError, match="has no column 'json'"):
        random_scorer(config, "plm").score(less)
    monkeypatch.setattr(Scorer, "load", lambda folder, data: scorer)
    pq.write_table(less, tmp_path / "rows.parquet")
    predict(tmp_path, tmp_path / "rows.parquet", tmp_path / "scores.parquet", keep=["item", "_user"])
    found = pq.read_table(tmp_path / "scores.parquet")
    assert found.column_names == ["item", "_user", "score"]
    assert found["item"].to_pylist() == rows["item"].to_pylist()
    np.testing.assert_array_equal(found["score"], expected)


def test_histories_come_from_a_log(config, rows, tmp_path, monkeypatch):
    """The scores of rows with the column that the log gives them."""
    scorer = random_scorer(config, "ctr")
    monkeypatch.setattr(Scorer, "load", lambda folder, data: scorer)
    new = rows.drop_columns("liked").append_column("time", pa.array([1000] * len(rows)))
    pq.write_table(new, tmp_path / "rows.parquet")
    predict(tmp_path, tmp_path / "rows.parquet", tmp_path / "scores.parquet", history="dataset")
    log = pq.read_table(config.data.raw).to_pylist()
    clicked = sorted((row["time"], n) for n, row in enumerate(log) if row["label"])
    past = {user: [log[n]["item"] for _, n in reversed(clicked) if log[n]["_user"] == user] for user in range(8)}
    liked = [past.get(user, [])[:3] for user in rows["_user"].to_pylist()]
    expected = scorer.score(new.append_column("liked", pa.array(liked, pa.list_(pa.string()))))
    np.testing.assert_array_equal(pq.read_table(tmp_path / "scores.parquet")["score"], expected)


def test_columns_of_several_kinds_are_read_value_by_value(config, rows):
    pandas = pytest.importorskip("pandas")
    scorer = random_scorer(config, "ctr")
    mixed = [1, "i2", 3.0, None, True] * (len(rows) // 5 + 1)
    plain = rows.set_column(
        rows.column_names.index("item"), "item", pa.array(["1", "i2", "3", "", "true"] * 99)[: len(rows)]
    )
    expected = scorer.score(plain)
    values = rows.to_pydict() | {"item": mixed[: len(rows)]}
    dicts = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    for several in (values, pandas.DataFrame(values), dicts):
        np.testing.assert_array_equal(scorer.score(several), expected)
    frame = pandas.concat([rows.to_pandas(), rows.to_pandas()[["item"]]], axis=1)
    with pytest.raises(InputError, match="has more than one column 'item'"):
        scorer.score(frame)
