"""A small random encoder of each family, made from their tensors' names alone, so that no weights have to be kept.

Shared by the recorder (which gives them to torch) and the tests (which write them to a safetensors file).
"""

import zlib
from typing import Any

import numpy as np

_SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
}
_ROTARY: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "local_attention": 7,
    "pad_token_id": 5,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "pad_token_id": 0, "type_vocab_size": 2, "layer_norm_eps": 1e-12} | _SIZES,
    "roberta": {"model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5} | _SIZES,
    "electra": {"model_type": "electra", "pad_token_id": 0, "type_vocab_size": 2, "embedding_size": 20} | _SIZES,
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 120,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
        "activation": "gelu",
        "pad_token_id": 0,
    },
    # In the form of the published checkpoints. Prompts are longer than the window, which reaches 3 tokens to each side.
    "modernbert": _ROTARY | {"global_attn_every_n_layers": 3, "global_rope_theta": 900.0, "local_rope_theta": 50.0},
    # In the form that transformers 5 writes, with an order of layers that the other one cannot say, and with biases.
    "modernbert_biased": _ROTARY
    | {
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "full_attention",
            "sliding_attention",
        ],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 300.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
    },
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The encoder's tensors in torch's names and layout, written out by hand rather than asked of either library."""
    families = {"distilbert": _distilbert, "modernbert": _modernbert}
    return families.get(config["model_type"], _bert)(config)


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, width: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def _distilbert(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, wide = config["dim"], config["hidden_dim"]
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
    } | _norm("embeddings.LayerNorm", width)
    for layer in range(config["n_layers"]):
        start = f"transformer.layer.{layer}."
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            found |= _linear(f"{start}attention.{part}", width, width)
        found |= _linear(f"{start}ffn.lin1", wide, width) | _linear(f"{start}ffn.lin2", width, wide)
        found |= _norm(f"{start}sa_layer_norm", width) | _norm(f"{start}output_layer_norm", width)
    return found


def _modernbert(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, wide = config["hidden_size"], config["intermediate_size"]
    in_norm, in_attention, in_mlp = (config.get(f"{part}_bias", False) for part in ("norm", "attention", "mlp"))
    found: dict[str, tuple[int, ...]] = {"embeddings.tok_embeddings.weight": (config["vocab_size"], width)}
    found |= _norm("embeddings.norm", width, in_norm) | _norm("final_norm", width, in_norm)
    for layer in range(config["num_hidden_layers"]):
        start = f"layers.{layer}."
        if layer > 0:
            found |= _norm(f"{start}attn_norm", width, in_norm)
        found |= _norm(f"{start}mlp_norm", width, in_norm)
        found |= _linear(f"{start}attn.Wqkv", 3 * width, width, in_attention)
        found |= _linear(f"{start}attn.Wo", width, width, in_attention)
        found |= _linear(f"{start}mlp.Wi", 2 * wide, width, in_mlp) | _linear(f"{start}mlp.Wo", width, wide, in_mlp)
    return found


def _bert(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of ELECTRA too, whose embeddings have a width of their own."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    narrow = config.get("embedding_size", width)
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], narrow),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], narrow),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], narrow),
        "embeddings.LayerNorm.weight": (narrow,),
        "embeddings.LayerNorm.bias": (narrow,),
    }
    if narrow != width:
        found |= _linear("embeddings_project", width, narrow)
    for layer in range(config["num_hidden_layers"]):
        start = f"encoder.layer.{layer}."
        matrices = dict.fromkeys([f"attention.self.{part}" for part in ("query", "key", "value")], (width, width))
        matrices |= {
            "attention.output.dense": (width, width),
            "intermediate.dense": (wide, width),
            "output.dense": (width, wide),
        }
        for name, shape in matrices.items():
            found |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found |= {f"{start}{name}.weight": (width,), f"{start}{name}.bias": (width,)}
    return found


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random float32 tensors, each drawn from a generator seeded by its name.

    They are far larger than an initialisation would be: attention must be peaked and gelu bent, or errors would hide.
    ModernBERT's, whose residuals are never normed, are held where torch's own rounding stays well under 1e-5.
    """
    large = 0.2 if config["model_type"] == "modernbert" else 0.3
    drawn = {}
    for name, shape in shapes(config).items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        scale = large if name.endswith("weight") else 0.2
        centre = 1.0 if name.lower().endswith("norm.weight") else 0.0
        drawn[name] = (centre + scale * noise).astype(np.float32)
    return drawn


def batch(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Four prompts of unequal length: tokens [4, 16] int32 and mask [4, 16] bool, padded at the right."""
    lengths = np.array([16, 11, 5, 1])
    mask = np.arange(16)[None] < lengths[:, None]
    drawn = np.random.default_rng(0).integers(3, config["vocab_size"], mask.shape)
    return np.where(mask, drawn, config["pad_token_id"]).astype(np.int32), mask
