"""Fixtures of the data tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from movielens_files import FOLDERS, Raw, make_raw

from alt_jax.config import Config, DataConfig, TextConfig


@pytest.fixture(params=list(FOLDERS))
def release(request: pytest.FixtureRequest) -> Raw:
    """A small release of each kind."""
    return make_raw(request.param)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """A config for a raw path: `config(source, raw, protocol=..., min_count=...)`."""

    def build(source: str, raw: Path, protocol: str = "random", min_count: int = 1, vocab_size: int = 300) -> Config:
        return Config(
            data=DataConfig(
                source=source, raw=str(raw), dir=str(tmp_path / "prepared"), protocol=protocol, min_count=min_count
            ),
            text=TextConfig(vocab_size=vocab_size),
        )

    return build
