"""One process of a cluster in `test_cluster.py`: all stages one after the other, since Python takes longest to start.

python cluster_process.py CLUSTER CONFIG FOLDER [pretrain] ctr
"""

import json
import sys
from pathlib import Path

from alt_jax import cli, stages, train
from alt_jax.config import load_config


def main(cluster: str, config_file: str, folder: Path, *run: str) -> None:
    parts = []
    whole = train.batch_at

    def batch_at(rows, *, part, **options):
        found = whole(rows, part=part, **options)
        parts.append([part.start, part.stop, len(found.values)])
        return found

    train.batch_at = batch_at
    join = ["--cluster", cluster, "--cluster-wait", "120"]
    command = ["finetune", config_file, "--strategy", "ctr", "--init-from", "none", "--run-dir", str(folder / "ctr")]
    if "pretrain" in run:
        command = ["pretrain", config_file, "--run-dir", str(folder / "pretrain")]
    if code := cli.run([*command, *join]):
        sys.exit(code)
    if "pretrain" in run:
        stages.finetune(load_config(config_file), "ctr", folder / "pretrain", folder / "ctr")
    test = stages.to_json(stages.evaluate([folder / "ctr"], "test"))
    found = {"parts": parts, "test": json.loads(test)}
    process = cluster.partition(",")[2].partition("/")[0]
    (folder / f"process{process}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
