"""ID-only CTR towers, each with the L2 that its validation part likes best: writes the studies for `alt-jax ablate`.

    python benchmarks/tune_towers.py grid > grid.json
    alt-jax ablate configs/movielens_1m.py:scratch --study grid.json --seeds 1 --strategies ctr --run-dir runs/grid
    python benchmarks/tune_towers.py best runs/grid > best.json
    alt-jax ablate configs/movielens_1m.py:scratch --study best.json --seeds 3 --strategies ctr --run-dir runs/towers

L2 acts on embeddings, and how much of it a tower bears differs from tower to tower: one value for all would compare the
towers' luck. The choice looks at validation AUC of seed 0 only.
"""

import json
import sys
from pathlib import Path

from alt_jax.models import interactions

# DCN-Mix first: what the others are compared with.
TOWERS = ("dcn_mix", *(name for name in interactions.names() if name != "dcn_mix"))
L2 = (3e-6, 3e-5, 3e-4)


def arm(tower: str, l2: float) -> dict[str, object]:
    """A run from scratch. Products of embeddings need a larger start than the published 1e-4 to get anywhere."""
    return {"pretrain": False, "ctr.tower": tower, "ctr.init_std": 0.01, "finetune.ctr.l2": l2}


def grid() -> dict[str, dict[str, object]]:
    """Every tower with every L2."""
    return {f"{tower},l2={l2:g}": arm(tower, l2) for tower in TOWERS for l2 in L2}


def best(folder: Path) -> dict[str, dict[str, object]]:
    """Every tower with the L2 of its best validation AUC."""
    arms = {}
    for tower in TOWERS:
        results = {l2: folder / "ctr" / f"{tower},l2={l2:g}" / "seed-0" / "result.json" for l2 in L2}
        valid = {l2: json.loads(path.read_text())["valid"]["auc"] for l2, path in results.items() if path.is_file()}
        if valid:
            arms[tower] = arm(tower, max(valid, key=lambda l2: valid[l2]))
    return arms


if __name__ == "__main__":
    print(json.dumps(best(Path(sys.argv[2])) if sys.argv[1] == "best" else grid(), indent=1))
