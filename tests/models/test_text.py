"""What holds for the text towers of every family."""

import dataclasses
import json
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file
from text_families import (
    CONFIGS,
    FAMILIES,
    FAMILIES_BY_LANE,
    GOLDENS,
    KINDS,
    drawn,
    golden_error,
    initial,
    prompts,
    rates,
    run,
    with_rates,
)

from alt_jax.data.batches import batch_at
from alt_jax.errors import InputError
from alt_jax.models.modernbert import GLOBAL
from alt_jax.models.packing import first
from alt_jax.models.text import names, read_config, text_tower

TINY = runpy.run_path(str(GOLDENS / "tiny_towers.py"))
# What a config says beside its fields; ModernBERT's thetas are written twice.
WORDS = ("word_embeddings", "tok_embeddings")
BESIDE = {"architectures", "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}


def tiny_folder(folder, name):
    """The model that a golden was recorded from."""
    config = TINY["CONFIGS"][name]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(TINY["weights"](config), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", TINY["CONFIGS"])
def test_tiny_towers_agree_with_torch(name, tmp_path):
    assert golden_error(tiny_folder(tmp_path, name), name) < 1e-5


def test_every_family_has_a_golden():
    assert {config["model_type"] for config in TINY["CONFIGS"].values()} == set(names())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("modernbert", {"local_attention": 5}),
        ("modernbert", {"local_attention": 8}),
        ("modernbert", {"global_rope_theta": 800.0}),
        ("modernbert_biased", {"local_rope_theta": 21.0}),
        ("distilbert", {"hidden_act": "gelu_new"}),
    ],
)
def test_goldens_see_what_a_config_says(name, changes, tmp_path):
    assert golden_error(tiny_folder(tmp_path, name), name, **changes) > 1e-4


@FAMILIES_BY_LANE
def test_the_states_asked_for_are_those_of_the_whole(config):
    """And so are their gradients, though the last layer computes no others."""
    params, tower = drawn(config), text_tower(config)
    tokens, mask = prompts(config)

    def of(wanted, cut):
        def loss(params):
            states = tower.apply(params, tokens, mask, wanted=wanted)[:, :cut] * mask[:, :cut, None]
            return jnp.sum(states * jnp.cos(jnp.arange(states.size).reshape(states.shape))), states

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    for cut in (1, 3):
        (grads, states), (expected_grads, expected) = of(first(mask, cut), cut), of(None, cut)
        assert states.shape == (len(tokens), cut, config.hidden_size)
        np.testing.assert_allclose(states, expected, atol=5e-6)
        for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-4, rtol=2e-4)

    def flops(wanted):
        apply = jax.jit(lambda p: tower.apply(p, tokens, mask, wanted=wanted))
        return apply.lower(params).cost_analysis()["flops"]

    assert flops(first(mask)) < flops(None) * (1 - 0.5 / config.num_hidden_layers)


@FAMILIES
def test_padding_does_not_change_real_tokens(config):
    params, tower = drawn(config), text_tower(config)
    tokens, mask = prompts(config)
    expected = run(tower, params, tokens, mask)[mask]
    longer, longer_mask = prompts(config, length=15)
    np.testing.assert_allclose(run(tower, params, longer, longer_mask)[longer_mask], expected, atol=5e-6)
    scribbled = jnp.where(mask, tokens, 7)
    np.testing.assert_array_equal(run(tower, params, scribbled, mask)[mask], expected)
    alone = run(tower, params, tokens[2:, :2], mask[2:, :2])[0]
    np.testing.assert_allclose(alone, expected[-2:], atol=5e-6)


@pytest.mark.parametrize(
    ("config", "rate"),
    [(CONFIGS[family], rate) for family in ("bert", "distilbert", "modernbert") for rate in rates(CONFIGS[family])],
)
def test_dropout_only_in_training(config, rate):
    params, batch = drawn(config), prompts(config)
    tower = text_tower(with_rates(config, **{rate: 0.5}))

    def states(**keys):
        return run(tower, params, *batch, **keys)

    trained = states(train=True, key=jax.random.key(1))
    assert jnp.abs(trained - states()).max() > 1e-2
    np.testing.assert_array_equal(trained, states(train=True, key=jax.random.key(1)))
    assert jnp.abs(trained - states(train=True, key=jax.random.key(2))).max() > 1e-2
    np.testing.assert_array_equal(states(key=jax.random.key(1)), states(key=jax.random.key(2)))
    assert jnp.isfinite(trained).all()


@KINDS
def test_without_dropout_rates_training_needs_no_rng_and_changes_nothing(config):
    params, batch = drawn(config), prompts(config)
    tower = text_tower(with_rates(config))
    np.testing.assert_array_equal(run(tower, params, *batch, train=True), run(tower, params, *batch))


@KINDS
def test_the_written_out_attention_is_the_fused_one(config):
    # A rate too small to drop anything takes the written-out path; (1 - rate) rounds to 1 in float32.
    [rate] = [name for name in rates(config) if name.startswith("attention")]
    params, batch = drawn(config), prompts(config)
    tower = text_tower(with_rates(config, **{rate: 1e-12}))
    written_out = run(tower, params, *batch, train=True, key=jax.random.key(1))
    mask = batch[1]  # A padding token may have nothing real within its window; it means nothing either way.
    np.testing.assert_allclose(written_out[mask], run(tower, params, *batch)[mask], atol=5e-6)


@FAMILIES_BY_LANE
def test_bfloat16_is_close(config):
    params, batch = initial(config), prompts(config)
    mask = batch[1]
    half = text_tower(config, dtype=jnp.bfloat16)
    kept = jax.eval_shape(half.init, jax.random.key(0), *batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    states = run(half, params, *batch)
    assert states.dtype == jnp.bfloat16
    # States are layer-normed, so of size 1; bfloat16 carries 8 bits, and a few roundings add up.
    error = jnp.abs(states.astype(jnp.float32) - run(text_tower(config), params, *batch))[mask]
    assert error.max() < 0.1
    assert error.mean() < 0.02


@pytest.mark.parametrize(
    ("family", "dtype", "train"),
    [
        ("bert", jnp.float32, True),
        ("roberta", jnp.float32, False),
        ("bert", jnp.bfloat16, False),
        ("distilbert", jnp.float32, True),
        ("modernbert", jnp.float32, True),
        ("modernbert", jnp.bfloat16, False),
    ],
)
def test_gradients_are_finite_with_fully_padded_rows(family, dtype, train):
    config = CONFIGS[family]
    config = with_rates(config, **dict.fromkeys(rates(config), 0.1))
    tokens, mask = prompts(config)
    tokens, mask = tokens.at[0].set(config.pad_token_id), mask.at[0].set(False)
    tower = text_tower(config, dtype=dtype)

    def loss(params):
        states = run(tower, params, tokens, mask, train=train, key=jax.random.key(1))
        return (states.astype(jnp.float32) ** 2 * jnp.arange(16)[None, None]).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(drawn(config))
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    [words] = [table for name, table in gradients["params"]["embeddings"].items() if name in WORDS]
    assert jnp.abs(words["embedding"]).max() > 0


@FAMILIES
def test_too_long_prompt(config):
    longest = config.max_length
    assert longest == (18 if config.model_type == "roberta" else 20)
    tower, params = text_tower(config), drawn(config)

    def shape(length):
        return jax.eval_shape(tower.apply, params, jnp.full((1, length), 3), jnp.ones((1, length), bool)).shape

    assert shape(longest) == (1, longest, 16)
    with pytest.raises(InputError, match=f"{longest + 1} tokens .* {longest};"):
        shape(longest + 1)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=family, marks=[] if family == "bert" else [pytest.mark.slow])
        for family, config in CONFIGS.items()
    ],
)
def test_pretraining_through_the_whole_model(config, make_pretrain, plain_config, tiny_dataset):
    """Updates on one batch with the same masks: the loss is finite, falls at once and goes on to."""
    schema = tiny_dataset.schema
    config = dataclasses.replace(
        with_rates(config), vocab_size=schema.text.vocab_size, max_position_embeddings=72, initializer_range=0.02
    )
    task = make_pretrain(plain_config)
    task = dataclasses.replace(task, model=task.model.clone(encoder=config))
    pieces = jax.tree.map(jnp.asarray, tiny_dataset.pieces)
    batch = jax.tree.map(jnp.asarray, batch_at(tiny_dataset.train, seed=0, step=0, batch_size=16))
    optimizer = optax.adam(1e-3)

    @jax.jit
    def update(params, state):
        (loss, _), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, pieces, batch, jax.random.key(1))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    params = task.init(jax.random.key(0))
    assert params["text"].keys() == drawn(config)["params"].keys()
    state, losses = optimizer.init(params), []
    for _ in range(25):
        params, state, loss = update(params, state)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[1] < losses[0]
    assert losses[-1] < 0.8 * losses[0], losses


# --- configurations ---


@FAMILIES
def test_config_round_trip(config):
    assert read_config(json.loads(json.dumps(config.to_hf())), "x") == config


@FAMILIES
def test_config_defaults_are_those_of_transformers(config):
    from transformers import AutoConfig

    sizes = {key: value for key, value in config.to_hf().items() if key in required(config)} | {"vocab_size": 60000}
    theirs = AutoConfig.for_model(config.model_type, **sizes)
    ours = read_config({"model_type": config.model_type} | sizes, "x").to_hf()
    compared = ours.keys() - BESIDE
    assert {key: getattr(theirs, key) for key in compared} == {key: ours[key] for key in compared}


def required(config):
    """Keys that a family's file must have."""
    return [
        config.keys.get(field.name, field.name)
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING and field.name != "layer_types"  # follows from other keys
    ]


@pytest.mark.parametrize(
    ("config", "key"), [(config, key) for config in CONFIGS.values() for key in required(config)], ids=str
)
def test_config_missing_key(config, key):
    values = config.to_hf()
    del values[key]
    with pytest.raises(InputError, match=f"^here: the key '{key}' is missing; .* of {config.model_type}\\?$"):
        read_config(values, "here")


ANY = [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
    ({"model_type": None}, "model_type None is not supported"),
    ({"model_type": ["bert"]}, "is not supported"),
    ({"is_decoder": True}, "is_decoder is true"),
    ({"add_cross_attention": True}, "add_cross_attention is true"),
    ({"vocab_size": "many"}, "vocab_size is 'many'; it must be a whole number"),
    ({"pad_token_id": None}, "pad_token_id is None"),
    ({"pad_token_id": 50}, "pad_token_id 50 is outside vocab_size 50"),
    ({"initializer_range": -0.1}, "initializer_range is -0.1"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
]
OWN = {
    "bert": [
        ({"hidden_act": "swish"}, "hidden_act 'swish' is not supported"),
        ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']; it must be a name"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"hidden_size": 15}, "hidden_size 15 is not divisible by num_attention_heads 2"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
        ({"attention_probs_dropout_prob": None}, "attention_probs_dropout_prob is None"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
    ],
    "roberta": [({"max_position_embeddings": 1}, "leaves no position")],
    "electra": [
        ({"embedding_size": 0}, "embedding_size is 0; it must be at least 1"),
        ({"embedding_size": None}, "embedding_size is None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
    ],
    "distilbert": [
        ({"activation": "swish"}, "activation 'swish' is not supported"),
        ({"dim": 15}, "dim 15 is not divisible by n_heads 2"),
        ({"n_layers": 0}, "n_layers is 0; it must be at least 1"),
        ({"hidden_dim": "wide"}, "hidden_dim is 'wide'"),
        ({"dropout": 1.5}, "dropout is 1.5; it must be at least 0 and under 1"),
        ({"attention_dropout": -1}, "attention_dropout is -1.0"),
        ({"sinusoidal_pos_embds": 1}, "sinusoidal_pos_embds is 1; it must be true or false"),
    ],
    "modernbert": [
        ({"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported"),
        ({"layer_types": [GLOBAL]}, f"layer_types is ['{GLOBAL}']; it must be"),
        ({"layer_types": [GLOBAL, "linear_attention"]}, "layer_types is ['full_attention', 'linear_attention']"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention'; it must be a list of names"),
        ({"layer_types": [1, 2]}, "layer_types is [1, 2]; it must be a list of names"),
        (
            {"layer_types": None, "global_attn_every_n_layers": 0},
            "global_attn_every_n_layers is 0; it must be a whole number of at least 1",
        ),
        ({"layer_types": None, "global_attn_every_n_layers": "3"}, "global_attn_every_n_layers is '3'"),
        ({"local_attention": 0}, "local_attention is 0; it must be at least 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is not supported"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters is {'rope_theta': 10000.0}; it must have the keys"),
        (
            {"rope_parameters": {GLOBAL: {"rope_type": "yarn"}}},
            "full_attention of rope_parameters is {'rope_type': 'yarn'}",
        ),
        ({"rope_parameters": {GLOBAL: 1e4}}, "full_attention of rope_parameters is 10000.0"),
        ({"rope_parameters": {GLOBAL: {"rope_theta": "x"}}}, "global_rope_theta is 'x'; it must be a number"),
        ({"rope_parameters": None, "local_rope_theta": None}, "local_rope_theta is None; it must be a number"),
        ({"rope_parameters": None, "local_rope_theta": -1.0}, "local_rope_theta is -1.0; it must be above 0"),
        ({"norm_bias": "no"}, "norm_bias is 'no'; it must be true or false"),
        ({"norm_eps": 0}, "norm_eps is 0.0; it must be above 0"),
        ({"mlp_dropout": 1}, "mlp_dropout is 1.0"),
        ({"num_attention_heads": 16}, "an odd width"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
    ],
}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [(config, *case) for family, config in CONFIGS.items() for case in ANY + OWN[family]],
    ids=str,
)
def test_config_errors_name_the_file_and_the_field(config, change, message):
    with pytest.raises(InputError, match=r"^a/config\.json: ") as caught:
        read_config(config.to_hf() | change, "a/config.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_an_unknown_family_is_told_the_known_ones():
    with pytest.raises(InputError, match="bert or roberta or distilbert or electra or modernbert"):
        read_config({"model_type": "gpt2"}, "x")


@pytest.mark.parametrize("family", [pytest.param("bert", marks=pytest.mark.slow), "modernbert"])
def test_layers_that_are_computed_again_are_the_same(family: str) -> None:
    """States and gradients to the last bits, with the same dropout; the backward pass has more to do."""
    config = CONFIGS[family]
    params, (tokens, mask) = drawn(config), prompts(config)
    config = with_rates(config, **dict.fromkeys(rates(config), 0.3))

    def pulled(remat: bool) -> Any:
        tower = text_tower(config, remat=remat)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            states = tower.apply(params, tokens, mask, train=True, rngs={"dropout": jax.random.key(0)})
            return jnp.sum(states * jnp.cos(jnp.arange(states.size).reshape(states.shape))), states

        grad = jax.jit(jax.grad(loss, has_aux=True)).lower(params)
        return grad.compile()(params), grad.cost_analysis()["flops"]

    (kept, flops), (again, more_flops) = pulled(False), pulled(True)
    assert more_flops > 1.15 * flops
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-4)
