"""What it brings to leave out padding, and to end the masked pass at the masks: pretraining steps with and without.

    python benchmarks/padding.py DATASET --tower tinybert --batch 128

DATASET and sizes as in `pretraining.py`. The four steps are taken in turn in one process.
"""

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import measure
from pretraining import experiment, parser

from alt_jax import mlm
from alt_jax.data.batches import batch_at
from alt_jax.models import packing
from alt_jax.optim import pretrain_optimizer
from alt_jax.pretraining import Pretrain
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.train import initial_state, make_step

PLAIN = {  # what stands in for each of the two
    "padding": mock.patch.object(packing, "room", return_value=None),
    "the last layer whole": mock.patch.object(mlm, "masks", return_value=None),
}


def main() -> None:
    arguments = parser(__doc__).parse_args()
    config, dataset, encoder = experiment(arguments)
    task, optimizer = Pretrain.build(config, dataset, encoder), pretrain_optimizer(config.pretrain, 1000)
    mesh, key = make_mesh(), jax.random.key(0)
    pieces = replicate(mesh, dataset.pieces)
    batch = split_rows(mesh, batch_at(dataset.train, seed=0, step=0, batch_size=arguments.batch))
    works: dict[str, Callable[[], Any]] = {}
    temporaries = {}
    with jax.set_mesh(mesh):
        for names in ((), *((name,) for name in PLAIN), tuple(PLAIN)):
            state = initial_state(mesh, jax.jit(task.init)(key), optimizer)
            with contextlib.ExitStack() as patches:
                for name in names:
                    patches.enter_context(PLAIN[name])
                step = jax.jit(make_step(task, optimizer)).lower(state, pieces, batch, key).compile()
            title = "with " + (" and ".join(names) or "neither")
            works[title] = lambda step=step, state=state: step(state, pieces, batch, key)
            temporaries[title] = step.memory_analysis().temp_size_in_bytes
        found = measure.interleaved(works, arguments.rounds)
    measure.show(
        "padding",
        {
            "tower": arguments.tower,
            "batch": arguments.batch,
            "dtype": config.text.dtype,
            **{f"ms a step {title}": 1e3 * seconds for title, seconds in found.items()},
            **{f"{title} / with neither": seconds / found["with neither"] for title, seconds in found.items()},
            **{f"GB of temporaries {title}": count / 1e9 for title, count in temporaries.items()},
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
