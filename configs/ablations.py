"""Which of the three losses helps: every subset of them on MovieLens-100K, chosen by a switch.

    alt-jax pretrain configs/ablations.py:icl+mlm --run-dir runs/ablations/icl+mlm/pretrain
    alt-jax finetune configs/ablations.py:icl+mlm --strategy joint --init-from runs/ablations/icl+mlm/pretrain \
        --run-dir runs/ablations/icl+mlm/joint

Variants: `icl`, `mlm`, `mtm`, `icl+mlm`, `icl+mtm`, `mlm+mtm`, `icl+mlm+mtm` (the default: all three). Other values can
be ablated from the command line as well, e.g. `--icl.temperature 0.1 --icl.normalize True`, `--mask.unit group`,
`--mtm.method nce`. Everything else is `configs/movielens_100k.py:text`: prepare with that, and read there how long it
takes; a loss that is left out is not computed, so the subsets are quicker than the whole. No result is claimed here.
"""

import dataclasses
from pathlib import Path

from alt_jax.config import Config, LossConfig, load_config


def get_config(losses: str = "icl+mlm+mtm") -> Config:
    """MovieLens-100K with the named losses at weight 1 and the others at 0."""
    base = load_config(f"{Path(__file__).with_name('movielens_100k.py')}:text")
    return dataclasses.replace(
        base, loss=LossConfig(**{"icl": 0.0, "mlm": 0.0, "mtm": 0.0, **dict.fromkeys(losses.split("+"), 1.0)})
    )
