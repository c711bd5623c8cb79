"""The recipe of `alt-jax demo`: a generated click log, a text tower of two small layers.

Command: `alt-jax demo` does everything. One part by itself, or with other values, once the demo has made its data:

    alt-jax finetune configs/demo.py --strategy joint --init-from demo/seed-0/pretrain --run-dir demo/mine

Expected: the demo's table. With 2,000 test rows an AUC is known to about ±0.02 only, so do not expect its order to hold
for another seed or another log.
Time: 3 minutes on two CPU cores, compilation included; see the README under Timings.
"""

from pathlib import Path

from alt_jax.config import Config
from alt_jax.demo_recipe import demo_config


def get_config() -> Config:
    """The recipe (`alt_jax.demo_recipe.RECIPE`) on the data that the demo keeps in `demo/`."""
    return demo_config(Path("demo"))
