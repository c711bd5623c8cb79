"""What a config leaves open, fitted to how many rows there are and to where a run starts.

Every rule was chosen on validation, over data sets and seeds: `docs/results.md` has the table.
"""

import dataclasses
import math

from alt_jax.config import Config, Strategy

# Finetuning takes about so many updates to go once through the rows, within these bounds of a batch.
_UPDATES_A_PASS = 20
_BATCHES = (64, 1024)
_PASSES = 30
# L2 is the precision of a Gaussian prior on every id, beside a *sum* of losses: a mean over n rows has 1/n of it.
_PRECISION_FRESH, _PRECISION_PRETRAINED = 160.0, 24.0
# Pretraining takes about so many updates, within these bounds of its passes.
_UPDATES = 4500
_PASSES_PRETRAIN = (3, 30)


def pretraining(config: Config, rows: int) -> Config:
    """The config with the epochs of a pretraining on so many rows."""
    if config.pretrain.epochs is not None:
        return config
    low, high = _PASSES_PRETRAIN
    passes = min(max(math.ceil(_UPDATES * config.pretrain.batch_size / rows), low), high)
    return config.override({"pretrain.epochs": passes})


def finetuning(config: Config, strategy: Strategy, rows: int, pretrained: bool) -> Config:
    """The config with batch size, epochs and L2 of a finetuning.

    Args:
      config: The experiment.
      strategy: Whose values.
      rows: Training rows that have a label.
      pretrained: Whether it starts from a pretraining, whose ids L2 would otherwise wipe out.
    """
    low, high = _BATCHES
    fitted = {
        "batch_size": min(2 ** round(math.log2(min(max(rows / _UPDATES_A_PASS, low), high))), rows),
        "epochs": _PASSES,
        "l2_towards": "start" if pretrained else "zero",
        "l2": _significant((_PRECISION_PRETRAINED if pretrained else _PRECISION_FRESH) / rows),
    }
    given = dataclasses.asdict(getattr(config.finetune, strategy))
    return config.override(
        {f"finetune.{strategy}.{name}": value for name, value in fitted.items() if given[name] is None}
    )


def _significant(value: float) -> float:
    """To two digits, so that a stored config can be read."""
    return float(f"{value:.1e}")
