"""Studies: named lists of arms, each a few config values that differ. Data only; `alt_jax.ablate` runs them."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alt_jax import presets
from alt_jax.config import Strategy
from alt_jax.errors import InputError, choices, shortened

ALL: tuple[Strategy, ...] = ("ctr", "plm", "joint")


@dataclass(frozen=True)
class Arm:
    """One line of a study.

    Attributes:
      name: As in the table and in the names of folders.
      values: Config values by dotted name, for every stage.
      finetune: Further ones for finetuning alone: arms that differ only in these share a pretraining.
      pretrain: Whether finetuning starts from a pretraining.
      first: Values of a pretraining before that, which it starts from; they are set on top of the arm's. Empty: none.
      strategies: Those of the study that it takes part in; empty: all.
      mean_of: Nothing is trained: the mean of the probabilities of the study's first arm under these strategies.
      against: The arm that it is compared with; empty: the study's first.
      point: Where it lies in the study's figure: a curve, and the place on its x axis.
      baseline: A model of another library in place of ours (`alt_jax.baselines`); empty: none.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    pretrain: bool = True
    first: Mapping[str, Any] = field(default_factory=dict)
    strategies: tuple[Strategy, ...] = ()
    mean_of: tuple[Strategy, ...] = ()
    against: str = ""
    point: tuple[str, float] | None = None
    baseline: str = ""


@dataclass(frozen=True)
class Study:
    """Arms, and how they are judged.

    Attributes:
      arms: The first is what the others are compared with.
      strategies: That they are judged by.
      grid: By strategy, values under `finetune.STRATEGY.` that are chosen for every arm by the AUC on validation of its
        first seed; empty: none are.
    """

    arms: tuple[Arm, ...]
    strategies: tuple[Strategy, ...] = ALL
    grid: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)

    def points(self, arm: Arm, strategy: Strategy) -> list[dict[str, float]]:
        """The points of the grid, among which an arm's values under a strategy are chosen; none where they are not."""
        grid = {} if arm.baseline or arm.mean_of else self.grid.get(strategy, {})
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []

    def of(self, arm: Arm) -> tuple[Strategy, ...]:
        """The strategies that an arm is judged by."""
        return tuple(s for s in self.strategies if s in arm.strategies or not arm.strategies)

    def trained(self, arm: Arm) -> tuple[Strategy, ...]:
        """The strategies that an arm is trained under: of the first arm, also those that only a mean needs."""
        if arm.mean_of:
            return ()
        parts = [part for mean in self.arms if self.of(mean) for part in mean.mean_of] if arm is self.arms[0] else []
        return tuple(dict.fromkeys((*self.of(arm), *parts)))

    def only(self, names: Sequence[str]) -> "Study":
        """The study with some of its arms, in its own order.

        Raises:
          InputError: There is no such arm, or it is a mean and what it averages was not named.
        """
        known = [arm.name for arm in self.arms]
        for name in names:
            if name not in known:
                raise InputError(f"the study has no arm {name!r}; {choices(name, known)}")
        kept = tuple(arm for arm in self.arms if arm.name in names)
        means = [arm.name for arm in kept if arm.mean_of]
        if means and kept[0] is not self.arms[0]:
            raise InputError(f"arm {means[0]!r} is a mean of runs of arm {self.arms[0].name!r}; name that one as well.")
        return replace(self, arms=kept)


_NONE = Arm("no pretraining", pretrain=False)


def _only(*losses: str) -> dict[str, float]:
    return {f"loss.{name}": float(name in losses) for name in ("icl", "mlm", "mtm")}


def _losses() -> Study:
    names = ("icl", "mlm", "mtm")
    subsets = [chosen for n in (1, 2, 3) for chosen in itertools.combinations(names, n)]
    return Study((_NONE, *(Arm("+".join(chosen), _only(*chosen)) for chosen in subsets)))


def _baselines() -> Study:
    rates = (3e-4, 1e-3)
    grid: dict[str, dict[str, tuple[float, ...]]] = {
        "ctr": {"l2": (1e-4, 3e-4, 1e-3, 3e-3), "learning_rate": rates},
        "plm": {"text_learning_rate": rates},
        "joint": {"l2": (1e-4, 3e-4, 1e-3, 3e-3), "text_learning_rate": rates},
    }
    return Study(
        (
            _NONE,  # ID-only, text-only, and both without pretraining
            Arm("LR", baseline="logistic", strategies=("ctr",), pretrain=False),
            Arm("LightGBM", baseline="lightgbm", strategies=("ctr",), pretrain=False),
            Arm("ridge, ids and SVD", baseline="ridge", strategies=("ctr",), pretrain=False),
            Arm("SVD start", {"ctr.init": "svd"}, pretrain=False, strategies=("ctr", "joint")),
            Arm("MTM without text", {**_only("mtm"), "mtm.with_text": False}, strategies=("ctr", "joint")),
            Arm("average of the two", strategies=("joint",), mean_of=("ctr", "plm")),
            Arm("PTab", {**_only("mlm"), "mlm.unit": "token", "mlm.with_table": False}, strategies=("plm",)),
            Arm("CTR-BERT", finetune={"finetune.plm.towers": "two"}, pretrain=False, strategies=("plm",)),
            Arm("CTRL", _only("icl")),  # alignment by contrast alone
            Arm("MLM only", _only("mlm")),
            Arm("MTM only", {**_only("mtm"), "mtm.with_text": True}),
            Arm("ALT", {**_only("icl", "mlm", "mtm"), "mtm.with_text": True}),
        ),
        grid=grid,
    )


SHARES = (0.01, 0.05, 0.2, 1.0)


def _by_share(*arms: Arm) -> tuple[Arm, ...]:
    """Every arm with fewer and fewer labels to finetune by; each is compared with the first by as many."""
    found = []
    for share in SHARES:
        told = f"{100 * share:g} % of the labels"
        for arm in arms:
            found.append(
                replace(
                    arm,
                    name=f"{arm.name}, {told}",
                    finetune={"finetune.label_share": share},
                    against=f"{arms[0].name}, {told}",
                    point=(arm.name, share),
                )
            )
    return tuple(found)


def _labels() -> Study:
    """The config's pretraining and its controls."""
    svd = replace(_NONE, name="SVD start", values={"ctr.init": "svd"})
    ridge = replace(_NONE, name="ridge, ids and SVD", baseline="ridge")
    return Study(_by_share(_NONE, Arm("pretrained"), svd, ridge), ("ctr",))


def _views() -> Study:
    """Does the text add? Pretrainings that read it beside one that does not, of as many passes and of all it needs."""
    ids: dict[str, Any] = {**_only("mtm"), "mtm.with_text": False}
    long = {**ids, "pretrain.epochs": None}
    without: tuple[Strategy, ...] = ("ctr", "joint")  # there is no text tower to start `plm` from
    return Study(
        _by_share(
            _NONE,
            Arm("MTM without text", ids, strategies=without),
            Arm("MTM without text, long", long, strategies=without),
            Arm("MTM without text, long, then LiT", {**_only("icl"), "icl.locked": "ctr"}, first=long),
            Arm("MTM with text", {**ids, "mtm.with_text": True}),
            Arm("ICL", _only("icl")),
            Arm("MLM and MTM", {**_only("mlm", "mtm"), "mtm.with_text": True}),
            Arm("all three", {**_only("icl", "mlm", "mtm"), "mtm.with_text": True}),
        )
    )


def _weights() -> Study:
    grid = itertools.product((1.0, 0.3, 3.0), repeat=2)
    return Study(tuple(Arm(f"mlm={mlm:g},mtm={mtm:g}", {"loss.mlm": mlm, "loss.mtm": mtm}) for mlm, mtm in grid))


def _masking() -> Study:
    grid = itertools.product(("field", "group"), (0.15, 0.3, 0.5))
    apart = {"mask.pairing": "independent", "mask.helper": "whole"}
    rates = [Arm(f"{unit},{rate:g}", {"mask.unit": unit, "mask.rate": rate, **apart}) for unit, rate in grid]
    paired = itertools.product(("same", "complementary"), ("whole", "masked"))
    pairs = [
        Arm(f"group,{pairing},{helper}", {"mask.unit": "group", "mask.pairing": pairing, "mask.helper": helper})
        for pairing, helper in paired
    ]
    return Study((*rates, *pairs))


def _icl() -> Study:
    unit = {"icl.normalize": True, "icl.temperature": 0.07}
    return Study(
        (
            Arm("equal rows are positives"),
            Arm("plain", {"icl.duplicates": "negative"}),
            Arm("same user left out", {"icl.leave_out": ("user",)}),
            Arm("same item left out", {"icl.leave_out": ("item",)}),
            Arm("same user or item left out", {"icl.leave_out": ("user", "item")}),
            Arm("unit, 0.07", unit),
            Arm("unit, learned from 0.07", {**unit, "icl.learn_temperature": True}),
            Arm("sigmoid", {**unit, "icl.temperature": 0.1, "icl.learn_temperature": True, "icl.objective": "sigmoid"}),
        )
    )


def _mlm() -> Study:
    # Single tokens belong to no field that MTM could hide as well.
    arms = [Arm(unit, {"mlm.unit": unit, "mask.pairing": "independent"}) for unit in ("field", "span", "token")]
    without = {"mlm.unit": "field", "mlm.with_table": False, "mask.pairing": "independent"}
    return Study((*arms, Arm("field, without the table", without)))


def _mtm() -> Study:
    methods = [Arm(method, {"mtm.method": method}) for method in ("softmax", "sampled", "nce", "rfd")]
    return Study((*methods, Arm("nce, noise of all fields", {"mtm.method": "nce", "mtm.noise_from": "all"})))


def _presets() -> Study:
    """The presets' method; the recipe stays the config's, or a preset's many epochs would decide."""
    recipe = ("pretrain.", "finetune.ctr", "finetune.plm", "finetune.joint")
    keep = ("finetune.joint.fusion", "finetune.joint.alpha")
    arms = []
    for name, values in presets.PRESETS.items():
        method = {key: value for key, value in values.items() if key in keep or not key.startswith(recipe)}
        late = {key: method.pop(key) for key in keep}
        arms.append(Arm(name, method, late))
    return Study(tuple(arms))


def _temperature() -> Study:
    plain = [Arm(f"{t:g}", {"icl.temperature": t}) for t in (0.7, 0.2, 2.0, 7.0)]
    unit = [Arm(f"{t:g},unit", {"icl.temperature": t, "icl.normalize": True}) for t in (0.05, 0.1, 0.2)]
    return Study((*plain, *unit))


def _towers() -> Study:
    from alt_jax.models import interactions  # noqa: PLC0415 - JAX, which no other study needs

    # The config's options are one tower's own; here every tower has its defaults.
    arms = [Arm(name, {"ctr.tower": name, "ctr.options": ()}, pretrain=False) for name in interactions.names()]
    return Study(tuple(arms), ("ctr",))


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
    # Those of any data with times, a user and an item; others want ratings of 3, or of 0, to leave out.
    names = ("random", "time", "time_skip5", "cold_items", "cold_users")
    return Study(tuple(Arm(name, {"data.protocol": name}, pretrain=False) for name in names), ("ctr",))


STUDIES: dict[str, Callable[[], Study]] = {
    "baselines": _baselines,
    "losses": _losses,
    "labels": _labels,
    "views": _views,
    "weights": _weights,
    "masking": _masking,
    "icl": _icl,
    "mlm": _mlm,
    "mtm": _mtm,
    "temperature": _temperature,
    "towers": _towers,
    "text": _text,
    "fusion": _fusion,
    "protocols": _protocols,
    "presets": _presets,
}


def get(name: str) -> Study:
    """The study of that name, or the one that a JSON file describes.

    A file holds `{"arm": {"loss.mlm": 0, …}, …}`; an arm with `"pretrain": false` starts from scratch, one with
    `"first": {…}` pretrains from an earlier pretraining with those values, `"preset": NAME` takes a preset's values,
    `"strategies": […]` restricts it to some, and values under `finetune.` hold for finetuning alone. The first arm is
    what the others are compared with. Seeds are not an arm's.

    Raises:
      InputError: There is no such study; names the nearest. Or the file is missing or is something else; names the arm.
    """
    if not name.endswith(".json"):
        if name not in STUDIES:
            raise InputError(f"there is no study {name!r}; {choices(name, STUDIES)} Or name a .json file.")
        return STUDIES[name]()
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{name} cannot be read as JSON ({error}); it should hold an object of arms.") from None
    if not isinstance(content, dict) or not content or not all(isinstance(arm, dict) for arm in content.values()):
        raise InputError(f'{name} should hold an object of arms, e.g. {{"base": {{}}, "no mlm": {{"loss.mlm": 0}}}}.')
    arms = []
    for arm, values in content.items():
        with refusing(f"{name}: arm {arm!r}"):
            arms.append(_arm(arm, values))
    return Study(tuple(arms))


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Says in what is refused inside where it is: a study has many arms, most of them with the same values."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{shortened(where)}: {error}") from None


def _arm(name: str, content: dict[str, Any]) -> Arm:
    values = dict(content)
    pretrain, chosen, first = values.pop("pretrain", True), values.pop("strategies", []), values.pop("first", {})
    if not isinstance(pretrain, bool):
        raise InputError(f"pretrain should be true or false, not {pretrain!r}.")
    if not isinstance(chosen, list):
        raise InputError(f"strategies should be a list of {', '.join(ALL)}, not {chosen!r}.")
    for strategy in chosen:
        if strategy not in ALL:
            raise InputError(f"there is no strategy {strategy!r}; {choices(str(strategy), ALL)}")
    if not isinstance(first, dict) or (first and not pretrain):
        raise InputError(f"first should be the values of a pretraining before the arm's own, not {first!r}.")
    if "seed" in values or "seed" in first:
        raise InputError("seed cannot be an arm's, since every arm runs with the same seeds; --seeds says how many.")
    if "preset" in values:
        values = presets.get(str(values.pop("preset"))) | values
    late = {key: value for key, value in values.items() if key.startswith("finetune.")}
    own = {key: value for key, value in values.items() if key not in late}
    return Arm(name, own, late, pretrain, first, tuple(chosen))
