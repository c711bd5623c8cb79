"""The pretraining step: rows/s, and the share of the machine's matrix rate that it reaches.

    python benchmarks/pretraining.py DATASET --tower tinybert --batch 128

DATASET is a prepared folder (`alt-jax prepare configs/movielens_1m.py:minilm …`); the tower gets the named sizes and
random weights. The floor is counted by hand: products on real tokens only, forward and twice that backward. `matrix` is
the rate of a large product in the tower's type, `tower products` that of the products which the tower is made of, at
the step's number of tokens. All rates are of this process, taken in turn.
"""

import argparse
import dataclasses
from typing import Any

import jax
import measure
import numpy as np

from alt_jax import flops, mlm
from alt_jax.config import Config
from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import prompt_lengths
from alt_jax.models.bert import BertConfig
from alt_jax.optim import pretrain_optimizer
from alt_jax.pretraining import Pretrain
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.train import initial_state, make_step
from configs import movielens_1m


def experiment(arguments: Any) -> tuple[Config, Dataset, BertConfig]:
    """MovieLens-1M's configuration at the asked sizes."""
    config = movielens_1m.get_config("scratch")
    text = dataclasses.replace(config.text, dtype=arguments.dtype)
    pretrain = dataclasses.replace(config.pretrain, batch_size=arguments.batch)
    config = dataclasses.replace(config, text=text, pretrain=pretrain).override(dict(arguments.set))
    dataset = Dataset.load(arguments.dataset)
    layers, width, heads, inner = measure.TOWERS[arguments.tower]
    encoder = BertConfig(
        vocab_size=arguments.vocab or dataset.schema.text.vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=512,
        pad_token_id=dataset.schema.text.pad_id,
    )
    return config, dataset, encoder


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that `experiment` reads."""
    found = measure.parser(doc)
    found.add_argument("dataset")
    found.add_argument("--tower", choices=measure.TOWERS, default="tinybert")
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--vocab", type=int, default=0, help="tokens of the tower, where it has more than the dataset")
    pair = ("NAME", "VALUE")
    found.add_argument("--set", nargs=2, action="append", default=[], metavar=pair, help="any config value")
    return found


def main() -> None:
    arguments = parser(__doc__).parse_args()
    config, dataset, encoder = experiment(arguments)
    task = Pretrain.build(config, dataset, encoder)
    mesh = make_mesh()
    optimizer = pretrain_optimizer(config.pretrain, 1000)
    pieces, key = replicate(mesh, dataset.pieces), jax.random.key(0)
    batches = [batch_at(dataset.train, seed=0, step=i, batch_size=arguments.batch) for i in range(8)]
    with jax.set_mesh(mesh):
        state = initial_state(mesh, jax.jit(task.init)(key), optimizer)
        update, first = jax.jit(make_step(task, optimizer), donate_argnums=0), split_rows(mesh, batches[0])
        step = update.lower(state, pieces, first, key).compile()
        number = 0

        def train() -> jax.Array:
            nonlocal state, number
            state, metrics = step(state, pieces, split_rows(mesh, batches[number % len(batches)]), key)
            number += 1
            return metrics["loss"].total

        lengths = [prompt_lengths(dataset.pieces, batch.values, dataset.schema.widths) for batch in batches]
        tokens = int(np.mean([n.sum() for n in lengths]))
        parts = flops.pretrain_flops(task, arguments.batch)
        products = _tower_products(encoder, tokens, config.text.dtype)
        side = 2048 if jax.default_backend() == "cpu" else 8192
        large, large_flops = measure.product(side, side, side, config.text.dtype)
        works = {"step": train, "matrix": large} | {name: work for name, (work, _) in products.items()}
        found = measure.interleaved(works, arguments.rounds)

    total = sum(parts.values())
    tower_rate = sum(count for _, count in products.values()) / sum(found[name] for name in products)
    matrix_rate = large_flops / found["matrix"]
    analysis = step.cost_analysis() or {}
    measure.show(
        "pretraining step",
        {
            "tower": arguments.tower,
            "batch": arguments.batch,
            "dtype": config.text.dtype,
            "tokens a row": tokens / arguments.batch,
            "mlm capacity": mlm.capacity(task.maskable, arguments.batch, config, dataset.schema),
            "ms a step": 1e3 * found["step"],
            "rows/s": arguments.batch / found["step"],
            **{f"GFLOP a step: {name}": count / 1e9 for name, count in parts.items()},
            "GFLOP a step by XLA": analysis.get("flops", float("nan")) / 1e9,
            "GFLOP/s of the step": total / found["step"] / 1e9,
            "GFLOP/s of a large product": matrix_rate / 1e9,
            "GFLOP/s of the tower's products": tower_rate / 1e9,
            "share of a large product's rate": total / found["step"] / matrix_rate,
            "share of the tower's products' rate": total / found["step"] / tower_rate,
            "GB of temporaries": step.memory_analysis().temp_size_in_bytes / 1e9,
        },
        arguments.json,
    )


def _tower_products(encoder: BertConfig, tokens: int, dtype: str) -> dict[str, Any]:
    """The products that a layer is made of: an attention projection, and both of the feed-forward half."""
    d, inner = encoder.hidden_size, encoder.intermediate_size
    return {f"{a}x{b}": measure.product(tokens, a, b, dtype) for a, b in ((d, d), (d, inner), (inner, d))}


if __name__ == "__main__":
    main()
