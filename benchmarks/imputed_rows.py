"""How a run on MovieLens-1M in order of time does on rows with imputed timestamps, which its protocol leaves out.

    python benchmarks/imputed_rows.py ml-1m.zip runs/time/ctr/dcnv2/seed-0

Those 29,260 rows are known to lie behind the 80 % point, hence in what is validation and test elsewhere. Prints rows,
share of users seen in training, and AUC: of the test part, by whether the user was seen; of the imputed rows; of both.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from alt_jax import metrics
from alt_jax.config import DataConfig
from alt_jax.data import sources
from alt_jax.evaluate import Probabilities, unseen
from alt_jax.scorer import Scorer
from alt_jax.sharding import make_mesh, replicate
from alt_jax.stages import load_finetuned, open_dataset


def line(what: str, seen: np.ndarray, label: np.ndarray, score: np.ndarray) -> None:
    """One row of the table."""
    auc, positive = metrics.auc(label, score), label.mean()
    print(f"| {what} | {len(label):,} | {seen.mean():.1%} | {positive:.3f} | {auc:.4f} |")


def main(raw_path: str, run: Path) -> None:
    """Scores test part and imputed rows."""
    trained = load_finetuned(run)
    dataset = open_dataset(trained.run)
    mesh = make_mesh()
    score = Probabilities(trained.task, mesh, dataset.pieces)(replicate(mesh, trained.params), dataset.test.values)
    label = np.asarray(dataset.test.labels).astype(int)
    seen = ~unseen(dataset, "test", dataset.schema.user or "")

    raw = sources.load(DataConfig(source="movielens_1m", raw=raw_path))
    if raw.timestamp_quality is None:
        sys.exit(f"{raw_path} does not say which timestamps are imputed: it has no ts_quality.u8 (docs/data.md).")
    imputed = np.asarray(raw.table["timestamp_quality"]) == 2
    rows = raw.table.filter(pa.array(imputed))
    extra_score = Scorer.load(run).score(rows, raw_path)
    extra_label = (np.asarray(rows["rating"]) > 3).astype(int)
    train_users = dataset.train.values[:, dataset.schema.slot(dataset.schema.user or "")]
    known = set(np.asarray(dataset.vocabulary().value, object)[np.unique(train_users)].tolist())
    extra_seen = np.array([user in known for user in rows["user_id"].to_pylist()])

    print("| rows | number | user seen in training | positive | AUC |\n|---|---|---|---|---|")
    line("test", seen, label, score)
    line("test, user seen", seen[seen], label[seen], score[seen])
    line("test, user not seen", seen[~seen], label[~seen], score[~seen])
    line("imputed", extra_seen, extra_label, extra_score)
    both = [np.concatenate(pair) for pair in ((seen, extra_seen), (label, extra_label), (score, extra_score))]
    line("test and imputed", *both)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", help="ml-1m.zip, or its folder")
    parser.add_argument("run", type=Path, help="a finished finetuning run with protocol `time`")
    arguments = parser.parse_args()
    main(arguments.raw, arguments.run)
