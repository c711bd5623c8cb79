"""What a folder holds, on one screen: a prepared dataset, a run or an export, and what becomes of a few rows there.

Nothing is written and nothing is locked, so a run may be looked at while it goes on. Weights are read only to show what
they predict; a checkpoint that cannot be read is reported, and an older one is taken.
"""

import contextlib
import itertools
import json
import math
import os
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from scipy.special import expit

from alt_jax import recovery
from alt_jax.bridge import count
from alt_jax.checkpoint import load_params, saved_steps
from alt_jax.config import Config
from alt_jax.data.batches import updates
from alt_jax.data.dataset import TOKENIZER, Dataset, Vocabulary
from alt_jax.data.labelled import number_labelled
from alt_jax.data.prepared_config import read_config
from alt_jax.data.prompt import compose
from alt_jax.data.protocols import SPLITS, UNLABELLED
from alt_jax.data.shards import Rows, open_rows
from alt_jax.data.tokenizer import load_tokenizer
from alt_jax.errors import InputError
from alt_jax.export import read_params
from alt_jax.models.alt import ALT
from alt_jax.run import Run
from alt_jax.run_files import PARAMS, kind
from alt_jax.schema import Field, Schema
from alt_jax.stages import finetune_task, open_dataset
from alt_jax.tasks import Finetune, Params, text_length

if TYPE_CHECKING:
    import transformers

LINES, COLUMNS = 40, 100
_LABEL = 9  # columns of the words at the left
_DRAWN = 64  # rows for which masks are drawn, so that a row's do not depend on how many are shown
_LOOKED_AT = 1 << 20  # validation rows of which values without an id of their own are counted
_METRICS = ("auc", "logloss", "gauc", "ece", "rows")
# Groups of config values that a stage does not read.
_NOT_READ = {
    "pretrain": ("finetune.",),
    **{
        strategy: ("pretrain.", "loss.", "icl.", "mlm.", "mtm.", "mask.", *(f"finetune.{other}." for other in others))
        for strategy, others in (("ctr", ("plm", "joint")), ("plm", ("ctr", "joint")), ("joint", ("ctr", "plm")))
    },
}


@dataclass(frozen=True)
class _Row:
    """A row of data on the screen: a title, then labelled lines, of which the prompt takes the room that is left."""

    title: str
    prompt: str
    before: tuple[tuple[str, str], ...] = ()
    after: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Page:
    """Lines about the whole, then rows, or one line that says why there are none."""

    head: list[str]
    rows: list[_Row] = field(default_factory=list)
    no_rows: str = ""


def inspect(name: str, rows: int = 3, split: str = "valid", data: Sequence[str] = ()) -> str:
    """Describes a prepared dataset, a run or an export.

    Args:
      name: Its folder; a dataset's may be a URL.
      rows: How many rows to show, the first of the split.
      split: `train`, `valid` or `test`.
      data: Where the dataset of a run or an export is, if not where it was.

    Returns:
      Lines of at most `COLUMNS` characters, for up to three rows at most `LINES`.

    Raises:
      InputError: The folder is nothing of this, or is damaged; or `rows` is negative.
    """
    match kind(name, rows):
        case "dataset":
            page = _dataset(name, rows, split)
        case "run":
            page = _run(Path(name), rows, split, data)
        case "export":
            page = _export(Path(name), rows, split, data)
    return "\n".join(_laid_out(page))


# Datasets.


def _dataset(name: str, rows: int, split: str) -> _Page:
    dataset = Dataset.load(name)
    schema, spelled = dataset.schema, _Spelling.load(dataset)
    config = read_config(name)
    source = f"{schema.source} ({config.data.raw})" if config.data.raw else schema.source
    text = schema.text
    head = [
        *_entry("dataset", [f"{_tail(name)}", f"format {schema.version}"]),
        *_entry("source", [source, f"protocol {schema.protocol}"], 2),
        *_entry("splits", [_split_line(schema, part) for part in SPLITS], 2),
        *_field_table(schema, spelled, _rows(dataset, "valid").values),
        *_entry("prompts", _prompt_lengths(schema)),
        *_entry(
            "tokens", [f"{text.vocab_size:,} of the tokenizer {text.tokenizer!r}, SHA-256 {text.fingerprint[:12]}"]
        ),
        *_entry("hashes", [f"data {schema.data_hash[:12]}", f"vocabulary {schema.vocabulary_hash[:12]}"]),
    ]
    values, labels, numbers = _first(_rows(dataset, split), rows)
    shown = [
        _Row(
            _title(split, i, labels, numbers),
            spelled.whole(values[i]),
            before=(("values", " · ".join(spelled.values(values[i], f) for f in range(len(schema.fields)))),),
        )
        for i in range(len(values))
    ]
    return _Page(head, shown)


def _split_line(schema: Schema, name: str) -> str:
    split = schema.splits[name]
    return f"{name} {split.rows:,} rows, {_share(split.positives, split.labelled)} positive"


def _prompt_lengths(schema: Schema) -> list[str]:
    below = np.cumsum(schema.prompts)
    median = int(np.searchsorted(below, (below[-1] + 1) // 2)) if len(below) else 0
    limit = f"limit {schema.text.max_length}"
    if schema.cut:
        limit += f", which cuts {schema.cut:,} rows, of up to {schema.text.uncut_length} tokens"
    return [f"median {median} tokens", f"longest {schema.text.length}", limit]


def _field_table(schema: Schema, spelled: "_Spelling", valid: Any) -> list[str]:
    """A line a field: what it is, how many values it has, and how many of the validation part have no id."""
    values = np.asarray(valid[:_LOOKED_AT])
    distinct = np.bincount(spelled.vocabulary.field, minlength=len(schema.fields))
    of_slot, groups = np.asarray(schema.field_of_slot), {name: group for group in schema.linked for name in group}
    table: list[tuple[str, ...]] = [("field", "kind", "slots", "values", "with ids", "unseen in valid", "linked to")]
    for f, entry in enumerate(schema.fields):
        own = values[:, of_slot == f]
        ids = np.asarray(spelled.dataset.pieces.feature)[own[own >= 0]]
        unseen = "–" if entry.kind == "text" else _share(int((ids == entry.offset).sum()), len(ids))
        known = "–" if entry.kind == "text" else f"{entry.size - 1:,}"
        linked = ", ".join(name for name in groups.get(entry.name, ()) if name != entry.name)
        row = (entry.name, entry.kind, str(entry.slots), f"{distinct[f]:,}", known, unseen, linked)
        table.append(tuple(_cut(_plain(cell), 30) for cell in row))
    most = LINES // 2 - 4
    left_out = len(table) - 1 - most
    if left_out > 1:
        table = table[:most]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in table]
    more = [f"… and {left_out + 1} more fields"] if left_out > 1 else []
    return [_cut(f"  {line}", COLUMNS) for line in (*lines, *more)]


# Runs.


def _run(folder: Path, rows: int, split: str, data: Sequence[str]) -> _Page:
    run = Run.load(folder)
    result, logged, best = run.result(), *_logged(folder)
    weights = _weights(folder, run, result)
    steps = _steps(run)
    damaged = [f"{path.name} set aside as damaged" for path in sorted((folder / "damaged").glob("*"))]
    best_step = best["step"] if best else None
    kept = [
        f"step {step} ({_size(_bytes(folder / 'checkpoints' / str(step)))}{', best' if step == best_step else ''})"
        for step in saved_steps(folder)
    ]
    last = logged["step"] if logged else 0
    found = sorted((name for name, value in (logged or {}).items() if _is_loss(name, value)), key=_loss_order)
    losses = [f"{name} {logged[name]:.4g}" for name in found] if logged else []
    head = [
        *_entry("run", [_tail(str(folder)), _what(run)]),
        *_entry("state", [_state(folder, result, last, steps)]),
        *_about(run),
        *_entry("losses", [*losses, f"at step {last}"] if losses else ["nothing logged yet"], 2),
        *_scores(result, best),
        *_parameters(weights.params),
        *_entry("saved", [*kept, *damaged, *weights.problems] or ["no checkpoint yet"], 4),
    ]
    if not rows:
        return _Page(head)
    try:
        dataset = open_dataset(run, data)
    except InputError as error:
        return _Page(head, no_rows=f"not shown: {error}")
    show = _masked_rows if run.origin.stage == "pretrain" else _scored_rows
    return _Page(head, show(run, dataset, weights.params, rows, split))


@dataclass(frozen=True)
class _Weights:
    """Parameters of a run, or None; and what is wrong with checkpoints that were tried."""

    params: Params | None
    problems: list[str]


def _weights(folder: Path, run: Run, result: dict[str, Any] | None) -> _Weights:
    """Those that the run is used with: the best of a finished finetuning, else the newest that can be read."""
    refused: dict[int, str] = {}
    best = result.get("best_step") if result and run.origin.stage == "finetune" else None
    params = None
    # Asked anew every time: a run that goes on may remove a checkpoint while it is read, and have a newer one.
    while params is None and (left := [s for s in saved_steps(folder) if s not in refused and best in (None, s)]):
        try:
            params, _ = load_params(folder, left[-1])
        except InputError as error:
            refused[left[-1]] = str(error)
    there = saved_steps(folder)
    return _Weights(params, [message for step, message in refused.items() if step in there])


def _what(run: Run) -> str:
    return "pretraining" if run.origin.stage == "pretrain" else f"finetuning, strategy {run.origin.strategy}"


def _steps(run: Run) -> int:
    """Most updates of the run."""
    part, values = run.schema.splits["train"], run.recipe
    rows = part.rows
    if run.origin.stage == "finetune":
        rows = number_labelled(part.labelled, run.config.finetune.label_share)
    assert values.batch_size is not None, "a run's config is whole"
    assert values.epochs is not None, "a run's config is whole"
    return updates(rows, values.batch_size, values.epochs)


def _state(folder: Path, result: dict[str, Any] | None, last: int, steps: int) -> str:
    if result is not None:
        return f"finished at step {last} of {'at most ' if last < steps else ''}{steps}"
    try:
        when = f", last logged {_ago(time.time() - (folder / 'metrics.jsonl').stat().st_mtime)} ago"
    except FileNotFoundError:
        when = ""
    return f"not finished: step {last} of {steps}{when}"


def _about(run: Run) -> list[str]:
    """What it was made of: start, data, and the values that are not the defaults."""
    config, schema, origin = run.config, run.schema, run.origin
    text = config.text.model if config.text.model and config.text.init == "weights" else ""
    start = origin.init_from or (f"text tower of {text}" if text else "nothing: fresh parameters")
    unread = ("data.fields", "data.linked", "data.raw", "data.dir", *_NOT_READ[origin.strategy or "pretrain"])
    # Those of the data last: they are in the line above, too.
    different = sorted(config.differences(Config()).items(), key=lambda item: item[0].startswith("data."))
    changed = [f"{name} {_value(value)}" for name, (value, _) in different if not name.startswith(unread)]
    data = [_tail(config.data.dir), schema.protocol, f"{len(schema.fields)} fields", f"hash {schema.data_hash[:12]}"]
    return [
        *_entry("from", [start]),
        *_entry("data", data),
        *_entry("values", changed or ["all as by default"], 4),
    ]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "") if value != "" else "''"


def _logged(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The newest record of a step, and the best evaluation; of a file that may be written to at this moment."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return None, None
    evaluations = [record for line in lines if b'"valid/auc"' in line and (record := _record(line))]
    best = max(evaluations, key=lambda record: (record["valid/auc"], -record["step"]), default=None)
    steps = (record for line in reversed(lines) if b'"valid/auc"' not in line and (record := _record(line)))
    return next(steps, None), best


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None for one that is only half there."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return record


def _is_loss(name: str, value: Any) -> bool:
    return isinstance(value, float) and ("/" not in name or name.startswith(("bce/", "icl/")))


def _loss_order(name: str) -> tuple[int, str]:
    """The sum first, then its parts."""
    return (("loss", "icl", "mlm", "mtm").index(name) if name in ("loss", "icl", "mlm", "mtm") else 4), name


def _scores(result: dict[str, Any] | None, best: dict[str, Any] | None) -> list[str]:
    """A line for each part that was evaluated."""
    if best is None and result is None:
        return []
    found: dict[str, dict[str, Any]] = {}
    step = best["step"] if best else (result or {}).get("best_step")
    if best:
        found["valid"] = {name.removeprefix("valid/"): value for name, value in best.items()}
    for part in ("valid", "test"):
        if result and isinstance(result.get(part), dict):
            found[part] = result[part]
    lines = []
    for part, metrics in found.items():
        shown = [f"{name} {_number(metrics[name])}" for name in _METRICS if name in metrics]
        lines += _entry(part, [*shown, f"at step {step}, the best"])
    return lines


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _parameters(params: Params | None) -> list[str]:
    if params is None:
        return []
    counts = {name: count(tree) for name, tree in params.items()}
    parts = [f"{name} {number:,}" for name, number in counts.items()]
    alpha = _alpha(params)
    return _entry("weights", [*parts, f"in all {sum(counts.values()):,}", *([alpha] if alpha else [])], 2)


def _alpha(params: Params) -> str:
    """Share of the CTR tower's logit in the joint one, where that is one learned number."""
    fusion = params.get("fusion", {})
    if "alpha" in fusion:
        return f"α = {float(fusion['alpha']):.4f}"
    if "logit" in fusion:
        return f"α = {expit(float(fusion['logit'])):.4f}"
    return "α of every row its own" if "gate" in fusion else ""


def _scored_rows(
    run: Run, dataset: Dataset, params: Params | None, rows: int, split: str, task: Finetune | None = None
) -> list[_Row]:
    """Rows with label and click probability."""
    task, spelled = task or finetune_task(run), _Spelling.load(dataset)
    values, labels, numbers = _first(_rows(dataset, split), rows)
    said = ["no weights to predict with"] * len(values)
    if params is not None:
        logit = jax.jit(task.logit, static_argnums=3)
        scores = logit(params, dataset.pieces, jnp.asarray(values), text_length(dataset.schema.text.length))
        said = [f"predicted {score:.6f}" for score in expit(np.asarray(scores, np.float64))]
    return [
        _Row(f"{_title(split, i, labels, numbers)} · {said[i]}", spelled.whole(values[i])) for i in range(len(values))
    ]


def _masked_rows(run: Run, dataset: Dataset, params: Params | None, rows: int, split: str) -> list[_Row]:
    """Rows as the pretraining hides them, and what the model makes of what is hidden."""
    schema, spelled = dataset.schema, _Spelling.load(dataset)
    model = ALT(run.config, schema, run.encoder)
    values, labels, numbers = _first(_rows(dataset, split), max(rows, _DRAWN))
    drawn = recovery.hide(model, dataset.pieces, values, jax.random.key(run.config.seed))
    hidden: recovery.Hidden = jax.tree.map(lambda x: x[:rows], drawn)
    recovered = None if params is None else recovery.recover(model, params, hidden)
    hidden = jax.device_get(hidden)
    shown = []
    for i in range(min(rows, len(values))):
        read = hidden.text.tokens[i][hidden.text.mask[i]]
        both = (lines(run, spelled, hidden, recovered, i) for lines in (_token_lines, _feature_lines))
        # In turn, so that where there is no room for all, there are some of each.
        after = tuple(line for pair in itertools.zip_longest(*both) for line in pair if line)
        shown.append(_Row(_title(split, i, labels, numbers), spelled.tokens(read), after=after))
    return shown


def _token_lines(
    run: Run, spelled: "_Spelling", hidden: recovery.Hidden, recovered: recovery.Recovered | None, row: int
) -> list[tuple[str, str]]:
    """A line for each field of which MLM hides something: what it is, and the likeliest tokens in its place."""
    lines, prompt, where = [], hidden.prompt, hidden.text.where[row]
    for f in dict.fromkeys(prompt.field[row][where].tolist()):
        at = np.flatnonzero(where & (prompt.field[row] == f))
        line = f"{spelled.name(f)} is “{spelled.tokens(prompt.tokens[row][at])}”"
        if recovered is not None and recovered.tokens is not None:
            # The tokens of a span share a mask, and so their logits.
            asked = at[:1] if run.config.mlm.unit == "span" else at
            alike = recovered.row == row
            logits = [recovered.tokens[alike & (recovered.position == position)][0] for position in asked]
            best = [_likeliest(recovery.softmax(one), 3 if len(asked) == 1 else 1) for one in logits]
            guesses = [", ".join(f"{spelled.tokens([token])} {p:.2f}" for token, p in several) for several in best]
            line += f", predicted {' | '.join(guesses)}"
        lines.append(("MLM", line))
    return lines


def _feature_lines(
    run: Run, spelled: "_Spelling", hidden: recovery.Hidden, recovered: recovery.Recovered | None, row: int
) -> list[tuple[str, str]]:
    """A line for each field that MTM hides: its value, and the likeliest ones, or how likely it was replaced."""
    schema, lines = spelled.dataset.schema, []
    for f in np.flatnonzero(hidden.fields[row]).tolist():
        own = np.asarray(schema.field_of_slot) == f
        ids, shown = hidden.ids[row][own], hidden.shown.ids[row][own]
        line = f"{spelled.name(f)} is “{spelled.features(f, ids)}”"
        if run.config.mtm.method == "rfd":
            line += f", shown as “{spelled.features(f, shown)}”"
            if recovered is not None:
                logit = float(recovered.output[row, schema.tabular.index(f)])
                line += f", taken for replaced with {expit(logit):.2f}"
        elif recovered is not None:
            best = _likeliest(recovery.feature_probabilities(recovered.output, schema, row, f), 3)
            offset = schema.fields[f].offset
            line += f", predicted {', '.join(f'{spelled.features(f, [offset + i])} {p:.2f}' for i, p in best)}"
        lines.append(("MTM", line))
    return lines


def _likeliest(probability: np.ndarray, most: int) -> list[tuple[int, float]]:
    order = np.argsort(-probability, kind="stable")[:most]
    return [(int(i), float(probability[i])) for i in order]


# Exports.


def _export(folder: Path, rows: int, split: str, data: Sequence[str]) -> _Page:
    run = Run.load(folder)
    result = run.result()
    files = [f"{path.name}{'/' * path.is_dir()} {_size(_bytes(path))}" for path in sorted(folder.iterdir())]
    towers = [path.parent.name for path in sorted(folder.glob("*text_tower/config.json"))]
    use = [
        "alt-jax predict EXPORT rows.csv -o scores.parquet",
        f'safetensors.numpy.load_file("EXPORT/{PARAMS}"): NumPy arrays, named by their path',
        *(f'transformers.AutoModel.from_pretrained("EXPORT/{name}")' for name in towers),
    ]
    head = [
        *_entry("export", [_tail(str(folder)), _what(run)], 2),
        *_about(run),
        *_scores(result, None),
        *_entry("files", files, 4),
        *(line for number, one in enumerate(use) for line in _entry("use" * (not number), [one])),
    ]
    if not rows:
        return _Page(head)
    task = finetune_task(run)
    params = read_params(folder / PARAMS, task)
    head += _parameters(params)
    try:
        dataset = open_dataset(run, data)
    except InputError as error:
        return _Page(head, no_rows=f"not shown, since they are not part of an export: {error}")
    return _Page(head, _scored_rows(run, dataset, params, rows, split, task))


# Rows.


@dataclass(frozen=True)
class _Spelling:
    """Turns ids and tokens of a dataset into words."""

    dataset: Dataset
    vocabulary: Vocabulary
    tokenizer: "transformers.PreTrainedTokenizerFast"

    @classmethod
    def load(cls, dataset: Dataset) -> "_Spelling":
        return cls(dataset, dataset.vocabulary(), load_tokenizer(str(dataset.folder / TOKENIZER)))

    def name(self, f: int) -> str:
        return _plain(self.dataset.schema.fields[f].name)

    def values(self, row: Int[np.ndarray, " S"], f: int) -> str:
        """A field of a row of value ids, as the prompt spells it."""
        ids = row[np.asarray(self.dataset.schema.field_of_slot) == f]
        return ", ".join(_plain(self.vocabulary.text[i]) for i in ids if i >= 0) or "(empty)"

    def features(self, f: int, ids: Iterable[Any]) -> str:
        """Some feature ids of a field."""
        return ", ".join(self._feature(self.dataset.schema.fields[f], f, int(i)) for i in ids if i) or "(none)"

    def _feature(self, entry: Field, f: int, feature: int) -> str:
        if feature == entry.offset:
            return "(missing)" if entry.numeric else "(not seen in training)"
        if entry.numeric:
            edges = [-math.inf, *entry.numeric.edges, math.inf]
            low, high = edges[feature - entry.offset - 1 : feature - entry.offset + 1]
            return f"{low:g} to {high:g}"
        # A history has the ids of its item's field.
        found = np.flatnonzero(self.vocabulary.feature == feature)
        own = found[self.vocabulary.field[found] == f]
        return _plain(self.vocabulary.text[(own if len(own) else found)[0]])

    def tokens(self, tokens: Iterable[Any]) -> str:
        """What tokens spell, special ones included."""
        return _plain(str(self.tokenizer.decode([int(token) for token in tokens])))

    def whole(self, row: Int[np.ndarray, " S"]) -> str:
        """The prompt of a row of value ids."""
        schema = self.dataset.schema
        length, pad_id = text_length(schema.text.length), schema.text.pad_id
        prompt = compose(self.dataset.pieces, row[None, :], length=length, pad_id=pad_id, widths=schema.widths)
        return self.tokens(np.asarray(prompt.tokens)[0][np.asarray(prompt.mask)[0]])


def _rows(dataset: Dataset, split: str) -> Rows:
    """A split as it lies there, training in no order of its own; only the shards that are looked at are read."""
    schema = dataset.schema
    return open_rows(dataset.place, split, schema.splits[split], sum(schema.widths))


def _first(rows: Rows, most: int) -> tuple[Int[np.ndarray, "n S"], np.ndarray, np.ndarray]:
    """Value ids, labels and numbers in the raw table."""
    return np.array(rows.values[:most]), np.array(rows.labels[:most]), np.array(rows.rows[:most])


def _title(split: str, i: int, labels: np.ndarray, numbers: np.ndarray) -> str:
    label = "none" if labels[i] == UNLABELLED else labels[i]
    return f"{split} {i} · raw row {numbers[i]} · label {label}"


# Layout.


def _laid_out(page: _Page) -> list[str]:
    """Lines on a screen; rows share out what the head leaves, at least five each."""
    lines = list(page.head)
    if page.no_rows:
        lines += _entry("rows", [page.no_rows], 4)
    room = max(5, (LINES - len(lines)) // max(1, len(page.rows)))
    for row in page.rows:
        before = [line for label, text in row.before for line in _entry(label, [text], 2)]
        after = [line for label, text in row.after for line in _entry(label, [text], 1)]
        most = max(1, room - 2 - len(before))
        if len(after) > most:
            after = [*after[: most - 1], *_entry("", [f"… and {len(after) - most + 1} more"])]
        prompt = _entry("prompt", [row.prompt], room - 1 - len(before) - len(after))
        lines += [_cut(row.title, COLUMNS), *before, *prompt, *after]
    return lines


def _entry(label: str, parts: Sequence[str], most: int = 1) -> list[str]:
    """A label and parts behind it, on at most so many lines; what has no room ends in "…"."""
    lines = textwrap.wrap(" · ".join(map(_plain, parts)), COLUMNS - _LABEL, break_on_hyphens=False) or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], _cut(f"{lines[most - 1]} …", COLUMNS - _LABEL)]
    return [f"{label if not i else '':<{_LABEL}}{line}".rstrip() for i, line in enumerate(lines)]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2].rstrip(' …')} …"


def _tail(path: str) -> str:
    """The end of a long path, which tells more than its beginning."""
    most = 60
    return path if len(path) <= most else f"…{path[1 - most :]}"


def _plain(text: str) -> str:
    """Data may hold anything; a terminal is shown one line of what can be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _size(number: float) -> str:
    power = min(3, (len(str(int(number))) - 1) // 3)
    return f"{number / 1000**power:.{min(1, power)}f} {('B', 'kB', 'MB', 'GB')[power]}"


def _bytes(path: Path) -> int:
    """Of a file, or of all files in a folder; one that is removed meanwhile has none."""
    within = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    total = 0
    for file in [path] if path.is_file() else within:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
