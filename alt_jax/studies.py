"""Studies: named lists of arms, each a few config values that differ. Data only; `alt_jax.ablate` runs them."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alt_jax.config import Strategy
from alt_jax.data import protocols
from alt_jax.data.sources.raw import nearest
from alt_jax.errors import InputError
from alt_jax.models import interactions

ALL: tuple[Strategy, ...] = ("ctr", "plm", "joint")


@dataclass(frozen=True)
class Arm:
    """One line of a study.

    Attributes:
      name: As in the table and in the names of folders.
      values: Config values by dotted name, for every stage.
      finetune: Further ones for finetuning alone: arms that differ only in these share a pretraining.
      pretrain: Whether finetuning starts from a pretraining.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    pretrain: bool = True


@dataclass(frozen=True)
class Study:
    """Arms, of which the first is what the others are compared with, and the strategies that they are judged by."""

    arms: tuple[Arm, ...]
    strategies: tuple[Strategy, ...] = ALL


def _losses() -> Study:
    names = ("icl", "mlm", "mtm")
    subsets = [chosen for n in (1, 2, 3) for chosen in itertools.combinations(names, n)]
    arms = [Arm("+".join(chosen), {f"loss.{name}": float(name in chosen) for name in names}) for chosen in subsets]
    return Study((Arm("none", pretrain=False), *arms))


def _weights() -> Study:
    grid = itertools.product((1.0, 0.3, 3.0), repeat=2)
    return Study(tuple(Arm(f"mlm={mlm:g},mtm={mtm:g}", {"loss.mlm": mlm, "loss.mtm": mtm}) for mlm, mtm in grid))


def _masking() -> Study:
    grid = itertools.product(("field", "group"), (0.15, 0.3, 0.5))
    return Study(tuple(Arm(f"{unit},{rate:g}", {"mask.unit": unit, "mask.rate": rate}) for unit, rate in grid))


def _temperature() -> Study:
    plain = [Arm(f"{t:g}", {"icl.temperature": t}) for t in (0.7, 0.2, 2.0, 7.0)]
    unit = [Arm(f"{t:g},unit", {"icl.temperature": t, "icl.normalize": True}) for t in (0.05, 0.1, 0.2)]
    return Study((*plain, *unit))


def _towers() -> Study:
    return Study(tuple(Arm(name, {"ctr.tower": name}, pretrain=False) for name in interactions.names()), ("ctr",))


def _text() -> Study:
    sizes = ((2, 128), (1, 64), (4, 256))
    arms = [
        Arm(f"{layers}x{width}", {"text.layers": layers, "text.hidden": width, "text.intermediate": 4 * width})
        for layers, width in sizes
    ]
    return Study(tuple(arms), ("plm", "joint"))


def _fusion() -> Study:
    kinds = [("free", 0.5), ("free", 0.0), ("sigmoid", 0.5), ("gated", 0.5), ("average", 0.5)]
    arms = [
        Arm(f"{kind},alpha={alpha:g}", finetune={"finetune.joint.fusion": kind, "finetune.joint.alpha": alpha})
        for kind, alpha in kinds
    ]
    return Study(tuple(arms), ("joint",))


def _protocols() -> Study:
    return Study(tuple(Arm(n, {"data.protocol": n}, pretrain=False) for n in protocols.PROTOCOLS), ("ctr",))


STUDIES: dict[str, Callable[[], Study]] = {
    "losses": _losses,
    "weights": _weights,
    "masking": _masking,
    "temperature": _temperature,
    "towers": _towers,
    "text": _text,
    "fusion": _fusion,
    "protocols": _protocols,
}


def get(name: str) -> Study:
    """The study of that name, or the one that a JSON file describes.

    A file holds `{"arm": {"loss.mlm": 0, …}, …}`; an arm with `"pretrain": false` starts from scratch, and values under
    `finetune.` hold for finetuning alone. The first arm is what the others are compared with.

    Raises:
      InputError: There is no such study; names the nearest. Or the file is missing or is something else.
    """
    if not name.endswith(".json"):
        if name not in STUDIES:
            raise InputError(f"there is no study {name!r}; {nearest(name, list(STUDIES))} A file ends in .json.")
        return STUDIES[name]()
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read as JSON ({error}); it should hold an object of arms.") from None
    if not isinstance(content, dict) or not content or not all(isinstance(arm, dict) for arm in content.values()):
        raise InputError(f'{name} should hold an object of arms, e.g. {{"base": {{}}, "no mlm": {{"loss.mlm": 0}}}}.')
    return Study(tuple(_arm(arm, values) for arm, values in content.items()))


def _arm(name: str, values: dict[str, Any]) -> Arm:
    pretrain = values.pop("pretrain", True)
    late = {key: value for key, value in values.items() if key.startswith("finetune.")}
    return Arm(name, {k: v for k, v in values.items() if k not in late}, late, bool(pretrain))
