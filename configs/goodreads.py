"""GoodReads with its 15 fields and a small BERT from random weights; `--text.model FOLDER` takes a real one.

    alt-jax prepare  configs/goodreads.py --data.raw FOLDER
    alt-jax pretrain configs/goodreads.py --run-dir runs/goodreads/pretrain
    alt-jax finetune configs/goodreads.py --strategy joint --init-from runs/goodreads/pretrain \
        --run-dir runs/goodreads/joint

FOLDER holds the seven files of the UCSD Book Graph that `alt_jax/data/sources/goodreads.py` names. Protocol
`random_drop0`: books on a shelf without a rating are left out, 8:1:1, a rating above 3 is positive; the average rating
and the number of reviews are taken again over half of training. `random_drop0_no_aggregates` leaves these two out,
`random_drop0_all_time` has them as published, which looks into the test part. Each wants a `--data.dir` of its own.

What to expect: nothing has been measured on the whole data, 228 million rows, of which some 104 million are rated. At
15 fields a row takes about 100 bytes of memory, so `prepare` wants a large machine; a `goodreads_interactions.csv` with
fewer lines is read as well, with a notice. Genres are one category; as a list they are
`FieldConfig("genres", kind="multi", separator=";", slots=10)` among `data.fields`.
"""

from alt_jax.config import (
    Config,
    CTRConfig,
    DataConfig,
    FinetuneConfig,
    FinetuneConfigs,
    JointConfig,
    PLMConfig,
    PretrainConfig,
    TextConfig,
)


def get_config() -> Config:
    """The experiment."""
    return Config(
        data=DataConfig(source="goodreads", dir="data/goodreads", protocol="random_drop0"),
        text=TextConfig(vocab_size=30_000, hidden=128, layers=2, heads=2, intermediate=512, max_length=180),
        ctr=CTRConfig(dropout=0.2),
        pretrain=PretrainConfig(batch_size=1024, epochs=10, learning_rate=1e-4, text_learning_rate=1e-4),
        finetune=FinetuneConfigs(
            ctr=FinetuneConfig(batch_size=1024, epochs=20, learning_rate=1e-3, l2=1e-4),
            plm=PLMConfig(batch_size=128, epochs=25, text_learning_rate=5e-5),
            # The paper's authors take no L2 for the joint strategy here.
            joint=JointConfig(batch_size=128, epochs=25, text_learning_rate=5e-5, l2=0.0),
        ),
    )
