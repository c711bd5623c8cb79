import dataclasses

import jax
import numpy as np
from flax import traverse_util
from text_families import CONFIGS, initial, prompts

from alt_jax.models.text import text_tower

CONFIG = CONFIGS["distilbert"]


def test_parameters_have_the_names_of_hugging_face():
    tower = text_tower(dataclasses.replace(CONFIG, num_hidden_layers=2))
    tree = jax.eval_shape(tower.init, jax.random.key(0), *prompts(CONFIG))
    paths = {"/".join(path) for path in traverse_util.flatten_dict(tree["params"])}
    assert {
        "embeddings/position_embeddings/embedding",
        "embeddings/LayerNorm/bias",
        "transformer/layer/0/attention/q_lin/kernel",
        "transformer/layer/0/attention/out_lin/bias",
        "transformer/layer/1/sa_layer_norm/scale",
        "transformer/layer/1/ffn/lin1/kernel",
        "transformer/layer/1/ffn/lin2/bias",
        "transformer/layer/1/output_layer_norm/scale",
    } <= paths
    assert len(paths) == 4 + 2 * 16


def test_sinusoidal_positions_are_where_the_table_starts():
    config = dataclasses.replace(CONFIG, sinusoidal_pos_embds=True)
    table = initial(config)["params"]["embeddings"]["position_embeddings"]["embedding"]
    expected = [
        [
            np.sin(p / 10000 ** (column / 16)) if column % 2 == 0 else np.cos(p / 10000 ** ((column - 1) / 16))
            for column in range(16)
        ]
        for p in range(20)
    ]
    np.testing.assert_allclose(table, expected, atol=1e-6)
    assert np.abs(initial(CONFIG)["params"]["embeddings"]["position_embeddings"]["embedding"] - table).max() > 0.1
