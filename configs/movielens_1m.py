"""MovieLens-1M. One switch chooses the text tower: `configs/movielens_1m.py:roberta-base`.

    alt-jax prepare  configs/movielens_1m.py --data.raw ml-1m.zip
    alt-jax pretrain configs/movielens_1m.py --run-dir runs/ml1m/pretrain
    alt-jax finetune configs/movielens_1m.py --strategy joint --init-from runs/ml1m/pretrain --run-dir runs/ml1m/joint

Variants: `tinybert` (the default), `minilm`, `distilbert`, `electra-small`, `modernbert`, `roberta-base`,
`roberta-large`, and `scratch`: a small BERT of our own with a trained vocabulary, which needs no download and serves
the ID-only baseline. The others are hub names; `--text.model FOLDER` takes a downloaded folder instead. Weights are
read from safetensors only: a hub model without them is refused, with the way to convert it. A dataset belongs to one
tokenizer, so `prepare` takes the same variant; each has a folder of its own.

Variant `table` is `scratch` with the recipe of `configs/movielens_100k.py`: pretraining by masked tabular modelling on
ids only, and what it leaves open is fitted to the number of labels. It has not been run on this data yet.

Variant `history` is `scratch` with two more fields: the 30 last movies that the row's user liked, and the 30 last that
they did not, from earlier rows of any split, as published baselines in order of time have them. It is for
`--strategy ctr`: the movies are spelled by their ids, and prompts run to 223 tokens.

Protocol: `--data.protocol time` (the default), `time_skip5`, `random` or `random_drop3`; each wants a `--data.dir` of
its own. What to expect: `prepare` takes seconds. The text towers need an accelerator; what was measured of MiniLM is in
docs/results.md. The ID-only baseline (`--strategy ctr --init-from none`, variant `scratch`) takes 3 to 5 minutes on two
cores: mean test AUC of three seeds 0.757 on `time`, 0.900 on `random_drop3` (there too).
"""

import dataclasses

from alt_jax.config import (
    Config,
    CTRConfig,
    DataConfig,
    FieldConfig,
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
from alt_jax.data.published import MOVIELENS

# Hub name and global pretraining batch: the paper's for TinyBERT and RoBERTa, that of its nearest in size for the rest.
TOWERS = {
    "tinybert": ("huawei-noah/TinyBERT_General_4L_312D", 1024),
    "minilm": ("sentence-transformers/all-MiniLM-L6-v2", 1024),
    "distilbert": ("distilbert/distilbert-base-uncased", 512),
    "electra-small": ("google/electra-small-discriminator", 1024),
    "modernbert": ("answerdotai/ModernBERT-base", 512),
    "roberta-base": ("FacebookAI/roberta-base", 512),
    "roberta-large": ("FacebookAI/roberta-large", 128),
    "scratch": ("", 1024),
    "table": ("", 512),
    "history": ("", 1024),
}
_LIKED = FieldConfig("liked", "Liked before", kind="sequence", of="movie_id", slots=30, past="all", outcome="positive")
_HISTORY = (_LIKED, dataclasses.replace(_LIKED, column="disliked", name="Disliked before", outcome="negative"))


def get_config(tower: str = "tinybert") -> Config:
    """The experiment with the named text tower."""
    model, batch_size = TOWERS[tower]
    config = Config(
        data=DataConfig(
            source="movielens_1m",
            dir=f"data/movielens_1m_{tower}",
            protocol="time",
            linked=MOVIELENS.sides,
            fields=(*MOVIELENS.fields, *_HISTORY) if tower == "history" else (),
        ),
        text=TextConfig(model=model, max_length=256 if tower == "history" else 100),
        ctr=CTRConfig(dropout=0.2),
        pretrain=PretrainConfig(batch_size=batch_size, epochs=30, learning_rate=1e-4, text_learning_rate=1e-4),
        finetune=FinetuneConfigs(
            ctr=FinetuneConfig(batch_size=1024, epochs=20, learning_rate=1e-3, l2=3e-4),
            plm=PLMConfig(batch_size=128, epochs=25, text_learning_rate=5e-5),
            joint=JointConfig(batch_size=128, epochs=25, text_learning_rate=5e-5, l2=3e-4),
        ),
    )
    if tower != "table":
        return config
    return dataclasses.replace(
        config,
        ctr=CTRConfig(tower="dcnv2", init_std=0.01),
        loss=LossConfig(icl=0.0, mlm=0.0),
        mtm=MTMConfig(with_text=False),
        mask=MaskConfig(unit="group", pairing="same", helper="masked"),
        pretrain=PretrainConfig(batch_size=batch_size, learning_rate=3e-3, weight_decay=1e-2, warmup=0.1),
        finetune=dataclasses.replace(config.finetune, ctr=FinetuneConfig(ema_decay=0.99)),
    )
