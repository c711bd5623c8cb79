"""Packing: what comes back is what went in, the bound on its room holds, and a packed tower is the padded one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_families import CONFIGS, FAMILIES_BY_LANE, drawn, rates, with_rates

from alt_jax.models import packing
from alt_jax.models.packing import Wanted, first, lay_out, select
from alt_jax.models.text import text_tower


def random_mask(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    return np.arange(length)[None] < rng.integers(1, length + 1, rows)[:, None]


def slow_places(mask: np.ndarray, groups: int) -> list[list[tuple[int, int]]]:
    """Row and slot of every real token, group by group."""
    size = len(mask) // groups
    return [[(r, s) for r in range(g * size, (g + 1) * size) for s in np.flatnonzero(mask[r])] for g in range(groups)]


# --- layouts ---


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_lie_side_by_side_and_come_back(seed, groups):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, 8, 9)
    x = rng.standard_normal((8, 9, 5)).astype(np.float32)
    expected = slow_places(mask, groups)
    room = max(map(len, expected)) + seed
    layout = lay_out(jnp.asarray(mask), groups, room)
    packed = np.asarray(layout.pack(jnp.asarray(x)))
    ids = np.asarray(layout.pack_ids(jnp.arange(1, 73).reshape(8, 9)))
    assert packed.shape == (groups, room, 5)
    for g, tokens in enumerate(expected):
        np.testing.assert_array_equal(packed[g, : len(tokens)], [x[at] for at in tokens])
        np.testing.assert_array_equal(ids[g, : len(tokens)], [9 * r + s + 1 for r, s in tokens])
        assert not packed[g, len(tokens) :].any()
        assert not ids[g, len(tokens) :].any()
        np.testing.assert_array_equal(layout.number[g, : len(tokens)], [9 * r + s for r, s in tokens])
    np.testing.assert_array_equal(layout.unpack(jnp.asarray(packed)), x * mask[..., None])


@pytest.mark.parametrize("room", [None, 40])
@pytest.mark.parametrize("seed", range(3))
def test_selected_tokens_stand_at_the_front_of_their_rows(seed, room):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, 8, 9)
    where = mask & rng.choice([False, True], mask.shape)
    x = jnp.asarray(rng.standard_normal((8, 9, 5)), jnp.float32)
    layout = lay_out(jnp.asarray(mask), 2, room)
    for slots, most in ((9, None), (9, 25), (int(where.sum(axis=1).max()), None)):
        queries = select(layout, Wanted(jnp.asarray(where), slots, most))
        found = np.asarray(queries.unpack(queries.pick(layout.pack(x))))
        assert found.shape == (8, slots, 5)
        for row in range(8):
            slot = np.flatnonzero(where[row])
            np.testing.assert_array_equal(found[row, : len(slot)], x[row, slot])
            np.testing.assert_array_equal(queries.mask[row], np.arange(slots) < len(slot))
            position = np.broadcast_to(queries.position, (8, slots))
            np.testing.assert_array_equal(position[row, : len(slot)], slot)


@pytest.mark.parametrize("selects", [False, True])
def test_gradients_find_their_way_back(selects):
    """Against the gradients that JAX takes through indices, which adds up what is taken more than once."""
    rng = np.random.default_rng(0)
    mask = random_mask(rng, 6, 7)
    where = mask & rng.choice([False, True], mask.shape)
    x, weights = (jnp.asarray(rng.standard_normal((6, 7, 3)), jnp.float32) for _ in range(2))
    layout = lay_out(jnp.asarray(mask), 2, 21)
    queries = select(layout, Wanted(jnp.asarray(where), 7, 15)) if selects else layout
    rows, slots = np.nonzero(where if selects else mask)
    ranks = np.cumsum(where, axis=1)[rows, slots] - 1 if selects else slots

    def loss(x):
        return jnp.sum(queries.unpack(queries.pick(layout.pack(x))) ** 3 * weights)

    def plain(x):
        return jnp.sum(x[rows, slots] ** 3 * weights[rows, ranks])

    np.testing.assert_allclose(jax.grad(loss)(x), jax.grad(plain)(x), rtol=1e-6)


def test_what_finds_no_room_is_taken_for_padding():
    mask = jnp.ones((2, 4), bool)
    layout = lay_out(mask, 1, 6)
    np.testing.assert_array_equal(layout.mask, [[1, 1, 1, 1], [1, 1, 0, 0]])
    x = jnp.arange(1.0, 9.0).reshape(2, 4, 1)
    np.testing.assert_array_equal(layout.unpack(layout.pack(x)), x * layout.mask[..., None])


# --- the bound ---


@pytest.mark.parametrize("rows", [16, 64, 256])
@pytest.mark.parametrize("shape", ["even", "rarely long"])
def test_room_suffices_and_is_not_wasteful(shape, rows):
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 60, 5000) if shape == "even" else np.where(rng.random(5000) < 0.01, 100, 20)
    room = packing.room(lengths, rows, 100)
    assert rng.choice(lengths, (20_000, rows)).sum(axis=1).max() <= room
    # A normal sum would need 7.4 deviations; a few rows of which one is rarely long need some long ones more.
    assert room < rows * lengths.mean() + 10 * np.sqrt(rows) * lengths.std() + 8 * 80


def test_the_bound_on_a_binomial_is_above_its_quantile():
    """Lengths of 1 and 2 make a binomial, whose tail is known exactly."""
    lengths, rows = np.array([1] * 9 + [2]), 400
    room = packing.room(lengths, rows, 2)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(np.arange(rows, 0, -1) / np.arange(1, rows + 1)))])
    chance = np.exp(log_choose + np.arange(rows + 1) * np.log(0.1) + np.arange(rows, -1, -1) * np.log(0.9))
    tail = np.cumsum(chance[::-1])[::-1]  # of at least so many twos
    assert tail[room - rows + 1] < 1e-12 < tail[room - rows - 20]


def test_room_is_none_where_it_would_not_pay():
    assert packing.room(np.full(100, 8), 64, 8) is None
    assert packing.room(np.full(100, 6), 64, 8) == 400  # 384 and a little, since it trusts no sample
    assert packing.room(np.array([2, 60]), 1, 64) is None  # one row needs its longest, whatever the others are
    assert packing.room(np.array([2, 60]), 4, 60) is None


# --- towers ---


@functools.partial(jax.jit, static_argnames=("tower", "slots", "room"))
def pulled(tower, params, tokens, mask, where, *, slots, room):
    """States of the wanted tokens, and the gradients of a function of them, dropout on."""

    def loss(params):
        wanted = None if slots is None else Wanted(where, slots, None if room is None else where.size // 3)
        states = tower.apply(
            params, tokens, mask, train=True, wanted=wanted, room=room, rngs={"dropout": jax.random.key(0)}
        )
        read = mask if slots is None else jnp.arange(slots)[None, :] < where.sum(axis=1, keepdims=True)
        states = jnp.where(read[..., None], states, 0)
        return jnp.sum(states * jnp.cos(jnp.arange(states.size).reshape(states.shape))), states

    return jax.grad(loss, has_aux=True)(params)


@FAMILIES_BY_LANE
@pytest.mark.parametrize("slots", [None, pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_packed_tower_is_the_padded_one(config, slots):
    """To the bits of dropout, since a token draws by its number and not by its place."""
    rng = np.random.default_rng(0)
    mask = jnp.asarray(random_mask(rng, 6, 12))
    tokens = jnp.asarray(rng.integers(4, config.vocab_size, (6, 12)), jnp.int32)
    even = mask & (jnp.arange(12) % 2 == 0)[None]
    where = first(mask).where if slots != 5 else even & (jnp.cumsum(even, axis=1) <= 5)
    tower, params = text_tower(with_rates(config, **dict.fromkeys(rates(config), 0.3))), drawn(config)
    room = int(mask.sum()) + 3
    grads, states = pulled(tower, params, tokens, mask, where, slots=slots, room=room)
    expected_grads, expected = pulled(tower, params, tokens, mask, where, slots=slots, room=None)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(states, expected, atol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4, rtol=2e-4)


def test_packing_spares_the_padding():
    """FLOPs of the compiled pass, attention aside, follow the room."""
    config, mask = CONFIGS["bert"], jnp.ones((8, 16), bool)
    tower, params = text_tower(config), drawn(config)

    def flops(room):
        apply = jax.jit(lambda params: tower.apply(params, mask.astype(jnp.int32), mask, room=room))
        return apply.lower(params).cost_analysis()["flops"]

    assert flops(64) < 0.65 * flops(None)
