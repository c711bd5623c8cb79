"""alt-jax: aligning a CTR model with a language model, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alt_jax.scorer import Scorer

__version__ = "0.1.0"
__all__ = ["Scorer", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports JAX for `Scorer` when that is asked for, so that `alt-jax --help` stays quick."""
    if name == "Scorer":
        return importlib.import_module("alt_jax.scorer").Scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
