from alt_jax.config import *

def get_config():
    return Config(data=DataConfig(source="movielens_100k", raw="", dir="data/movielens_100k", protocol="random"),
        text=TextConfig(vocab_size=4096, hidden=64, layers=2, heads=2, intermediate=256),
    )
