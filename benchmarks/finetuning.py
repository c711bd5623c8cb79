"""A finetuning step: rows/s, the share of the machine's matrix rate that it reaches, and what the host adds to it.

    python benchmarks/finetuning.py DATASET --strategy ctr --batch 1024

DATASET is a prepared folder; the model has the sizes of `configs/movielens_1m.py` and random weights. `bare` is the
jitted step on batches that lie on the device; `whole` makes and transfers each batch first, as training does, without
waiting for the step before; `host` does that and nothing else. The floor is counted by hand: products forward and twice
that backward, of real tokens only.
"""

import itertools
from typing import Any

import jax
import measure
from pretraining import experiment

from alt_jax import flops
from alt_jax.data.batches import Batch, batch_at
from alt_jax.models.alt import ALT
from alt_jax.optim import finetune_optimizer
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.tasks import Finetune
from alt_jax.train import initial_state, make_step

STEPS = 20  # that are under way before their results are waited for


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--strategy", choices=("ctr", "plm", "joint"), default="ctr")
    parser.add_argument("--tower", choices=measure.TOWERS, default="tinybert")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--vocab", type=int, default=0, help="tokens of the tower, where it has more than the dataset")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a config value")
    arguments = parser.parse_args()
    config, dataset, encoder = experiment(arguments)
    recipe = getattr(config.finetune, arguments.strategy)
    lengths = None if arguments.strategy == "ctr" else dataset.prompt_tokens()
    task, optimizer = (
        Finetune(ALT(config, dataset.schema, encoder), arguments.strategy, lengths),
        finetune_optimizer(recipe),
    )
    mesh, key, numbers = make_mesh(), jax.random.key(0), itertools.count()
    pieces = replicate(mesh, dataset.pieces)

    def made(number: int) -> Batch:
        found = batch_at(dataset.train, seed=0, step=number, batch_size=arguments.batch)
        there: Batch = split_rows(mesh, found)
        return there

    with jax.set_mesh(mesh):
        state: Any = initial_state(mesh, jax.jit(task.init)(key), optimizer)
        update = jax.jit(make_step(task, optimizer, lazy_tables=recipe.tables != "adam"), donate_argnums=0)
        step = update.lower(state, pieces, made(0), key).compile()
        there = [made(number) for number in range(STEPS)]

        def bare() -> jax.Array:
            nonlocal state
            for batch in there:
                state, metrics = step(state, pieces, batch, key)
            return metrics["loss"].total

        def whole() -> jax.Array:
            nonlocal state
            for _ in range(STEPS):
                state, metrics = step(state, pieces, made(next(numbers)), key)
            return metrics["loss"].total

        def host() -> list[Batch]:
            return [made(next(numbers)) for _ in range(STEPS)]

        side = 2048 if jax.default_backend() == "cpu" else 8192
        large, large_flops = measure.product(side, side, side, config.text.dtype)
        works = {"bare": bare, "whole": whole, "host": host, "matrix": large}
        found = measure.interleaved(works, arguments.rounds, at_least=2.0)

    seconds = {name: found[name] / STEPS for name in ("bare", "whole", "host")}
    total = sum(flops.finetune_flops(task, arguments.batch, lengths).values())
    measure.show(
        "finetuning step",
        {
            "strategy": arguments.strategy,
            "tower": None if arguments.strategy == "ctr" else arguments.tower,
            "batch": arguments.batch,
            "dtype": config.text.dtype,
            **{f"ms a step, {name}": 1e3 * passed for name, passed in seconds.items()},
            "rows/s": arguments.batch / seconds["whole"],
            "whole / bare": seconds["whole"] / seconds["bare"],
            "host / whole": seconds["host"] / seconds["whole"],
            "GFLOP a step": total / 1e9,
            "GFLOP a step by XLA": (step.cost_analysis() or {}).get("flops", float("nan")) / 1e9,
            "GFLOP/s of the step": total / seconds["bare"] / 1e9,
            "GFLOP/s of a large product": large_flops / found["matrix"] / 1e9,
            "share of a large product's rate": total / seconds["bare"] / (large_flops / found["matrix"]),
            "MB of temporaries": step.memory_analysis().temp_size_in_bytes / 1e6,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
