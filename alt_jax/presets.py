"""Named presets of the method: config values by their dotted names. Sizes of towers and data are no part of them."""

from typing import Any

from alt_jax.config import Config
from alt_jax.errors import InputError, choices

# Every option of the method at its default.
_METHOD = ("loss.", "icl.", "mlm.", "mtm.", "mask.", "finetune.joint.fusion", "finetune.joint.alpha")
_DEFAULT = {name: value for name, value in Config().flat().items() if name.startswith(_METHOD)}

# The published method and recipe, as far as they are known: arXiv 2310.19453 and the released code.
_PAPER = _DEFAULT | {
    "icl.duplicates": "negative",
    "mtm.method": "nce",
    "mtm.noise_from": "all",
    "pretrain.batch_size": 1024,
    "pretrain.epochs": 30,
    "pretrain.learning_rate": 1e-4,
    "pretrain.text_learning_rate": 1e-4,
    "pretrain.weight_decay": 1e-3,
    "pretrain.warmup": 0.0,
    "finetune.ctr.batch_size": 1024,
    "finetune.ctr.epochs": 20,
    "finetune.ctr.patience": 3,
    "finetune.ctr.learning_rate": 1e-3,
    # The released code adds 1e-3 Σw² to a sum over the batch; ours is a mean.
    "finetune.ctr.l2": 1e-3 / 1024,
    "finetune.ctr.l2_towards": "zero",
    "finetune.ctr.ema_decay": 0.0,
    "finetune.plm.batch_size": 128,
    "finetune.plm.epochs": 25,
    "finetune.plm.patience": 3,
    "finetune.plm.text_learning_rate": 5e-5,
    "finetune.plm.weight_decay": 1e-3,
    "finetune.joint.batch_size": 128,
    "finetune.joint.epochs": 25,
    "finetune.joint.patience": 3,
    "finetune.joint.learning_rate": 1e-3,
    "finetune.joint.text_learning_rate": 5e-5,
    "finetune.joint.weight_decay": 1e-3,
    "finetune.joint.l2": 1e-4,
    "finetune.joint.l2_towards": "zero",
}

# With the released code's quirks: ICL's gradient is divided by the 8 GPUs, α starts at 0, where the CTR tower has no
# joint gradient, and MTM's attention is neither scaled nor kept from padding.
_RELEASED_CODE = _PAPER | {"loss.icl": 0.125, "mtm.attention": "released", "finetune.joint.alpha": 0.0}

PRESETS: dict[str, dict[str, Any]] = {"default": _DEFAULT, "paper": _PAPER, "released_code": _RELEASED_CODE}


def get(name: str) -> dict[str, Any]:
    """The values of a preset, by their dotted names.

    Raises:
      InputError: There is no such preset; names the nearest.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; {choices(name, PRESETS)}")
    return dict(PRESETS[name])


def apply(config: Config, name: str) -> Config:
    """The config with the values of a preset; refuses an unknown one as `get` does."""
    return config.override(get(name))
