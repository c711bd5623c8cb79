"""The protocols that `data.protocol` may name; `alt_jax.data.protocols` carries them out."""

from dataclasses import dataclass
from typing import Literal

from alt_jax.errors import InputError, choices


@dataclass(frozen=True)
class Protocol:
    """A preset. Which labels are positive is the data's scale (`RawData.positive_above`), not the preset's.

    Attributes:
      name: As in `data.protocol`.
      order: `time`: sorted by time, ties by the order of the file; `random`: shuffled; `items`, `users`: cold start,
        every item (or user) is in one split only, chosen by a hash of its id, in the order of the file; `given`: by a
        column or by files of one's own, in the order of the file.
      drop_labels: Rows with these labels are left out.
      skip_first: Each user's first so many rows, by time, are left out.
      fractions: Shares of train, valid and test; of the items or users for cold start, and then on average only.
      seed: Of the shuffle or the hash.
      aggregates: Statistics that the data's publisher took over all rows (`RawData.aggregates`): `train`: taken
        again over half of the training part; `no_aggregates`: left out; `all_time`: as published, test part included.
    """

    name: str
    order: Literal["time", "random", "items", "users", "given"]
    drop_labels: tuple[float, ...] = ()
    skip_first: int = 0
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    aggregates: Literal["train", "no_aggregates", "all_time"] = "train"

    @property
    def needs_time(self) -> bool:
        """Whether rows must have a time."""
        return self.order == "time" or self.skip_first > 0


_PRESETS = (
    Protocol("time", "time"),
    Protocol("random", "random"),
    Protocol("time_drop3", "time", drop_labels=(3.0,)),
    Protocol("random_drop3", "random", drop_labels=(3.0,)),
    # ReLLa's published preprocessing leaves out the rows whose user has fewer than five earlier ratings:
    # 1,000,209 - 5 * 6,040 = 970,009. It sorts by time, then user, then movie.
    Protocol("time_skip5", "time", skip_first=5),
    # BookCrossing and GoodReads write 0 for a book that was not rated: what is left is explicit.
    Protocol("random_drop0", "random", drop_labels=(0.0,)),
    Protocol("random_drop0_no_aggregates", "random", drop_labels=(0.0,), aggregates="no_aggregates"),
    Protocol("random_drop0_all_time", "random", drop_labels=(0.0,), aggregates="all_time"),
    Protocol("cold_items", "items"),
    Protocol("cold_users", "users"),
    Protocol("given", "given"),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PRESETS}


def get(name: str) -> Protocol:
    """The preset of that name.

    Raises:
      InputError: There is none; names the nearest and all known ones.
    """
    if name not in PROTOCOLS:
        raise InputError(f"Unknown data.protocol {name!r}; {choices(name, PROTOCOLS)}")
    return PROTOCOLS[name]
