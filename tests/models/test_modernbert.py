import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from text_families import CONFIGS, drawn, initial, prompts, run

from alt_jax.models.modernbert import GLOBAL, LOCAL, rotate
from alt_jax.models.text import read_config, text_tower

CONFIG = CONFIGS["modernbert"]
# The part of answerdotai/ModernBERT-base's config.json that this encoder reads.
BASE = {
    "model_type": "modernbert",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "vocab_size": 50368,
}
OLD_KEYS = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")


def paths_of(config):
    tree = jax.eval_shape(text_tower(config).init, jax.random.key(0), *prompts(config))
    return {"/".join(path) for path in traverse_util.flatten_dict(tree["params"])}


def test_parameters_have_the_names_of_hugging_face():
    assert paths_of(CONFIG) == {
        "embeddings/tok_embeddings/embedding",
        "embeddings/norm/scale",
        "layers/0/attn/Wqkv/kernel",
        "layers/0/attn/Wo/kernel",
        "layers/0/mlp_norm/scale",
        "layers/0/mlp/Wi/kernel",
        "layers/0/mlp/Wo/kernel",
        "layers/1/attn_norm/scale",  # the first layer has none
        "layers/1/attn/Wqkv/kernel",
        "layers/1/attn/Wo/kernel",
        "layers/1/mlp_norm/scale",
        "layers/1/mlp/Wi/kernel",
        "layers/1/mlp/Wo/kernel",
        "final_norm/scale",
    }


@pytest.mark.parametrize(
    ("flag", "owners"),
    [
        ("attention_bias", ("attn/Wqkv", "attn/Wo")),
        ("mlp_bias", ("mlp/Wi", "mlp/Wo")),
        ("norm_bias", ("embeddings/norm", "attn_norm", "mlp_norm", "final_norm")),
    ],
)
def test_biases_where_the_config_has_them(flag, owners):
    added = paths_of(dataclasses.replace(CONFIG, **{flag: True})) - paths_of(CONFIG)
    weights = {path.rsplit("/", 1)[0] for path in paths_of(CONFIG)}
    assert added == {f"{owner}/bias" for owner in weights if owner.endswith(owners)}
    assert added


def test_initialisation_is_cut_off_and_shrinks_with_the_depth():
    config = dataclasses.replace(CONFIG, hidden_size=64, intermediate_size=96, initializer_range=0.05)
    flat = traverse_util.flatten_dict(initial(config)["params"], sep="/")
    # Of a normal distribution that is cut at ±2, the standard deviation is 0.88 of the uncut one's.
    for path, leaf in flat.items():
        if path.endswith("scale"):
            assert (leaf == 1).all()
            continue
        std = 0.05 / math.sqrt(2 * 2) if "/Wo/" in path else 0.05
        assert float(leaf.std()) == pytest.approx(0.88 * std, rel=0.05)
        assert 1.8 * std < float(jnp.abs(leaf).max()) <= 2 * std


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 900), st.integers(0, 900), st.integers(1, 100), st.sampled_from([10.0, 1e4, 16e4]))
def test_rotation_knows_relative_positions_only(query_at, key_at, shift, theta):
    query, key = np.random.default_rng(query_at).standard_normal((2, 8)).astype(np.float32)

    def product(i, j):
        places = jnp.zeros((1, 1024, 1, 8))
        turned = [
            rotate(places.at[0, at, 0].set(vector), jnp.arange(places.shape[1])[None], theta)[0, at, 0]
            for at, vector in ((i, query), (j, key))
        ]
        np.testing.assert_allclose(np.linalg.norm(turned[0]), np.linalg.norm(query), rtol=1e-5)
        return float(jnp.vdot(*turned))

    # Angles are float32, good to 1e-7 of up to 1000 radians.
    assert product(query_at + shift, key_at + shift) == pytest.approx(product(query_at, key_at), abs=2e-3)


def test_rotation_against_complex_numbers():
    heads = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    numbers = heads[..., :4] + 1j * heads[..., 4:]
    turns = np.array([[np.exp(1j * position * 50.0 ** (-2 * i / 8)) for i in range(4)] for position in range(5)])
    expected = numbers * turns[None, :, None]
    turned = rotate(jnp.asarray(heads), jnp.arange(heads.shape[1])[None], 50.0)
    np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], axis=-1), atol=1e-6)


def test_states_know_relative_positions_only():
    # With padding in front, every token stands elsewhere, and nothing changes.
    tokens, mask = prompts(CONFIG)
    params, tower = drawn(CONFIG), text_tower(CONFIG)
    shifted, shifted_mask = (jnp.pad(array, ((0, 0), (5, 0)), constant_values=0) for array in (tokens, mask))
    expected = run(tower, params, tokens, mask)[mask]
    np.testing.assert_allclose(run(tower, params, shifted, shifted_mask)[shifted_mask], expected, atol=1e-5)


def test_order_matters():
    tokens, mask = jnp.arange(4, 12)[None], jnp.ones((1, 8), bool)
    params, tower = drawn(CONFIG), text_tower(CONFIG)
    reverse = run(tower, params, tokens[:, ::-1], mask)[:, ::-1]
    assert jnp.abs(reverse - run(tower, params, tokens, mask)).max() > 0.1


@pytest.mark.parametrize(("kind", "window", "reach"), [(LOCAL, 4, 2), (LOCAL, 5, 2), (LOCAL, 1, 0), (GLOBAL, 4, 7)])
def test_how_far_a_layer_looks(kind, window, reach):
    config = dataclasses.replace(CONFIG, num_hidden_layers=1, layer_types=(kind,), local_attention=window)
    params, tower = drawn(config), text_tower(config)
    tokens, mask = prompts(config)[0][:1], jnp.ones((1, 8), bool)
    for changed in (0, 4):
        after = run(tower, params, tokens.at[0, changed].set(3), mask)
        moved = jnp.abs(after - run(tower, params, tokens, mask)).max(axis=-1)[0] > 0
        np.testing.assert_array_equal(moved, np.abs(np.arange(8) - changed) <= reach)


def test_the_published_config():
    config = read_config(BASE, "x")
    assert config.layer_types == (GLOBAL, LOCAL, LOCAL) * 7 + (GLOBAL,)
    assert (config.global_rope_theta, config.local_rope_theta, config.max_length) == (160000.0, 10000.0, 8192)
    # What is written says the same to transformers 4, which knows the published keys, and to transformers 5.
    written = config.to_hf()
    old_form = {key: value for key, value in BASE.items() if key != "position_embedding_type"}
    assert {key: written[key] for key in old_form} == old_form
    new_form = {key: value for key, value in written.items() if key not in OLD_KEYS}
    assert read_config(new_form, "x") == config


def test_an_order_of_layers_that_is_not_every_nth():
    config = dataclasses.replace(CONFIG, layer_types=(LOCAL, GLOBAL))
    assert "global_attn_every_n_layers" not in config.to_hf()
    assert read_config(config.to_hf(), "x") == config
