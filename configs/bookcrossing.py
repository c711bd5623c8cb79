"""BookCrossing with a text tower that fits two CPU cores.

    alt-jax prepare  configs/bookcrossing.py --data.raw BX-CSV-Dump.zip
    alt-jax pretrain configs/bookcrossing.py --run-dir runs/bx/pretrain
    alt-jax finetune configs/bookcrossing.py --strategy joint --init-from runs/bx/pretrain --run-dir runs/bx/joint

Protocol `random`: 8:1:1, a rating of 5 or more is positive, and the implicit ones (0) are negatives;
`--data.protocol random_drop0` leaves the implicit ones out, `cold_items` and `cold_users` hold whole books or users out
of training. Each wants a `--data.dir` of its own. There are no times, so protocols in order of time are refused.

What to expect: `prepare` takes about 10 seconds for a third of the ratings, and says how many were kept without their
book. What came out is in docs/results.md. `--text.model FOLDER` takes a real language model.

Masks hide all of the reader's fields or all of the book's, from both towers, and `joint` has the text tower's rate that
was chosen on MovieLens-100K; L2 was compared on validation.
"""

from alt_jax.config import (
    Config,
    CTRConfig,
    DataConfig,
    FinetuneConfig,
    FinetuneConfigs,
    JointConfig,
    MaskConfig,
    PLMConfig,
    PretrainConfig,
    TextConfig,
)
from alt_jax.data.published import BOOKCROSSING


def get_config() -> Config:
    """The experiment."""
    return Config(
        data=DataConfig(source="bookcrossing", dir="data/bookcrossing", protocol="random", linked=BOOKCROSSING.sides),
        # 88 tokens: the prompts of the third at hand take 81 at most and 56 on average.
        text=TextConfig(vocab_size=8192, hidden=64, layers=2, heads=2, intermediate=256, dropout=0.0, max_length=88),
        ctr=CTRConfig(dropout=0.2, init_std=0.01),
        mask=MaskConfig(unit="group", pairing="same", helper="masked"),
        pretrain=PretrainConfig(
            batch_size=256,
            epochs=1,
            learning_rate=1e-3,
            text_learning_rate=1e-3,
            weight_decay=1e-2,
            warmup=0.1,
        ),
        finetune=FinetuneConfigs(
            ctr=FinetuneConfig(batch_size=1024, epochs=20, learning_rate=1e-3, l2=1e-3),
            plm=PLMConfig(batch_size=256, epochs=4, patience=2, text_learning_rate=1e-3),
            joint=JointConfig(
                batch_size=256, epochs=4, patience=2, learning_rate=1e-3, text_learning_rate=1e-4, l2=1e-3
            ),
        ),
    )
