"""What a dataset was prepared with, and whether a config asks for the same."""

from typing import Any

from alt_jax.config import Config
from alt_jax.data.storage import CONFIG, place
from alt_jax.errors import InputError


def prepared_by(config: Config) -> dict[str, Any]:
    """The values that `prepare` reads, by their dotted names: configs that agree in them can share a dataset."""
    unread = {"data.dir", "data.memory_gib"} | ({"text.vocab_size"} if config.text.model else set())
    text = ("text.model", "text.vocab_size", "text.max_length")
    return {
        name: value
        for name, value in config.flat().items()
        if (name.startswith("data.") or name in text) and name not in unread
    }


def read_config(directory: str) -> Config:
    """What the dataset of a folder or URL was prepared with.

    Raises:
      InputError: It is missing or damaged.
    """
    where = place(directory)
    path = where / CONFIG
    try:
        return Config.from_json(where.local(CONFIG).read_text(encoding="utf-8"), path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error).rstrip('.')}); prepare again.") from None


def check_prepared(config: Config) -> None:
    """Refuses a config that its dataset was not prepared with: what differs would have no effect, yet be recorded.

    Where the raw rows lie may differ, and so may the text model, whose tokenizer `bridge.encoder_config` compares.

    Raises:
      InputError: They differ in something else; names the first value. Or the folder's config is missing or damaged.
    """
    found = prepared_by(read_config(config.data.dir))
    for name, wanted in prepared_by(config).items():
        if name in ("data.raw", "text.model") or name not in found or found[name] == wanted:
            continue
        if name == "data.unlabelled" and (not wanted or found[name]):
            continue
        if name in ("data.fields", "data.linked"):  # which no option sets
            raise InputError(
                f"{config.data.dir} was prepared with other {name}; use the config that it was prepared with, or "
                "prepare again."
            )
        raise InputError(
            f"{config.data.dir} was prepared with {name} = {found[name]!r}, not {wanted!r}; pass "
            f"--{name.replace('_', '-')} {found[name]}, or prepare again."
        )
