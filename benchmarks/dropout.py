"""What random numbers cost a text tower's step: Linen's dropout against ours, forward and backward, taken in turn.

python benchmarks/dropout.py --tower tinybert --batch 128 --length 64
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import measure

from alt_jax.models import bert, encoder
from alt_jax.models.bert import Bert, BertConfig
from alt_jax.models.dropout import Dropout


class LinensDropout(nn.Module):
    """Linen's, called as ours is."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, number: jax.Array | None = None) -> jax.Array:
        """Drops in training."""
        return nn.Dropout(self.rate)(x, deterministic=not train)


def gradient(dropout: Any, config: BertConfig, batch: int, length: int) -> Callable[[], Any]:
    """The compiled gradient of the tower's squared states."""
    bert.Dropout = encoder.Dropout = dropout  # the one place where either name is swapped
    model, key = Bert(config), jax.random.key(0)
    tokens, mask = jax.random.randint(key, (batch, length), 5, config.vocab_size), jnp.ones((batch, length), bool)
    params = jax.jit(model.init)(key, tokens, mask)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return (model.apply(params, tokens, mask, train=True, rngs={"dropout": key}) ** 2).sum()

    program = jax.jit(jax.grad(loss)).lower(params, key).compile()
    return lambda: program(params, key)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--tower", choices=measure.TOWERS, default="tinybert")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    layers, width, heads, inner = measure.TOWERS[arguments.tower]
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }
    config = BertConfig(vocab_size=30522, max_position_embeddings=512, **sizes)
    still = BertConfig(**{**vars(config), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    shape = arguments.batch, arguments.length
    works = {
        "linen": gradient(LinensDropout, config, *shape),
        "ours": gradient(Dropout, config, *shape),
        "none": gradient(Dropout, still, *shape),
    }
    found = measure.interleaved(works, arguments.rounds)
    measure.show(
        "dropout",
        {
            "tower": arguments.tower,
            "batch": arguments.batch,
            "length": arguments.length,
            **{f"ms, {name}": 1e3 * value for name, value in found.items()},
            "ours / linen": found["ours"] / found["linen"],
            "none / linen": found["none"] / found["linen"],
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
