"""The model card of an export: what the run says about itself, and how to use every file without alt_jax.

Markdown with the front matter that the Hugging Face Hub reads. Everything in it is read from the run.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from alt_jax import __version__
from alt_jax.run import Run
from alt_jax.schema import Schema

NAME = "README.md"
# Metrics of `alt_jax.evaluate.report`, and what they are called.
_METRICS = {
    "auc": "AUC",
    "gauc": "GAUC, by user",
    "logloss": "log loss",
    "ece": "expected calibration error",
    "unseen_user_auc": "AUC on users that training never saw",
    "unseen_item_auc": "AUC on items that training never saw",
}
_HUB_METRICS = {"auc": "roc_auc", "logloss": "log_loss"}
_FILES = {
    "params.safetensors": "every parameter, under its path in the model",
    "score.stablehlo": "the serving function for JAX: value ids to probabilities, prompts put together inside",
    "ctr.onnx": "the CTR tower for ONNX runtimes: value ids to probabilities",
    "text_tower": "the text tower and its tokenizer, for transformers",
    "second_text_tower": "likewise, the tower that reads the fields from the item on",
    "vocabulary.parquet": "every value of every field, in the order of value ids",
    "schema.json": "fields, their feature ids, tokenisation, sizes and hashes of the data",
    "pieces.npz": "tokens of every value",
    "tokenizer": "what made them",
    "spelling.py": "how a value of any type is spelled, for the code below",
    "config.json": "every value of the configuration",
    "encoder.json": "the text tower's configuration",
    "run.json": "what the run was",
    "result.json": "what came of it",
}
_ENCODE = '''
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spelling import spell  # the file beside this one, which alt-jax reads rows with, too

fields = json.loads(Path("schema.json").read_text(encoding="utf-8"))["fields"]
vocabulary = pq.read_table("vocabulary.parquet").to_pydict()
value_id = {key: i for i, key in enumerate(zip(vocabulary["field"], vocabulary["value"]))}


def encode(table):
    """Value ids [rows, slots]: the value's row in the vocabulary; V + f for others of field f; -1 for an empty slot."""
    blocks = []
    for f, field in enumerate(fields):
        slots = field["slots"] if field["kind"] in ("multi", "sequence") else None
        options = {name: field[name] for name in ("separator", "type", "hash_buckets")}
        column = table[field["column"]] if field["column"] in table.column_names else pa.nulls(len(table))
        found = spell(column, slots=slots, **options)
        ids = [value_id.get((f, value), len(value_id) + f) for value in found.strings]
        blocks.append(np.array([*ids, -1], np.int32)[found.codes])
    return np.concatenate(blocks, axis=1)


ids = encode(pq.read_table("rows.parquet"))
'''
_STABLEHLO = """
from jax import export

score = export.deserialize(Path("score.stablehlo").read_bytes())
probability = np.asarray(score.call(ids))
"""
_ONNX = """
import onnxruntime

session = onnxruntime.InferenceSession("ctr.onnx")
(probability_of_ctr,) = session.run(None, {"ids": ids})
"""
_SAFETENSORS = """
from safetensors.numpy import load_file

params = load_file("params.safetensors")
"""
_TRANSFORMERS = """
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("text_tower")
text_tower = AutoModel.from_pretrained("text_tower")
"""


def card(run: Run, result: Mapping[str, Any], params: Mapping[str, np.ndarray], present: Collection[str]) -> str:
    """The card.

    Args:
      run: The finished finetuning.
      result: Its `result.json`.
      params: Its parameters by name.
      present: Names of the export's other files and folders.

    Returns:
      Markdown.
    """
    parts = [
        f"---\n{_front_matter(run, result)}\n---",
        f"# {_title(run)}",
        "Predicts the probability of a click, or of whatever its data calls positive, from one row of features. "
        f"Trained and exported by alt-jax {__version__}.",
        "## Data",
        _data(run.schema),
        "## Training",
        _training(run, result, params),
        "## Metrics",
        _metrics(run, result),
        "## Limits",
        _limits(run.schema, result, present),
        "## Files",
        _list(f"`{name}`: {what}" for name, what in _FILES.items() if name in present),
        "## Use",
        _use(run, present),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Run, result: Mapping[str, Any]) -> str:
    tags = ["alt-jax", "jax", "click-through-rate", "recommendation", "tabular-classification"]
    found = [
        EvalResult(
            task_type="tabular-classification",
            dataset_type=run.schema.source,
            dataset_name=f"{run.schema.source}, protocol {run.schema.protocol}",
            dataset_split="test",
            metric_type=kind,
            metric_name=_METRICS[name],
            metric_value=result["test"][name],
        )
        for name, kind in _HUB_METRICS.items()
        if result["test"][name] is not None
    ]
    data = ModelCardData(
        library_name="alt-jax",
        pipeline_tag="tabular-classification",
        tags=tags,
        metrics=list(_HUB_METRICS.values()),
        model_name=_title(run),
        eval_results=found or None,
    )
    return str(data.to_yaml())


def _title(run: Run) -> str:
    ctr, text = run.config.ctr.tower, run.encoder.model_type
    towers = {"ctr": f"{ctr} (ctr)", "plm": f"{text} on prompts (plm)", "joint": f"{ctr} with {text} (joint)"}
    return f"Click model: {towers[str(run.origin.strategy)]}"


def _data(schema: Schema) -> str:
    splits = [
        (name, f"{split.rows:,}", f"{split.positives:,}", _share(split.positives, split.labelled), f"`{split.hash}`")
        for name, split in schema.splits.items()
    ]
    fields = [
        (
            field.name,
            f"`{field.column}`",
            field.kind,
            field.slots,
            f"{field.size:,}" if field.kind != "text" else "none",
        )
        for field in schema.fields
    ]
    return "\n\n".join(
        [
            f"Source `{schema.source}`, protocol `{schema.protocol}`. Hash of all rows: `{schema.data_hash}`; of the "
            f"vocabulary, which comes from the training part alone: `{schema.vocabulary_hash}`; of the tokenizer: "
            f"`{schema.text.fingerprint}`. The rows are not part of this export.",
            _table(("split", "rows", "positive", "share", "hash of its raw rows"), splits),
            _table(("field", "column", "kind", "slots", "feature ids"), fields),
        ]
    )


def _training(run: Run, result: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> str:
    strategy = str(run.origin.strategy)
    start = (
        f"from the pretraining `{Path(run.origin.init_from).name}`" if run.origin.init_from else "without pretraining"
    )
    values: dict[str, Any] = dataclasses.asdict(getattr(run.config.finetune, strategy))
    rows = [(f"`finetune.{strategy}.{name}`", f"`{value}`") for name, value in values.items()]
    if strategy != "plm":
        ctr = dataclasses.asdict(run.config.ctr)
        rows += [(f"`ctr.{name}`", f"`{value}`") for name, value in ctr.items()]
    if strategy != "ctr":
        rows += [(f"`text.{name}`", f"`{getattr(run.config.text, name)}`") for name in ("model", "init", "dtype")]
        rows += [(f"`encoder.{name}`", f"`{value}`") for name, value in run.encoder.to_hf().items()]
    count = sum(int(tensor.size) for tensor in params.values())
    return (
        f"Strategy `{strategy}`, {start}, seed {result['seed']}; {count:,} parameters, those of step "
        f"{result['best_step']:,}, which has the best AUC on the validation part. All values are in `config.json`.\n\n"
        + _table(("value", "is"), rows)
    )


def _metrics(run: Run, result: Mapping[str, Any]) -> str:
    valid, test = result["valid"], result["test"]
    rows = [("rows", *(f"{part['rows']:,} ({part['positives']:,} positive)" for part in (valid, test)))]
    for name, meaning in _METRICS.items():
        if name in test:
            of = name.replace("_auc", "_rows")
            cells = [
                f"{_number(part[name])}{f' ({part[of]:,} rows)' if name.startswith('unseen') else ''}"
                for part in (valid, test)
            ]
            rows.append((meaning, *cells))
    note = ""
    if any(part.get(name) is None for part in (valid, test) for name in _METRICS if name in test):
        note = (
            "\n\nA metric is undefined where its rows are none, all positive or all negative, or tell no users apart."
        )
    table = _table(("metric", "validation", "test"), rows)
    return f"{table}{note}\n\nOne run with one seed: what a seed moves is not in it."


def _limits(schema: Schema, result: Mapping[str, Any], present: Collection[str]) -> str:
    test = result["test"]
    told = [
        "It was measured on rows of the source and protocol above. Of others, later ones included, nothing is known.",
        f"Calibration: on the test part the expected calibration error is {_number(test['ece'])}; where the share of "
        "positives differs, probabilities do not follow it.",
        "A value that training has not seen shares one feature id with all others of its field that training has not.",
    ]
    for what in schema.entities:
        told.append(
            f"New {what}s: {test[f'unseen_{what}_rows']:,} of {test['rows']:,} test rows have one, AUC there "
            f"{_number(test[f'unseen_{what}_auc'])}."
        )
    programs = [f"`{name}`" for name in ("score.stablehlo", "ctr.onnx") if name in present]
    if programs:
        told.append(
            f"{' and '.join(programs)}: a value that the whole dataset lacks is spelled as nothing in the prompt, and "
            "a number that it lacks counts as missing. `alt-jax predict` reads its text and its number."
        )
    if "score.stablehlo" in present:
        told.append(
            f"`score.stablehlo` was written with JAX {jax.__version__}. JAX promises to run it with versions up to six "
            "months newer; after that, export the run again."
        )
    told += [
        "Nothing was measured for groups of people.",
        "The licence of the data is not part of this, nor is one for these weights or for those they started from.",
    ]
    return _list(told)


def _use(run: Run, present: Collection[str]) -> str:
    columns = ", ".join(f"`{field.column}`" for field in run.schema.fields)
    parts = [
        f"With alt-jax: `alt-jax predict . rows.parquet -o scores.parquet`. Without it, in this folder, rows with the "
        f"columns {columns} are encoded with NumPy and PyArrow:",
        _python(_ENCODE),
    ]
    if "score.stablehlo" in present:
        parts += ["Scores, on a CPU, a CUDA GPU or a TPU, with JAX:", _python(_STABLEHLO)]
    if "ctr.onnx" in present:
        whose = "Scores" if run.origin.strategy == "ctr" else "The CTR tower's own scores, not those of both towers"
        parts += [f"{whose}, with onnxruntime:", _python(_ONNX)]
    parts += ["Parameters, as NumPy arrays:", _python(_SAFETENSORS)]
    if "text_tower" in present:
        parts += ["The text tower, with transformers and PyTorch:", _python(_TRANSFORMERS)]
    return "\n\n".join(parts)


def _python(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def _list(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "undefined"
