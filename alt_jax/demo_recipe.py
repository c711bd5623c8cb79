"""The experiment of `alt-jax demo`; apart from it, so that a config made of it imports neither JAX nor data."""

import dataclasses
from pathlib import Path
from typing import Final

from alt_jax.config import (
    Config,
    CTRConfig,
    DataConfig,
    FieldConfig,
    FinetuneConfig,
    FinetuneConfigs,
    ICLConfig,
    JointConfig,
    LossConfig,
    MaskConfig,
    MTMConfig,
    PLMConfig,
    PretrainConfig,
    TextConfig,
)

_COLUMNS = {
    "user_id": "user",
    "gender": "gender",
    "age": "age",
    "occupation": "occupation",
    "item_id": "item",
    "title": "title",
    "maker": "maker",
    "genre": "genre",
    "year": "year",
}
_SIDES = (("user_id", "gender", "age", "occupation"), ("item_id", "title", "maker", "genre", "year"))
# The CTR tower learns who sees what, by MTM on ids with all of a user's or all of an item's fields hidden, and ICL
# teaches that to the text tower; where ICL moves the CTR tower as well, less is left of it. Sizes and epochs are what
# minutes on two cores allow, chosen on validation.
RECIPE: Final = Config(
    data=DataConfig(
        source="table",
        protocol="time",
        fields=tuple(FieldConfig(column, name) for column, name in _COLUMNS.items()),
        label="label",
        timestamp="timestamp",
        user="user_id",
        item="item_id",
        linked=_SIDES,
    ),
    text=TextConfig(
        vocab_size=2048, hidden=48, layers=2, heads=2, intermediate=96, dropout=0.0, max_length=48, pooling="mean"
    ),
    ctr=CTRConfig(dim=16, init_std=1e-2, hidden=(64, 64), options=(("rank", 16),)),
    loss=LossConfig(mlm=0.0),
    icl=ICLConfig(locked="ctr"),
    mtm=MTMConfig(with_text=False),
    mask=MaskConfig(unit="group", pairing="same", helper="masked"),
    pretrain=PretrainConfig(batch_size=256, epochs=8, learning_rate=3e-3, text_learning_rate=1e-3, warmup=0.1),
    finetune=FinetuneConfigs(
        ctr=FinetuneConfig(ema_decay=0.99),
        plm=PLMConfig(batch_size=64, epochs=3, patience=1, learning_rate=1e-3, text_learning_rate=1e-3),
        joint=JointConfig(batch_size=64, epochs=3, patience=1, learning_rate=1e-3, text_learning_rate=1e-3),
    ),
)


def demo_config(folder: Path, seed: int = 0, recipe: Config = RECIPE) -> Config:
    """The demo's experiment, with its data in `folder`."""
    data = dataclasses.replace(recipe.data, raw=str(folder / "raw.parquet"), dir=str(folder / "prepared"))
    return dataclasses.replace(recipe, data=data, seed=seed)
