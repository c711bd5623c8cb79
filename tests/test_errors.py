"""A name that does not exist is answered with those that do, each of them once."""

from collections.abc import Callable

import pytest

from alt_jax import presets, studies
from alt_jax.config import DataConfig
from alt_jax.data import protocols, sources
from alt_jax.errors import InputError
from alt_jax.models import interactions


@pytest.mark.parametrize(
    ("look_up", "near", "known"),
    [
        (protocols.get, "randon", list(protocols.PROTOCOLS)),
        (lambda name: sources.load(DataConfig(source=name)), "tabel", sources.names()),
        (presets.get, "papre", list(presets.PRESETS)),
        (studies.get, "loses", list(studies.STUDIES)),
        (interactions.options, "dcn_mx", interactions.names()),
    ],
    ids=["protocol", "source", "preset", "study", "tower"],
)
def test_an_unknown_name_is_answered_with_the_known_ones(look_up: Callable, near: str, known: list[str]) -> None:
    for name in (near, "qqqq"):
        with pytest.raises(InputError, match=repr(name)) as refused:
            look_up(name)
        said = str(refused.value)
        assert ("did you mean" in said) == (name == near)
        assert said.count(f"Known: {', '.join(known)}.") == 1
        assert said.count(", ".join(known)) == 1
