"""MovieLens-100K with a text tower that fits two CPU cores: the three strategies and their baselines.

    alt-jax prepare  configs/movielens_100k.py --data.raw ml-100k.zip
    alt-jax pretrain configs/movielens_100k.py --run-dir runs/ml100k/pretrain
    alt-jax finetune configs/movielens_100k.py --strategy ctr --init-from runs/ml100k/pretrain --run-dir runs/ml100k/ctr
    alt-jax finetune configs/movielens_100k.py --strategy ctr --init-from none --run-dir runs/ml100k/ctr_baseline

Protocol `random`: 8:1:1, a rating above 3 is positive. `--data.protocol time` gives the time-ordered split; prepare it
into a `--data.dir` of its own. The text tower is a 2-layer, 64-wide BERT that starts from random weights, over a
WordPiece vocabulary of the training prompts; `--text.model FOLDER` takes a real one. What came out, and how long each
part took, is in docs/results.md.

Batch, rates, L2, lengths, masks and how long `joint` trains were chosen on the validation part. Masks hide all of a
user's fields or all of a movie's, from both towers: with less hidden, or with the other view whole, what is hidden can
be looked up (docs/results.md).
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
from alt_jax.data.published import MOVIELENS


def get_config() -> Config:
    """The experiment."""
    return Config(
        data=DataConfig(source="movielens_100k", dir="data/movielens_100k", protocol="random", linked=MOVIELENS.sides),
        # 56 tokens: one prompt in a hundred loses the end of its title or genres.
        text=TextConfig(vocab_size=4096, hidden=64, layers=2, heads=2, intermediate=256, dropout=0.0, max_length=56),
        ctr=CTRConfig(init_std=0.01),
        mask=MaskConfig(unit="group", pairing="same", helper="masked"),
        pretrain=PretrainConfig(
            batch_size=256,
            epochs=3,
            learning_rate=1e-3,
            text_learning_rate=1e-3,
            weight_decay=1e-2,
            warmup=0.1,
        ),
        finetune=FinetuneConfigs(
            ctr=FinetuneConfig(batch_size=1024, epochs=30, learning_rate=1e-3, l2=2e-3),
            plm=PLMConfig(batch_size=256, epochs=15, text_learning_rate=1e-3),
            joint=JointConfig(batch_size=256, epochs=15, learning_rate=1e-3, text_learning_rate=1e-4, l2=2e-3),
        ),
    )
