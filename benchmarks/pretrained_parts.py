"""Makes a pretraining run of which the CTR tower keeps a part only: which part helps, or harms, a finetuning?

    python benchmarks/pretrained_parts.py runs/pretrain runs/embedding --keep embedding
    alt-jax finetune CONFIG --strategy ctr --init-from runs/embedding --run-dir runs/ctr_embedding

`embedding` keeps the table of ids, `rest` everything else; what is not kept starts fresh, with the run's seed.
`--scale 0.3` multiplies the table that is kept, whose entries are larger after a pretraining than a fresh tower's.
"""

import argparse
import shutil
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from alt_jax.checkpoint import Checkpoints, load_params
from alt_jax.pretraining import Pretrain
from alt_jax.run import Run
from alt_jax.stages import open_dataset


def keep_part(source: Path, target: Path, part: str, scale: float) -> None:
    """Writes a run folder like `source` with a part of its CTR tower.

    Args:
      source: A finished pretraining.
      target: The new run folder.
      part: `embedding` or `rest`.
      scale: Of the embedding that is kept.
    """
    run = Run.load(source)
    params, step = load_params(source)
    task = Pretrain.build(run.config, open_dataset(run), run.encoder)
    fresh = jax.jit(task.init)(jax.random.key(run.config.seed))["ctr"]
    old = params["ctr"]
    table = jax.tree.map(lambda x: scale * x, old["embedding"])
    params["ctr"] = {**fresh, "embedding": table} if part == "embedding" else {**old, "embedding": fresh["embedding"]}
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    with closing(Checkpoints(target)) as checkpoints:
        checkpoints.save(step, params, {"none": np.zeros(1)}, {}, None)  # an optimiser's state cannot be empty


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--keep", choices=("embedding", "rest"), required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    keep_part(options.source, options.target, options.keep, options.scale)
