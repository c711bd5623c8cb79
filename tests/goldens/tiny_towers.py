"""Two small random encoders, made from their tensors' names alone, so that no weights have to be kept.

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
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "pad_token_id": 0, "type_vocab_size": 2, "layer_norm_eps": 1e-12} | _SIZES,
    "roberta": {"model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5} | _SIZES,
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The encoder's tensors in torch's names and layout, written out by hand rather than asked of either library."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
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
    """
    drawn = {}
    for name, shape in shapes(config).items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        scale = 0.3 if name.endswith("weight") else 0.2
        centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        drawn[name] = (centre + scale * noise).astype(np.float32)
    return drawn


def batch(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Four prompts of unequal length: tokens [4, 16] int32 and mask [4, 16] bool, padded at the right."""
    lengths = np.array([16, 11, 5, 1])
    mask = np.arange(16)[None] < lengths[:, None]
    drawn = np.random.default_rng(0).integers(3, config["vocab_size"], mask.shape)
    return np.where(mask, drawn, config["pad_token_id"]).astype(np.int32), mask
