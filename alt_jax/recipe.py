"""What a config leaves open, fitted to how many rows there are and to where a run starts.

Chosen on the validation part of MovieLens-100K (`docs/results.md`).
"""

import math
from collections.abc import Mapping
from typing import Any

from alt_jax.config import Config, Strategy

# Finetuning takes about so many updates to go once through the rows, within these bounds of a batch.
_UPDATES_A_PASS = 20
_BATCHES = (64, 1024)
_PASSES = 30
# L2 is the precision of a Gaussian prior on every id, beside a *sum* of losses: a mean over n rows has 1/n of it. Fresh
# ids bear no more of it than this: with few labels they would not move at all.
_PRECISION_FRESH, _PRECISION_PRETRAINED, _MOST_FRESH = 160.0, 24.0, 2e-3
# With fewer labels than this, half of the deep part's units drop out.
_FEW, _DROPOUT = 10_000, 0.5
# Pretraining takes about so many updates, within these bounds of its passes.
_UPDATES = 4600
_PASSES_PRETRAIN = (3, 30)


def pretraining(config: Config, rows: int) -> Config:
    """The config with the epochs of a pretraining on so many rows."""
    low, high = _PASSES_PRETRAIN
    passes = min(max(math.ceil(_UPDATES * config.pretrain.batch_size / rows), low), high)
    return _filled(config, {"pretrain.epochs": passes, "ctr.dropout": 0.0})


def finetuning(config: Config, strategy: Strategy, rows: int, pretrained: bool) -> Config:
    """The config with batch size, epochs, L2 and dropout of a finetuning.

    Args:
      config: The experiment.
      strategy: Whose values.
      rows: Training rows that have a label.
      pretrained: Whether it starts from a pretraining, whose ids L2 would otherwise wipe out.
    """
    low, high = _BATCHES
    given = getattr(config.finetune, strategy)
    fitted = {
        "batch_size": min(2 ** round(math.log2(min(max(rows / _UPDATES_A_PASS, low), high))), rows),
        "epochs": _PASSES,
        # A strength that is given was chosen for what it was given with: towards zero, unless that is said, too.
        "l2_towards": "start" if pretrained and given.l2 is None else "zero",
        "l2": _significant(_PRECISION_PRETRAINED / rows if pretrained else min(_PRECISION_FRESH / rows, _MOST_FRESH)),
    }
    dropout = _DROPOUT if rows < _FEW else 0.0
    return _filled(
        config, {f"finetune.{strategy}.{name}": value for name, value in fitted.items()} | {"ctr.dropout": dropout}
    )


def _filled(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with these values where it has none."""
    given = config.flat()
    return config.override({name: value for name, value in values.items() if given[name] is None})


def _significant(value: float) -> float:
    """To two digits, so that a stored config can be read."""
    return float(f"{value:.1e}")
