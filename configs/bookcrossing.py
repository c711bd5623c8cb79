"""BookCrossing on two CPU cores: who reads what is learned first, then who likes it.

    alt-jax prepare  configs/bookcrossing.py --data.raw BX-CSV-Dump.zip
    alt-jax pretrain configs/bookcrossing.py --run-dir runs/bx/pretrain
    alt-jax finetune configs/bookcrossing.py --strategy ctr --init-from runs/bx/pretrain --run-dir runs/bx/ctr

Protocol `random`: 8:1:1, a rating of 5 or more is positive, and the implicit ones (0) are negatives;
`--data.protocol random_drop0` leaves the implicit ones out, `cold_items` and `cold_users` hold whole books or users out
of training. Each wants a `--data.dir` of its own. There are no times, so protocols in order of time are refused.

Variants: `table` (the default) pretrains by masked tabular modelling on ids alone: all of a reader's fields, or all of
a book's, are hidden and recovered from the other side, against sampled ids, since there are very many. `:text`
pretrains by all three losses, with the same masks and many times the time; its text tower is a 2-layer, 64-wide BERT
that starts from random weights. `--text.model FOLDER` takes a real one.

What to expect: `prepare` takes about 10 seconds for a third of the ratings, and says how many were kept without their
book. The recipe is that of `configs/movielens_100k.py`, and what is not set here is fitted to the number of labels
(`alt_jax/recipe.py`). With 5 % of the labels the pretraining is worth 0.057 test AUC (0.736 and 0.793, three seeds),
with all of them nothing yet seen: docs/results.md, whose appendix has what came out under an older recipe.
"""

from typing import Any

from alt_jax.config import (
    Config,
    CTRConfig,
    DataConfig,
    FinetuneConfig,
    FinetuneConfigs,
    JointConfig,
    LossConfig,
    MaskConfig,
    MTMConfig,
    PLMConfig,
    PretrainConfig,
    TextConfig,
)
from alt_jax.data.published import BOOKCROSSING

# What a variant changes.
VARIANTS: dict[str, dict[str, Any]] = {
    "table": {},
    "text": {
        **{"loss.icl": 1.0, "loss.mlm": 1.0, "mtm.with_text": True},
        **{"pretrain.epochs": 3, "pretrain.text_learning_rate": 1e-3},
    },
}


def get_config(variant: str = "table") -> Config:
    """The experiment with the named pretraining."""
    changed = VARIANTS[variant]
    config = Config(
        data=DataConfig(source="bookcrossing", dir="data/bookcrossing", protocol="random", linked=BOOKCROSSING.sides),
        # Of the third at hand, 88 tokens cut 525 of 344,760 prompts; they take 57 on average, and the longest 157.
        text=TextConfig(vocab_size=8192, hidden=64, layers=2, heads=2, intermediate=256, dropout=0.0, max_length=88),
        ctr=CTRConfig(tower="dcnv2", init_std=0.01),
        loss=LossConfig(icl=0.0, mlm=0.0),
        mtm=MTMConfig(method="sampled", noise=256, with_text=False),
        mask=MaskConfig(unit="group", pairing="same", helper="masked"),
        pretrain=PretrainConfig(batch_size=512, learning_rate=3e-3, weight_decay=1e-2, warmup=0.1),
        finetune=FinetuneConfigs(
            ctr=FinetuneConfig(ema_decay=0.99),
            plm=PLMConfig(batch_size=256, epochs=4, patience=2, text_learning_rate=1e-3),
            joint=JointConfig(batch_size=256, epochs=4, patience=2, learning_rate=1e-3, text_learning_rate=1e-4),
        ),
    )
    return config.override(changed)
