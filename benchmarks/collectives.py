"""What a device holds and what devices tell each other in a step, read from the compiled programs; and what follows.

    python benchmarks/collectives.py DATASET [--devices 8 | --topology v5e:2x4] [--tower roberta-base] [--batch 1024]

DATASET is a prepared folder; of it, the pretraining step has the fields and the lengths of prompts. Nothing is run.
Programs are compiled for virtual CPU devices, or for TPU chips that need not be there, by their own compiler (that of
`pip install libtpu`; TPU_LIBRARY_PATH names another). Three things are printed:

1. bytes on each device of an ID-only step whose tables have 10⁷ rows, copied and split;
2. the time of a pretraining step on 8 to 256 chips with everything copied, from FLOPs counted by hand (`measure.py`),
   the bytes of the optimiser's state, of the gradient and of ICL's vectors, and the rates that the makers publish. A
   projection, not a measurement;
3. bytes on each device of that step, with its collectives and their bytes.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

_DEVICES = sys.argv[sys.argv.index("--devices") + 1] if "--devices" in sys.argv[:-1] else "8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_DEVICES}"
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}  # libtpu asks for no TPU here

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import measure  # noqa: E402
import pretraining  # noqa: E402
import tables  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from alt_jax import flops  # noqa: E402
from alt_jax.config import Config, CTRConfig, FinetuneConfig, ShardingConfig, TextConfig  # noqa: E402
from alt_jax.data.batches import Batch, batch_at  # noqa: E402
from alt_jax.data.prompt import Pieces  # noqa: E402
from alt_jax.optim import finetune_optimizer, pretrain_optimizer  # noqa: E402
from alt_jax.pretraining import Pretrain  # noqa: E402
from alt_jax.sharding import Rules, by_rows, layout, make_mesh, replicated  # noqa: E402
from alt_jax.sharding_rules import rules  # noqa: E402
from alt_jax.train import State, make_step  # noqa: E402

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1, "s8": 1, "f16": 2, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(
    r"= (?P<shapes>\([^=]*?\)|\S+) "
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


STEPS = {"copied": ("replicate", False), "split": ("split", False), "split, remat": ("split", True)}
UTILISATION = 0.5  # of a chip's peak: a goal, not a measured figure


class Chip(NamedTuple):
    """Published figures: bf16 FLOP/s, bytes/s of its memory, bytes/s it can send within a pod or node and beyond."""

    flops: float
    memory: float
    inside: float
    outside: float
    group: int  # chips that are joined by the inner links


# https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 819 GB/s, 400 GB/s both ways together; pods of 256.
# NVIDIA's H100 SXM data sheet: 989 TFLOP/s dense, 3.35 TB/s, NVLink 900 GB/s both ways together; ConnectX-7: 400 Gbit/s
# a GPU.
CHIPS = {
    "TPU v5e": Chip(197e12, 819e9, 200e9, 200e9, 256),
    "H100 SXM": Chip(989e12, 3350e9, 450e9, 50e9, 8),
}


def shapes(tree: Any, found: Any) -> Any:
    """Stand-ins for arrays that lie as `found` says."""
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, found)


def compiled(mesh: Mesh, task: Any, optimizer: Any, pieces: Pieces, batch: Batch, split: Rules, *, lazy: bool) -> Any:
    """The update, compiled for all devices; nothing is allocated."""
    key = jax.random.key(0)

    def start() -> State:
        params = task.init(key)
        return State(jnp.int32(0), params, optimizer.init(params))

    state = jax.eval_shape(start)
    places = layout(mesh, state, split)
    arguments = (
        shapes(state, places),
        shapes(pieces, jax.tree.map(lambda _: replicated(mesh), pieces)),
        shapes(batch, jax.tree.map(lambda _: by_rows(mesh), batch)),
        jax.eval_shape(lambda: key),
    )
    with jax.set_mesh(mesh):
        update = jax.jit(
            make_step(task, optimizer, lazy_tables=lazy), donate_argnums=0, out_shardings=(places, replicated(mesh))
        )
        return update.lower(*arguments).compile()


def collectives(program: Any) -> dict[str, tuple[int, int, int]]:
    """By kind: how many, the bytes of all their results on a device, and those of the largest array."""
    number, total, largest = Counter(), Counter(), Counter()
    text = re.sub(r"/\*.*?\*/", "", program.as_text())  # every fifth element of a tuple is numbered
    for match in _COLLECTIVE.finditer(text):
        sizes = [
            _BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
            for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", match["shapes"])
        ]
        number[match["kind"]] += 1
        total[match["kind"]] += sum(sizes)
        largest[match["kind"]] = max(largest[match["kind"]], *sizes)
    return {kind: (number[kind], total[kind], largest[kind]) for kind in sorted(number)}


def table_memory(mesh: Mesh, rows: int) -> None:
    """Prints what each device holds of a factorisation machine on tables of so many rows, 16 wide."""
    print(f"\nID-only step, tables of {rows:,} rows × 16, batch 1,024, {mesh.size} devices: GB on each device\n")
    print("| optimiser | tables | state | beyond it, during a step | collectives, MB |\n|---|---|---|---|---|")
    for optimizer in ("adam", "lazy_adam", "lazy_adagrad"):
        for how in ("replicate", "split"):
            config = Config(
                ctr=CTRConfig(tower="fm", dim=16),
                text=TextConfig(max_length=8),
                sharding=ShardingConfig(tables=how),  # type: ignore[arg-type]
            )
            task = tables.task_of(rows, config)
            pieces, (batch,) = tables.drawn(task, 1024, 1)
            recipe = FinetuneConfig(l2=3e-4, tables=optimizer)  # type: ignore[arg-type]
            program = compiled(
                mesh, task, finetune_optimizer(recipe), pieces, batch, rules(config), lazy=optimizer != "adam"
            )
            memory = program.memory_analysis()
            sent = sum(total for _, total, _ in collectives(program).values())
            held, beyond = memory.alias_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9
            print(f"| `{optimizer}` | {how} | {held:.3f} | {beyond:.3f} | {sent / 1e6:.2f} |")


def projection(flops: float, params: Any, batch: int, width: int) -> None:
    """Prints the step time on more and more chips: computing, then sending, then updating; XLA can overlap some of it.

    Args:
      flops: Of a step of one chip, without ICL's comparisons.
      params: Of the model.
      batch: Rows of one chip.
      width: Of ICL's vectors.
    """
    gradient = 4.0 * sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"\n{flops / batch / 1e9:.2f} GFLOP a row, {gradient / 1e9:.3f} GB of gradients, {batch} rows on each chip\n")
    print("| chip | chips | computing, ms | sending, ms | updating, ms | rows/s | of one chip's rate, for each |")
    print("|---|---|---|---|---|---|---|")
    for name, chip in CHIPS.items():
        # AdamW reads gradient, parameter and two moments, and writes the last three.
        updating = 7 * gradient / chip.memory
        alone = flops / (UTILISATION * chip.flops) + updating
        for chips in (8, 16, 32, 64, 128, 256):
            # Each of its rows is compared with all rows: in two directions, and twice as much backward.
            contrast = 2 * 3 * 2 * batch * chips * batch * width
            computing = (flops + contrast) / (UTILISATION * chip.flops)
            # A ring sends 2 (n − 1)/n of the bytes through every chip: once around to sum, or for ICL to gather the
            # vectors' gradients, once to hand out. Between groups every chip sends its share of a group's.
            inside, groups = min(chips, chip.group), max(1, chips // chip.group)
            sent = gradient + 2 * 4 * batch * chips * width
            sending = 2 * (inside - 1) / inside * sent / chip.inside
            sending += 2 * (groups - 1) / groups * sent / inside / chip.outside
            step = computing + sending + updating
            print(
                f"| {name} | {chips} | {1e3 * computing:.1f} | {1e3 * sending:.1f} | {1e3 * updating:.1f} | "
                f"{chips * batch / step:,.0f} | {alone / step:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--devices", type=int, default=8, help="virtual CPU devices")
    parser.add_argument("--topology", default="", help="TPU chips to compile for instead, e.g. v5e:2x4")
    parser.add_argument("--tower", choices=measure.TOWERS, default="roberta-base")
    parser.add_argument("--batch", type=int, default=1024, help="of all devices")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the tables of the ID-only step")
    parser.add_argument(
        "--steps", nargs="*", choices=STEPS, default=list(STEPS), help="of 3; each is compiled for minutes"
    )
    parser.set_defaults(dtype="bfloat16", vocab=30522, set=[])
    arguments = parser.parse_args()
    chips = topologies.get_topology_desc(arguments.topology, platform="tpu").devices if arguments.topology else None
    mesh = make_mesh(chips)
    table_memory(mesh, arguments.rows)
    config, dataset, encoder = pretraining.experiment(arguments)
    batch = batch_at(dataset.train, seed=0, step=0, batch_size=arguments.batch)
    own = arguments.batch // mesh.size
    one_chip = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, batch_size=own))
    task = Pretrain.build(one_chip, dataset, encoder)
    params = jax.eval_shape(task.init, jax.random.key(0))
    parts = flops.pretrain_flops(task, own)
    projection(sum(parts.values()) - parts["ICL comparisons"], params, own, config.icl.dim)
    kind = f"chips of {arguments.topology}" if arguments.topology else "CPU devices"
    for name in arguments.steps:
        how, remat = STEPS[name]
        text = dataclasses.replace(config.text, remat=remat)
        variant = dataclasses.replace(config, sharding=ShardingConfig(tables=how, text=how), text=text)  # type: ignore[arg-type]
        task = Pretrain.build(variant, dataset, encoder)
        optimizer = pretrain_optimizer(config.pretrain, 100)
        program = compiled(mesh, task, optimizer, dataset.pieces, batch, rules(variant), lazy=False)
        memory = program.memory_analysis()
        state, beyond = memory.alias_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9
        print(f"\npretraining, {arguments.tower}, batch {arguments.batch}, {mesh.size} {kind}; tables and text tower:")
        print(f"{how}{', text.remat' * remat}. On each device {state:.3f} GB of state, and {beyond:.2f} GB beyond it\n")
        print("| collective | number | MB of results | MB of the largest |\n|---|---|---|---|")
        for what, (number, total, largest) in collectives(program).items():
            print(f"| {what} | {number} | {total / 1e6:.2f} | {largest / 1e6:.2f} |")


if __name__ == "__main__":
    main()
