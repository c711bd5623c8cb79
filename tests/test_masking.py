"""Masks: how many, how even, what goes together, and that static bounds hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_jax import masking
from alt_jax.config import MaskConfig
from alt_jax.data.prompt import compose, mask_fields

choose = jax.jit(masking.choose_fields, static_argnums=(1, 2, 3))


def alone(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple((i,) for i in range(count))


LINKED = ((0,), (1, 4), (2,), (3, 5, 6))  # not in the fields' order, as in a table whose linked columns stand apart


@pytest.mark.parametrize(
    ("units", "rate", "expected"),
    [(8, 0.15, 1), (15, 0.15, 2), (14, 0.15, 2), (13, 0.15, 1), (1, 0.15, 1), (8, 0.5, 4)],
)
def test_number_of_masked_units_is_the_papers(units, rate, expected):
    """n = max(1, ⌊F · rate⌋)."""
    assert masking.num_masked_units(alone(units), rate) == expected


@pytest.mark.parametrize(("units", "rate"), [(alone(8), 0.15), (alone(15), 0.15), (alone(1), 0.5), (LINKED, 0.6)])
def test_every_row_masks_exactly_so_many_units_and_linked_fields_go_together(units, rate):
    chosen = np.asarray(choose(jax.random.key(0), 200, units, rate))
    assert chosen.shape == (200, sum(map(len, units)))
    hit = np.stack([chosen[:, list(unit)].any(axis=1) for unit in units], axis=1)
    whole = np.stack([chosen[:, list(unit)].all(axis=1) for unit in units], axis=1)
    assert (hit == whole).all()
    assert (hit.sum(axis=1) == masking.num_masked_units(units, rate)).all()
    assert chosen.sum(axis=1).max() <= masking.max_masked_fields(units, rate)


def test_most_masked_fields_is_reached_by_some_row():
    assert masking.max_masked_fields(LINKED, 0.6) == 5  # the groups of three and of two
    assert np.asarray(choose(jax.random.key(1), 200, LINKED, 0.6)).sum(axis=1).max() == 5


@pytest.mark.parametrize(("units", "rate"), [(alone(8), 0.15), (alone(6), 0.4), (LINKED, 0.6)])
def test_units_are_drawn_uniformly_and_rows_independently(units, rate):
    rows = 20_000
    chosen = np.asarray(choose(jax.random.key(2), rows, units, rate))
    hit = np.stack([chosen[:, unit[0]] for unit in units], axis=1)
    n, count = masking.num_masked_units(units, rate), len(units)
    share = n / count
    deviation = np.sqrt(share * (1 - share) / rows)
    assert hit.mean(axis=0) == pytest.approx(np.full(count, share), abs=5 * deviation)
    # every pair of units equally often, and neighbouring rows unrelated
    pairs = np.array([(hit[:, i] & hit[:, j]).mean() for i in range(count) for j in range(i)])
    together = share * (n - 1) / max(count - 1, 1)
    assert pairs == pytest.approx(np.full(len(pairs), together), abs=5 * np.sqrt(together / rows) + 1e-12)
    repeated = (hit[1:] & hit[:-1]).mean(axis=0)
    assert repeated == pytest.approx(np.full(count, share**2), abs=6 * deviation)


def test_another_key_is_another_mask_and_the_same_key_the_same():
    one, same, other = (np.asarray(choose(jax.random.key(k), 50, alone(8), 0.15)) for k in (3, 3, 4))
    assert (one == same).all()
    assert (one != other).any(axis=1).mean() > 0.5


def test_units_of_a_schema(tiny_dataset):
    schema = tiny_dataset.schema
    assert masking.mask_units(schema, MaskConfig(unit="field")) == alone(6)
    assert masking.mask_units(schema, MaskConfig(unit="group")) == ((0,), (1,), (2,), (3, 4), (5,))


# --- both sides of a row ---


@pytest.mark.parametrize("unit", ["field", "group"])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_pairing(tiny_dataset, unit, rate):
    schema, keys = tiny_dataset.schema, (jax.random.key(0), jax.random.key(1))
    rows, n = 4000, {}
    for pairing in ("independent", "same", "complementary"):
        config = MaskConfig(rate=rate, unit=unit, pairing=pairing)
        units = masking.mask_units(schema, config)
        text, table = (np.asarray(side) for side in masking.choose_masks(keys, rows, schema, config))
        for side in (text, table):
            hit = np.stack([side[:, list(unit)].any(axis=1) for unit in units], axis=1)
            assert (hit == np.stack([side[:, list(unit)].all(axis=1) for unit in units], axis=1)).all()
            assert (hit.sum(axis=1) == masking.num_masked_units(units, rate)).all()
            share = masking.num_masked_units(units, rate) / len(units)
            assert hit.mean(axis=0) == pytest.approx(np.full(len(units), share), abs=5 * np.sqrt(0.25 / rows))
        n[pairing] = (text & table).any(axis=1).mean()
        if pairing == "same":
            assert (text == table).all()
    assert n["complementary"] == 0
    assert n["same"] == 1
    assert 0 < n["independent"] < 1


def test_paired_masks_leave_the_table_alone_where_a_field_has_no_ids(tiny_dataset):
    fields = tuple(dataclasses.replace(f, kind="text") if f.name == "Title" else f for f in tiny_dataset.schema.fields)
    schema = dataclasses.replace(tiny_dataset.schema, fields=fields)
    keys = (jax.random.key(0), jax.random.key(1))
    for pairing in ("independent", "same", "complementary"):
        config = MaskConfig(rate=0.4, unit="group", pairing=pairing)
        text, table = masking.choose_masks(keys, 500, schema, config)
        assert not np.asarray(table)[:, schema.index("Title")].any()
        assert np.asarray(text)[:, schema.index("Title")].any()
        assert np.asarray(table)[:, schema.index("Item ID")].any()


# --- capacity ---


@given(st.integers(0, 2**32 - 1), st.sampled_from([(alone(7), 0.15), (alone(7), 0.5), (LINKED, 0.3), (LINKED, 0.9)]))
@settings(deadline=None, max_examples=30)
def test_capacity_holds_on_samples_and_is_not_wasteful(seed, drawn):
    (units, rate), batch = drawn, 64
    rng = np.random.default_rng(seed)
    # values of skewed length, some empty
    tokens = np.minimum(rng.geometric(0.3, (500, 7)) - 1, 20).astype(np.int32)
    capacity = masking.token_capacity(tokens, batch, units, rate)
    assert capacity % 8 == 0
    assert 8 <= capacity < batch * tokens.shape[1] * 20
    for draw in range(10):
        rows = tokens[rng.integers(0, len(tokens), batch)]
        chosen = np.asarray(choose(jax.random.key(10 * (seed % 1000) + draw), batch, units, rate))
        assert (rows * chosen).sum() <= capacity


@pytest.mark.parametrize("rows", [4, 16])
def test_capacity_holds_where_a_device_has_few_rows_and_a_value_is_rarely_long(rows):
    """One title of 200 has 30 tokens: eight deviations, as of a normal sum, would not do."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 7, (4000, 5))
    tokens[:20, 0] = 30
    capacity = masking.token_capacity(tokens, rows, alone(5), 0.2)
    drawn = tokens[rng.integers(0, 4000, (100_000, rows)), rng.integers(0, 5, (100_000, rows))].sum(axis=1)
    normal = rows * tokens.mean() + 8 * np.sqrt(rows) * tokens.std()
    assert normal < drawn.max() <= capacity <= rows * 30


def test_capacity_is_never_above_the_true_maximum():
    """With few rows the bound is that every row masks the longest values there are."""
    tokens = np.array([[1, 9], [2, 1]], np.int32)
    assert masking.token_capacity(tokens, 4, alone(2), 0.5) == 40  # 4 rows of 9 tokens, rounded up to 8
    assert masking.token_capacity(np.zeros((3, 2), np.int32), 4, alone(2), 0.5) == 8
    assert masking.token_capacity(np.ones((3, 2), np.int32), 64, alone(2), 0.5) == 64  # no variance: exact


def test_capacity_holds_for_real_batches(tiny_dataset):
    units, rate, rows = tiny_dataset.schema.groups, 0.15, 16
    values = np.asarray(tiny_dataset.train.values)
    capacity = masking.token_capacity(tiny_dataset.pieces.maskable[values], rows, units, rate)
    text = tiny_dataset.schema.text
    for draw in range(10):
        part = values[draw * rows : (draw + 1) * rows]
        prompt = compose(tiny_dataset.pieces, part, length=text.length, pad_id=text.pad_id)
        chosen = np.asarray(choose(jax.random.key(draw), rows, units, rate))
        tokens, hidden = mask_fields(prompt, chosen, text.mask_id)
        # the bound counts what is hidden: every token of every chosen value, and nothing else
        assert hidden.sum() == (tiny_dataset.pieces.maskable[part] * chosen).sum()
        assert (tokens[hidden] == text.mask_id).all()
        assert (tokens[~hidden] == prompt.tokens[~hidden]).all()
        assert 0 < hidden.sum() <= capacity


@pytest.mark.parametrize(("batch", "rate"), [(64, 0.15), (512, 0.15), (512, 0.5)])
def test_capacity_of_rows_holds_and_is_not_wasteful(tiny_dataset, batch, rate):
    """No draw of 200 hides a field in more rows, and little more than the average is reserved."""
    units = masking.mask_units(tiny_dataset.schema, MaskConfig(rate=rate))
    bound = masking.row_capacity(batch, units, rate)
    draw = jax.jit(jax.vmap(lambda key: masking.choose_fields(key, batch, units, rate).sum(axis=0)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))
    assert drawn.max() <= bound <= min(batch, 2 * drawn.mean() + 64)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.15, 0.5]))
@settings(deadline=None, max_examples=30)
def test_capacity_of_single_tokens_holds_and_is_not_wasteful(seed, rate):
    rng, batch = np.random.default_rng(seed), 64
    tokens = np.minimum(rng.geometric(0.3, (500, 7)) - 1, 20).astype(np.int32)
    capacity = masking.single_token_capacity(tokens, batch, rate)
    assert capacity % 8 == 0
    assert capacity <= max(8, batch * tokens.sum(axis=1).max() + 8)
    assert capacity < 4 * batch * rate * tokens.sum(axis=1).mean() + 64
    for _ in range(10):
        rows = tokens[rng.integers(0, len(tokens), batch)].sum(axis=1)
        assert rng.binomial(rows, rate).sum() <= capacity


# --- gathering ---


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(deadline=None, max_examples=30)
def test_gather_positions_is_nonzero(seed, density):
    hidden = np.random.default_rng(seed).random((4, 6)) < density
    expected = np.flatnonzero(hidden)
    for capacity in (8, 24, 32):
        index, weight = masking.gather_positions(jnp.asarray(hidden), capacity)
        kept = min(capacity, len(expected))
        assert index.shape == weight.shape == (capacity,)
        assert np.asarray(weight).tolist() == [1.0] * kept + [0.0] * (capacity - kept)
        assert np.asarray(index)[:kept].tolist() == expected[:kept].tolist()
        assert (np.asarray(index) >= 0).all()
        assert (np.asarray(index) < hidden.size).all()
        # what does not fit can be counted, as the step does for `mlm/dropped`
        assert hidden.sum() - np.asarray(weight).sum() == max(0, len(expected) - capacity)
