"""How much of a finetuning's start is left in its table of ids, by how often an id occurs in training.

    python benchmarks/start_left.py runs/ctr

Cosine between an id's row of the table at the start (the pretraining's, or the fresh one of the run's seed) and at the
run's best step, and the root mean square of both.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from alt_jax.checkpoint import load_params
from alt_jax.stages import load_finetuned, open_dataset

BOUNDS = (1, 10, 100, 1000)  # occurrences in training


def start_left(folder: Path) -> None:
    """Prints the table of a finished finetuning of strategy `ctr` or `joint`."""
    trained = load_finetuned(folder)
    run, dataset = trained.run, open_dataset(trained.run)
    fresh = jax.jit(trained.task.init)(jax.random.key(run.config.seed))
    origin = run.origin.init_from
    start = fresh if origin is None else load_params(Path(origin))[0]
    before, after = (np.asarray(params["ctr"]["embedding"]["embedding"]) for params in (start, trained.params))
    ids = np.asarray(dataset.pieces.feature)[np.asarray(dataset.train.values)]
    count = np.bincount(ids.ravel(), minlength=len(before))
    print("| occurrences | ids | size at start | size at best step | cosine |\n|---|---|---|---|---|")
    for low, high in zip(BOUNDS, (*BOUNDS[1:], np.inf), strict=True):
        rows = (count >= low) & (count < high)
        if not rows.any():
            continue
        b, a = before[rows], after[rows]
        cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
        sizes = (f"{np.sqrt((x**2).mean()):.4f}" for x in (b, a))
        often = f"{low:,} and more" if high == np.inf else f"{low:,} to {high - 1:,}"
        print(f"| {often} | {rows.sum():,} | {' | '.join(sizes)} | {cosine.mean():.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    start_left(parser.parse_args().run)
