"""What microbatches cost in time and bring in memory: the pretraining step at 1, 2, 4 and 8 of them.

    python benchmarks/accumulation.py DATASET --tower tinybert --batch 128

DATASET and sizes as in `pretraining.py`. The steps are taken in turn in one process; temporaries are by XLA's account.
"""

import dataclasses

import jax
import measure
from pretraining import experiment, parser

from alt_jax.data.batches import batch_at
from alt_jax.optim import pretrain_optimizer
from alt_jax.pretraining import Pretrain
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.train import initial_state, make_step


def main() -> None:
    arguments = parser(__doc__).parse_args()
    config, dataset, encoder = experiment(arguments)
    optimizer, mesh, key = pretrain_optimizer(config.pretrain, 1000), make_mesh(), jax.random.key(0)
    pieces = replicate(mesh, dataset.pieces)
    batch = split_rows(mesh, batch_at(dataset.train, seed=0, step=0, batch_size=arguments.batch))
    works, temporaries = {}, {}
    with jax.set_mesh(mesh):
        for parts in (1, 2, 4, 8):
            recipe = dataclasses.replace(config.pretrain, microbatches=parts)
            task = Pretrain.build(dataclasses.replace(config, pretrain=recipe), dataset, encoder)
            state = initial_state(mesh, jax.jit(task.init)(key), optimizer)
            step = jax.jit(make_step(task, optimizer)).lower(state, pieces, batch, key).compile()
            works[str(parts)] = lambda step=step, state=state: step(state, pieces, batch, key)
            temporaries[parts] = step.memory_analysis().temp_size_in_bytes
        found = measure.interleaved(works, arguments.rounds)
    measure.show(
        "accumulation",
        {
            "tower": arguments.tower,
            "batch": arguments.batch,
            "dtype": config.text.dtype,
            **{f"rows/s in {parts}": arguments.batch / seconds for parts, seconds in found.items()},
            **{f"time in {parts} / in 1": seconds / found["1"] for parts, seconds in found.items()},
            **{f"GB of temporaries in {parts}": count / 1e9 for parts, count in temporaries.items()},
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
