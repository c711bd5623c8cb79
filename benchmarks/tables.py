"""The ID-only training step as its table of ids grows: same batch, ever more rows.

    python benchmarks/tables.py --tables lazy_adagrad --sizes 100000 1000000 10000000 100000000

Seven category fields share the ids evenly; a batch's are drawn uniformly, so that no row is in a cache. The tower is by
default a factorisation machine, which is little beside its tables. Floor: the bytes of the touched rows, of parameters
and of the optimiser's state, each read and written, against the rate of a measured copy.
"""

import jax
import jax.numpy as jnp
import measure
import numpy as np

from alt_jax import bridge
from alt_jax.config import Config, CTRConfig, FinetuneConfig, TextConfig
from alt_jax.data.batches import Batch
from alt_jax.data.prompt import Pieces
from alt_jax.models.alt import ALT
from alt_jax.optim import finetune_optimizer
from alt_jax.schema import FIRST_FIELD_ID, Field, Schema, TextSchema
from alt_jax.tasks import Finetune
from alt_jax.train import State, make_step

FIELDS = 7
KNOWN = 1 << 20  # values that batches draw from; they are spread over all rows


def task_of(rows: int, config: Config) -> Finetune:
    """A click model whose tables have about `rows` rows."""
    size = (rows - FIRST_FIELD_ID) // FIELDS
    fields = tuple(Field(f"f{f}", f"f{f}", FIRST_FIELD_ID + f * size, size, 4) for f in range(FIELDS))
    text = TextSchema("trained", "", 8, 0, 1, 2, 3, 8, 8, 8)
    schema = Schema("generated", "random", fields, (), None, None, text, {}, "", "")
    return Finetune(ALT(config, schema, bridge.encoder_config(config.text, schema)), "ctr")


def drawn(task: Finetune, batch: int, number: int) -> tuple[Pieces, list[Batch]]:
    """Prompt pieces that hold feature ids alone, and batches."""
    rng = np.random.default_rng(0)
    per_field = KNOWN // FIELDS
    ids = [rng.integers(f.offset, f.offset + f.size, per_field, dtype=np.int32) for f in task.model.schema.fields]
    none, feature = np.zeros(0, np.int32), np.concatenate(ids)
    pieces = Pieces(none, none, none, none, feature, np.zeros(len(feature), np.float32))
    base = np.arange(FIELDS, dtype=np.int32) * per_field
    batches = []
    for _ in range(number):
        values = base + rng.integers(0, per_field, (batch, FIELDS), dtype=np.int32)
        label = rng.integers(0, 2, batch).astype(np.float32)
        batches.append(jax.device_put(Batch(values, label, np.ones(batch, np.float32))))
    return jax.device_put(pieces), batches


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--tables", choices=("adam", "lazy_adam", "lazy_adagrad"), default="lazy_adam")
    parser.add_argument("--tower", default="fm", help="a name from `alt-jax list towers`")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=16)
    arguments = parser.parse_args()
    config = Config(ctr=CTRConfig(tower=arguments.tower, dim=arguments.dim), text=TextConfig(max_length=8))
    recipe = FinetuneConfig(l2=3e-4, tables=arguments.tables)
    optimizer, key = finetune_optimizer(recipe), jax.random.key(0)
    works, states, state_bytes, temporaries = {}, {}, {}, {}
    for size in arguments.sizes:
        task = task_of(size, config)
        pieces, batches = drawn(task, arguments.batch, 8)

        def start(task=task) -> State:
            # Constants: the random numbers of 10⁸ rows would need several times the memory of the table.
            params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), jax.eval_shape(task.init, key))
            return State(jnp.int32(0), params, optimizer.init(params))

        states[size] = jax.jit(start)()
        update = jax.jit(make_step(task, optimizer, lazy_tables=arguments.tables != "adam"), donate_argnums=0)
        step = update.lower(states[size], pieces, batches[0], key).compile()
        memory = step.memory_analysis()
        state_bytes[size], temporaries[size] = memory.alias_size_in_bytes, memory.temp_size_in_bytes

        def train(size=size, step=step, pieces=pieces, batches=batches) -> jax.Array:
            for batch in batches:
                states[size], metrics = step(states[size], pieces, batch, key)
            return metrics["loss"].total

        works[f"{size:,} rows"] = train
    copy, copied = measure.copy()
    found = measure.interleaved(works | {"copy": copy}, arguments.rounds)
    seconds = {name: found[name] / 8 for name in works}
    numbers = {"adam": 3, "lazy_adam": 3, "lazy_adagrad": 1 + 1 / arguments.dim}[arguments.tables]
    floor = 2 * 4 * arguments.batch * FIELDS * arguments.dim * numbers
    first, *_, last = seconds.values()
    measure.show(
        "an embedding step as its table grows",
        {
            "tables": arguments.tables,
            "tower": arguments.tower,
            "batch": arguments.batch,
            "fields": FIELDS,
            "dim": arguments.dim,
            **{f"ms a step, {name}": 1e3 * passed for name, passed in seconds.items()},
            **{f"GB of state, {size:,} rows": found / 1e9 for size, found in state_bytes.items()},
            **{f"MB of temporaries, {size:,} rows": found / 1e6 for size, found in temporaries.items()},
            "largest / smallest": last / first,
            "floor, MB of touched rows": floor / 1e6,
            "floor, ms at the rate of a copy": 1e3 * floor / (copied / found["copy"]),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
