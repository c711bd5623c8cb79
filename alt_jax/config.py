"""The configuration: frozen dataclasses, checked when they are made, plain JSON when they are stored.

A config file is a Python module with `get_config() -> Config`. Any value can be overridden on the command line under
its dotted name, e.g. `--loss.mlm 0`. A name that does not exist is refused and the nearest one is named.
"""

import codecs
import dataclasses
import difflib
import inspect
import json
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic import Field as Constrained
from pydantic.dataclasses import dataclass

from alt_jax.errors import InputError, shortened

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Rate = Annotated[float, Constrained(ge=0, lt=1)]
Seed = Annotated[int, Constrained(ge=0, lt=2**32)]  # jax.random.key would wrap a larger one around
Weight = Annotated[float, Constrained(ge=0)]
Strategy = Literal["ctr", "plm", "joint"]
# Pairs, since a config is hashable; a mapping may be given.
Options = Annotated[
    tuple[tuple[str, int | float | str], ...],
    BeforeValidator(lambda value: tuple(value.items()) if isinstance(value, Mapping) else value),
    AfterValidator(lambda pairs: tuple(sorted(pairs))),
]


# Which kinds of fields read an option.
_KIND_OPTIONS = {
    **dict.fromkeys(("separator", "slots"), ("multi", "sequence")),
    **dict.fromkeys(("of", "spelled", "past", "outcome"), ("sequence",)),
    "bins": ("numeric",),
    **dict.fromkeys(("max_ids", "hash_buckets"), ("category", "multi")),
    "type": ("category", "multi", "text"),
}


@dataclass(frozen=True, config=_STRICT)
class FieldConfig:
    """One field.

    Attributes:
      column: Its name in the file.
      name: Its name in the prompt; the column's name if empty.
      kind: `category`; `numeric`: quantile bins, and the number itself where the tower takes it; `multi`: a list;
        `sequence`: the last items of the row's user, newest first, from rows strictly earlier in time (the column is
        read by `predict` only); `text`: for the text tower alone.
      separator: Between the values of a list that the file stores as one string (`multi`, `sequence`).
      slots: Values that are kept of a list at most (`multi`, `sequence`).
      bins: Quantile bins at most (`numeric`).
      of: Column of the item (`sequence`).
      spelled: Column that spells an item in the prompt, e.g. its title (`sequence`); the item's own if empty.
      past: Whose rows a `sequence` may hold: `train`: the training part's only, so that no label of the validation or
        test part is ever an input; `all`: earlier rows of any split, which is what a live system would know when
        it serves the row only where the protocol is in order of time. Published baselines with histories often do so.
      outcome: Which rows: `positive`: clicked; `negative`: not clicked; `any`.
      max_ids: Only so many values, the most frequent of training, have a feature id of their own; 0 for no such cap
        (`category`, `multi`).
      hash_buckets: A value is replaced by the number of its bucket, one of so many, for a field whose values have no
        bound; 0 for none (`category`, `multi`). See `alt_jax.data.spelling.bucketed`.
      type: What its values are: `string`, `number`, `boolean` or `time`, which decides how they are spelled
        (`alt_jax.data.spelling`); empty: what all of the column's values turn out to be (`category`, `multi`, `text`).
      in_prompt: Whether the prompt spells it. An opaque id tells a language model nothing, and costs tokens.
    """

    column: str
    name: str = ""
    kind: Literal["category", "numeric", "multi", "sequence", "text"] = "category"
    separator: str = "|"
    slots: PositiveInt = 8
    bins: PositiveInt = 32
    of: str = ""
    spelled: str = ""
    past: Literal["train", "all"] = "train"
    outcome: Literal["positive", "negative", "any"] = "positive"
    max_ids: Annotated[int, Constrained(ge=0)] = 0
    hash_buckets: Annotated[int, Constrained(ge=0)] = 0
    type: Literal["", "string", "number", "boolean", "time"] = ""
    in_prompt: bool = True

    def __post_init__(self) -> None:
        """Refuses what the field's kind does not read, and two bounds at once."""
        default = {field.name: field.default for field in dataclasses.fields(FieldConfig)}
        for name, kinds in _KIND_OPTIONS.items():
            if self.kind not in kinds and getattr(self, name) != default[name]:
                raise ValueError(f"{name} of field {self.column!r} has no effect on kind {self.kind!r}; leave it out")
        if self.max_ids and self.hash_buckets:
            raise ValueError(f"hash_buckets of field {self.column!r} bound its ids already; leave max_ids out")
        if not self.separator:
            raise ValueError(f"separator of field {self.column!r} is empty; give what stands between two values")


@dataclass(frozen=True, config=_STRICT)
class CSVConfig:
    """How CSV files are read, where it is not found out from them.

    Attributes:
      separator: Between columns, one character or `tab`; empty: by the file's name, or else the one of , ; | and tab
        that gives the columns which are wanted.
      quote: Around values that hold separators or line breaks, one character, or `none`: quotes are like any other
        character; empty: double quotes, or none where they would swallow lines.
      encoding: Of the text, as Python calls it.
      decimal: What stands before the decimals of a number.
    """

    separator: str = ""
    quote: str = ""
    encoding: str = "utf-8"
    decimal: Literal[".", ","] = "."

    def __post_init__(self) -> None:
        """Takes `tab` for what it means, and refuses what is no character and no encoding."""
        if self.separator in ("tab", "\\t"):
            object.__setattr__(self, "separator", "\t")
        if len(self.separator) > 1 or self.separator in ('"', "\n"):
            raise ValueError(f"data.csv.separator {self.separator!r} should be one character, or tab")
        if self.quote != "none" and len(self.quote) > 1:
            raise ValueError(f"data.csv.quote {self.quote!r} should be one character, or none")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"data.csv.encoding {self.encoding!r} is no encoding that Python knows") from None


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Where rows come from and how they are labelled and split.

    Attributes:
      source: `movielens_100k`, `movielens_1m`, `bookcrossing`, `goodreads` or `table` (your own).
      raw: Original zip or its unpacked folder; of a `table` its file, a folder of parts, or a pattern like
        `clicks-*.csv.gz`.
      csv: How CSV files of a `table` are read.
      valid, test: Tables of the validation and the test part, where `raw` holds the training part alone.
      split: Column that says `train`, `valid` or `test` of every row (`table`); protocol `given` goes by it.
      unlabelled: A second table of rows whose label nobody knows, of the same columns without it, for `table`:
        pretraining learns from them beside the training part, finetuning does not see them.
      dir: The prepared dataset: a folder, or a URL that fsspec knows, e.g. `gs://bucket/clicks`.
      protocol: A named preset of `alt_jax.data.protocols`: how rows are filtered, labelled, ordered and split.
      fields: Columns to use, in prompt order. Needed for `table`; empty means a known source's own fields.
      label: Column of the label or rating (`table`).
      positive_above: Labels above this are positive; replaces the data's own threshold when given. An own table whose
        labels are not only 0 and 1 needs it.
      timestamp: Column that time-ordered protocols sort by (`table`).
      user, item: Columns for GAUC, for items unseen in training, for histories and for cold-start protocols (`table`);
        they need not be among the fields.
      linked: Groups of columns that give one another away, such as an id and its title, for `mask.unit group`. Empty: a
        known source's own, which hold identical fields only; an own table's has none.
      min_count: A value seen fewer times in training shares the field's out-of-vocabulary id.
      shard_rows: Rows of a shard, the files that a split is written in.
      memory_gib: What the training rows may take of memory, in GiB, shuffled order included. Where they take more, they
        are shuffled within windows of shards that fit half of it (`docs/data.md`).
    """

    source: str = "table"
    raw: str = ""
    csv: CSVConfig = CSVConfig()
    valid: str = ""
    test: str = ""
    split: str | None = None
    unlabelled: str = ""
    dir: str = ""
    protocol: str = "random"
    fields: tyro.conf.Suppress[tuple[FieldConfig, ...]] = ()
    label: str = "label"
    positive_above: float | None = None
    timestamp: str | None = None
    user: str | None = None
    item: str | None = None
    linked: tyro.conf.Suppress[tuple[tuple[str, ...], ...]] = ()
    min_count: PositiveInt = 1
    shard_rows: PositiveInt = 1 << 22
    memory_gib: PositiveFloat = 4.0


@dataclass(frozen=True, config=_STRICT)
class TextConfig:
    """The text tower.

    Attributes:
      model: A Hugging Face folder or hub name (config, tokenizer, safetensors weights). Empty: a BERT of the sizes
        below that starts from random weights, with a WordPiece vocabulary trained on the training part's prompts.
      vocab_size, hidden, layers, heads, intermediate, dropout: Sizes of that BERT; unused when `model` is given.
      init: Where the tower starts: `weights`: those of `model` (there are none if it is empty); `scratch`: random,
        with the architecture and the tokenizer of `model` all the same.
      max_length: Upper bound on prompt tokens. A longer prompt is cut to it, from its longest values; no other is.
      pooling: What `plm`, `joint` and ICL read of a prompt: the state of its first token, [CLS] (`cls`), or the mean of
        the states of its tokens (`mean`, as sentence-transformers do), by which rows differ from the first step on.
      dtype: Precision of the tower's arithmetic. Parameters, softmaxes and losses are always float32.
      remat: Whether the backward pass computes every layer again instead of keeping what is inside: less memory, for
        about a third more time.
    """

    model: str = ""
    vocab_size: PositiveInt = 4096
    hidden: PositiveInt = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    intermediate: PositiveInt = 512
    dropout: Rate = 0.1
    init: Literal["weights", "scratch"] = "weights"
    max_length: PositiveInt = 128
    pooling: Literal["cls", "mean"] = "cls"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclass(frozen=True, config=_STRICT)
class CTRConfig:
    """The CTR tower: one embedding table shared by all fields, then the named interaction model.

    Attributes:
      tower: A name from `alt-jax list towers`.
      dim: Embedding width.
      init_std: Standard deviation of the embedding's normal initialiser.
      init: Where the embeddings of users and items start: `random`, or `svd`: factors of which user has which item in
        the training part, for which no label is looked at; `data.user` and `data.item` name them. What is taken over
        from a pretraining (`--init-from`) stays as it is.
      hidden: Widths of the deep part, where the tower has one.
      dropout: Dropout of the deep part, where the tower has one; None: none, but in a finetuning by few labels
        (`alt_jax.recipe`).
      history: How a `sequence` field is pooled: `mean`, or `din`: attention to it from the row's item.
      options: The tower's own options, e.g. `{"layers": 3}`; its module's docstring lists them.
    """

    tower: str = "dcn_mix"
    dim: PositiveInt = 32
    init_std: PositiveFloat = 1e-4
    init: Literal["random", "svd"] = "random"
    hidden: tuple[PositiveInt, ...] = (300, 300, 128)
    dropout: Rate | None = None
    history: Literal["mean", "din"] = "mean"
    options: Options = ()


@dataclass(frozen=True, config=_STRICT)
class LossConfig:
    """Weights of the three pretraining losses. A weight of 0 removes that term's computation from the program."""

    icl: Weight = 1.0
    mlm: Weight = 1.0
    mtm: Weight = 1.0


@dataclass(frozen=True, config=_STRICT)
class ICLConfig:
    """Instance-level contrast.

    Attributes:
      objective: `infonce`: softmax over the batch, both ways (the paper); `sigmoid`: every pair by itself, with a
        learned bias (SigLIP, arXiv 2303.15343).
      dim: Width of the space in which both views of a row meet.
      temperature: Divides the similarities.
      learn_temperature: Whether it is learned, from there on; similarities are multiplied by 100 at most.
      normalize: Whether vectors are scaled to unit length; 0.7 suits unnormalised vectors, about 0.07 unit ones.
      duplicates: What an equal row elsewhere in the batch is: a further positive, left out, or a negative.
      leave_out: Rows of the same user, of the same item, or both, which are no negatives of each other.
      locked: A tower that ICL does not move, so that the other is fitted to it (LiT, arXiv 2111.07991): with `ctr`,
        what MTM has learned of who clicks what is taught to the text tower, and nothing is lost of it.
      chunk: Rows of the similarity matrix that are in memory at a time; 0: all of them.
      dropout: Dropout inside the projection heads.
    """

    objective: Literal["infonce", "sigmoid"] = "infonce"
    dim: PositiveInt = 128
    temperature: PositiveFloat = 0.7
    learn_temperature: bool = False
    normalize: bool = False
    duplicates: Literal["positive", "ignore", "negative"] = "positive"
    leave_out: tuple[Literal["user", "item"], ...] = ()
    locked: Literal["none", "ctr", "text"] = "none"
    chunk: Annotated[int, Constrained(ge=0)] = 0
    dropout: Rate = 0.2

    def __post_init__(self) -> None:
        """Refuses a temperature beyond the clamp."""
        if self.learn_temperature and self.temperature < 0.01:
            raise ValueError(
                f"icl.temperature {self.temperature:g} is below 0.01, where a learned one is clamped; start higher"
            )


@dataclass(frozen=True, config=_STRICT)
class MLMConfig:
    """Masked language modelling.

    Attributes:
      unit: What is hidden: `field`: the values of some fields, token by token; `span`: the same, but a whole value
        behind one mask, so that its length does not show; `token`: single tokens of any value.
      with_table: Whether the row's CTR representation helps; without, this is the plain MLM of BERT on the prompts.
      dropout: Dropout inside the head.
    """

    unit: Literal["field", "span", "token"] = "field"
    with_table: bool = True
    dropout: Rate = 0.2


@dataclass(frozen=True, config=_STRICT)
class MTMConfig:
    """Masked tabular modelling.

    Attributes:
      method: `softmax` over the masked field's own ids; `sampled`: softmax over the true id and noise, with log-Q
        correction, for fields of very many ids; `nce`: the true id against noise, one by one; `rfd`: ids are replaced
        by those of other rows instead of masked, and the replaced ones are to be found.
      dim: Width of the output table.
      noise: Noise samples per masked value (`nce`) or per field (`sampled`).
      noise_from: Whose unigram counts noise is drawn by: the `field`'s own, or `all` fields' (the released code).
      attention: To the tokens: `scaled`, padding left out; or neither, as `released`.
      with_text: Whether the row's prompt helps; without, and without ICL and MLM, there is no text tower at all
        (MAP's masked feature prediction, arXiv 2308.01737).
    """

    method: Literal["softmax", "sampled", "nce", "rfd"] = "softmax"
    dim: PositiveInt = 32
    noise: PositiveInt = 25
    noise_from: Literal["field", "all"] = "field"
    attention: Literal["scaled", "released"] = "scaled"
    with_text: bool = True


@dataclass(frozen=True, config=_STRICT)
class MaskConfig:
    """Masking.

    Attributes:
      rate: Share of the units that is masked, at least one; with `mlm.unit token`, of the tokens.
      unit: `field`: each field by itself; `group`: linked fields (an id and its title) go together.
      pairing: Which units MLM and MTM hide: `independent` ones, the `same`, or `complementary`, never the same.
      helper: What helps to recover them: the other view of the row `whole`, or `masked` as its own loss masks it. With
        `same` and `group` an id and its title are then hidden on both sides.
    """

    rate: Annotated[float, Constrained(gt=0, lt=1)] = 0.15
    unit: Literal["field", "group"] = "field"
    pairing: Literal["independent", "same", "complementary"] = "independent"
    helper: Literal["whole", "masked"] = "whole"


Tables = Literal["adam", "lazy_adam", "lazy_adagrad"]
Nonfinite = Literal["stop", "skip"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
# Values that are fitted where they are None (`alt_jax.recipe`).
FITTED = re.compile(r"ctr\.dropout|pretrain\.epochs|finetune\.(ctr|plm|joint)\.(batch_size|epochs|l2|l2_towards)")
# Values that may change when a run goes on: where parameters lie moves numbers by rounding only, and where the metrics
# are shown and where the data lie moves none (that it is the same dataset, its schema says).
FREE = ("sharding.", "tracking", "data.dir", "data.raw")


@dataclass(frozen=True, config=_STRICT)
class PretrainConfig:
    """Pretraining: AdamW with a cosine to 0.

    Attributes:
      batch_size: Global batch over all devices; the contrastive loss spans it.
      microbatches: Parts of a batch that go through the towers one after the other, in that much less memory and with
        one more forward pass; whatever their number, the loss is that of the whole batch and the update the same.
      epochs: Passes over the training part; None: as many as it takes to learn something (`alt_jax.recipe`).
      learning_rate: Of everything but the text tower.
      text_learning_rate: Of the text tower.
      weight_decay: Decoupled, on matrices only (not on biases, layer norms or embedding tables).
      tables: How the CTR tower's table of ids is updated: `adam`: every row at every step; `lazy_adam`: only the rows
        that the batch holds; `lazy_adagrad`: the same, with one accumulator a row.
      warmup: Share of the steps over which the learning rate rises.
      checkpoint_every: Steps between checkpoints besides the one at each epoch's end; 0 for none.
    """

    batch_size: PositiveInt = 1024
    microbatches: PositiveInt = 1
    epochs: PositiveInt | None = None
    learning_rate: PositiveFloat = 1e-4
    text_learning_rate: PositiveFloat = 1e-4
    weight_decay: Weight = 1e-3
    tables: Tables = "adam"
    warmup: Rate = 0.0
    checkpoint_every: Annotated[int, Constrained(ge=0)] = 0


@dataclass(frozen=True, config=_STRICT)
class FinetuneConfig:
    """One finetuning strategy.

    What is None is fitted to how many rows have a label and to whether the run starts from a pretraining
    (`alt_jax.recipe`); `config.json` of the run folder says to what.

    Attributes:
      batch_size: Global batch over all devices.
      epochs: At most this many passes; stops early on validation AUC.
      patience: Epochs without a better validation AUC before stopping.
      learning_rate: Of everything but the text tower (Adam).
      text_learning_rate: Of the text tower (AdamW).
      weight_decay: Decoupled, on the text tower's matrices.
      l2: Times the squared distance of all embeddings and first-order weights from `l2_towards`; its gradient is added
        to that of the loss.
      l2_towards: `zero`, or `start`: where the run started, which after a pretraining is what it has learned; None:
        `start` after one where `l2` is None, too, and else `zero`.
      ema_decay: Decay of an exponential mean of all parameters over the updates, which is what is validated, kept and
        served in place of the last ones; 0: there is none. In lazy tables a row's mean moves when the row does.
      tables: How embeddings and first-order weights are updated: `adam`: every row at every step; `lazy_adam`: only the
        rows that the batch holds, which only then feel L2 too; `lazy_adagrad`: the same, with one accumulator a row.
    """

    batch_size: PositiveInt | None = None
    epochs: PositiveInt | None = None
    patience: PositiveInt = 3
    learning_rate: PositiveFloat = 1e-3
    text_learning_rate: PositiveFloat = 5e-5
    weight_decay: Weight = 1e-3
    l2: Weight | None = None
    l2_towards: Literal["zero", "start"] | None = None
    ema_decay: Rate = 0.0
    tables: Tables = "adam"


@dataclass(frozen=True, config=_STRICT)
class PLMConfig(FinetuneConfig):
    """The language model alone.

    Attributes:
      towers: `one` reads the whole prompt; or `two`: the first reads the fields before the item, the second those from
        the item on, and a network joins them (CTR-BERT).
    """

    towers: Literal["one", "two"] = "one"


@dataclass(frozen=True, config=_STRICT)
class JointConfig(FinetuneConfig):
    """Both towers.

    Attributes:
      fusion: How the logits mix, α · logit_c + (1 − α) · logit_t: `free`: α a learned number; `sigmoid`: α = σ(a), so
        within 0 and 1; `gated`: α = σ(w·[h_c, h_t] + b), one for every row; `average`: α = ½, not learned.
      alpha: Where α starts (`average` has no use for it).
    """

    fusion: Literal["free", "sigmoid", "gated", "average"] = "free"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Refuses what the fusion cannot start from."""
        if self.fusion in ("sigmoid", "gated") and not 0 < self.alpha < 1:
            raise ValueError(
                f"finetune.joint.alpha {self.alpha:g} must lie between 0 and 1 where fusion is {self.fusion!r}"
            )
        if self.fusion == "average" and self.alpha != 0.5:
            raise ValueError(
                f"finetune.joint.alpha {self.alpha:g} has no effect where fusion is 'average'; leave it at 0.5"
            )


@dataclass(frozen=True, config=_STRICT)
class FinetuneConfigs:
    """The three strategies, each with its own recipe.

    Attributes:
      label_share: Which of the training rows' labels are known: up to 1, that share of them; above, that number. They
        are drawn by the seed. Pretraining looks at no labels and has all rows.
    """

    label_share: PositiveFloat = 1.0
    ctr: FinetuneConfig = FinetuneConfig()
    plm: PLMConfig = PLMConfig(batch_size=128, epochs=25)
    joint: JointConfig = JointConfig(batch_size=128, epochs=25)

    def __post_init__(self) -> None:
        """Refuses a number of rows that is none."""
        if self.label_share > 1 and self.label_share % 1:
            raise ValueError(
                f"finetune.label_share {self.label_share:g} is above 1, hence a number of rows, and not a whole one"
            )


@dataclass(frozen=True, config=_STRICT)
class ShardingConfig:
    """What every device has a copy of, and what is split over all devices. A run depends on it by rounding only.

    Attributes:
      tables: The tables of ids and their optimiser state: `split` by rows where they are too large for a device.
      text: The text tower, MLM's head and their optimiser state: `split`, every matrix along its longest axis (FSDP),
        where the tower is too large; costs communication in every layer.
    """

    tables: Literal["replicate", "split"] = "replicate"
    text: Literal["replicate", "split"] = "replicate"


@dataclass(frozen=True, config=_STRICT)
class Config:
    """A whole experiment. `seed` moves initialisation, batch order, masks, noise and dropout, but never the split.

    Attributes:
      nonfinite: What becomes of a training step whose loss or gradient is not finite: `stop` the run, or `skip` it, ten
        in a row at most; that needs the memory of the state once more.
      tracking: Where the metrics of training are shown besides `metrics.jsonl`: in RUN/tensorboard, by Weights & Biases
        (`wandb`), by MLflow (`mlflow`); empty: nowhere.
    """

    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    ctr: CTRConfig = CTRConfig()
    loss: LossConfig = LossConfig()
    icl: ICLConfig = ICLConfig()
    mlm: MLMConfig = MLMConfig()
    mtm: MTMConfig = MTMConfig()
    mask: MaskConfig = MaskConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfigs = FinetuneConfigs()
    sharding: ShardingConfig = ShardingConfig()
    nonfinite: Nonfinite = "stop"
    tracking: tuple[Tracker, ...] = ("tensorboard",)
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Refuses values that have no meaning beside each other."""
        paired = self.loss.mlm and self.loss.mtm and self.mask.pairing != "independent"
        if paired and self.mlm.unit == "token":
            raise ValueError(
                f"mask.pairing {self.mask.pairing!r} pairs the fields that MLM and MTM hide, but mlm.unit is 'token'; "
                "change one of them"
            )

    def to_json(self) -> str:
        """The config as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, source: str) -> "Config":
        """Reads what `to_json` wrote.

        Raises:
          InputError: `text` is not JSON or has a missing, unknown or ill-typed value; names `source`.
        """
        try:
            return TypeAdapter(Config).validate_json(text)
        except ValidationError as error:
            raise InputError(f"{source}: {first_problem(error)}") from None

    def override(self, values: Mapping[str, Any]) -> "Config":
        """The config with other values, given by their dotted names.

        Raises:
          InputError: A name does not exist, and the nearest is named; or a value does not fit.
        """
        tree, known = dataclasses.asdict(self), self.flat()
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, list(known), n=1)
                hint = f"did you mean {near[0]!r}?" if near else "`alt-jax pretrain CONFIG --help` shows all."
                raise InputError(f"there is no config value {shortened(repr(name))}; {hint}")
            *groups, leaf = name.split(".")
            place = tree
            for group in groups:
                place = place[group]
            place[leaf] = value
        return Config.from_json(json.dumps(tree), "overridden config")

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted name."""
        return _flatten(dataclasses.asdict(self))

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Dotted names whose values differ, with both values."""
        mine, theirs = self.flat(), other.flat()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def another_run(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """The differences that make it another run; what this one leaves to be fitted may be anything in the other."""
        changed = self.differences(other).items()
        return {name: both for name, both in changed if not name.startswith(FREE) and not _is_fitted(name, both[0])}


def load_config(name: str | Path) -> Config:
    """Runs a config file's `get_config()`. A config file is code: run only what you trust.

    Args:
      name: A path, or `path:variant` for `get_config(variant)` where a file describes several experiments.

    Raises:
      InputError: The file is missing, fails, lacks `get_config`, or sets a value that does not exist or does not fit.
    """
    path, _, variant = str(name).partition(".py:")
    path = f"{path}.py" if variant else path
    if not Path(path).is_file():
        raise InputError(f"Config {path} does not exist; the shipped ones are in configs/.")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if not callable(get_config):
            raise InputError(f"{path} must define get_config() that returns an alt_jax.config.Config.")
        if variant and not inspect.signature(get_config).parameters:
            raise InputError(f"{path} has no variants, so {variant!r} means nothing; give the path alone.")
        config = get_config(variant) if variant else get_config()
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path} cannot be run: it knows no {error}; look into it for what it knows.") from error
    except (Exception, SystemExit) as error:  # a config file is the user's code: what it raises is theirs to mend
        reason = shortened((str(error).strip().splitlines() or [""])[0])
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {reason}; mend it.") from error
    if not isinstance(config, Config):
        raise InputError(f"{path} must define get_config() that returns an alt_jax.config.Config.")
    return config


def _is_fitted(name: str, value: Any) -> bool:
    return value is None and FITTED.fullmatch(name) is not None


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def first_problem(error: ValidationError) -> str:
    """One sentence for the first thing pydantic found wrong."""
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = list(Config().flat()) + [
            f.name for f in (*dataclasses.fields(Config), *dataclasses.fields(FieldConfig))
        ]
        leaves = sorted({part for dotted in known for part in dotted.split(".")})
        near = difflib.get_close_matches(name.split(".")[-1], leaves, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; {error.title} has no such value."
        return f"unknown value {shortened(name)!r}{hint}"
    if problem["type"] == "value_error":  # raised by a dataclass itself, which says what does not go together
        return shortened(str(problem["ctx"]["error"]))
    return f"{shortened(name or error.title)}: {problem['msg']} (got {shortened(repr(problem['input']))})"
