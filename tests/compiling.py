"""Whether XLA optimises what it compiles from here on."""

import contextlib
from collections.abc import Iterator

import jax

_FLAG = "jax_disable_most_optimizations"


@contextlib.contextmanager
def optimisations(on: bool) -> Iterator[None]:
    """Switches most of XLA's optimisations on or off, and back at the end.

    They change the last bits of a result, and what JAX keeps compiled does not know with which flag it was: programs
    of the other kind are dropped.
    """
    disabled = jax.config.read(_FLAG)
    _set_disabled(not on)
    try:
        yield
    finally:
        _set_disabled(disabled)


def _set_disabled(disabled: bool) -> None:
    if disabled != jax.config.read(_FLAG):
        jax.config.update(_FLAG, disabled)
        jax.clear_caches()
