"""The stages of an experiment: pretrain, finetune, and the scoring of a finished run."""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alt_jax import (
    bridge,
    cluster,
    console,
    factors,
    flops,
    learned,
    pretraining,
    recipe,
    required,
    run_files,
    sharding_rules,
    tracking,
)
from alt_jax.checkpoint import Checkpoints, load_params
from alt_jax.config import Config, FinetuneConfig, PretrainConfig, Strategy
from alt_jax.data.batches import updates
from alt_jax.data.dataset import Dataset, Rows
from alt_jax.data.labelled import labelled, number_labelled
from alt_jax.data.prepared_config import check_prepared
from alt_jax.errors import InputError
from alt_jax.evaluate import Probabilities, report, undefined
from alt_jax.models import interactions
from alt_jax.models.alt import ALT
from alt_jax.optim import finetune_optimizer, finetune_schedules, pretrain_optimizer, pretrain_schedules
from alt_jax.pretraining import Pretrain
from alt_jax.run import Origin, Run
from alt_jax.schema import Schema
from alt_jax.sharding import Rules, check_batch, jit_init, make_mesh, place, replicate
from alt_jax.sharding_rules import check_rules
from alt_jax.tasks import Finetune, Params
from alt_jax.train import Plan, Shown, train


@dataclass(frozen=True)
class Trained:
    """A finished finetuning: the task, its best parameters and the step they are of."""

    run: Run
    task: Finetune
    params: Params
    step: int


def pretrain(config: Config, run_dir: Path, init_from: Path | None = None) -> dict[str, Any]:
    """Aligns the towers: ICL, MLM and MTM on the training part.

    Args:
      config: The experiment.
      run_dir: Where the run is kept; a run that was stopped goes on there.
      init_from: Run folder of an earlier pretraining, e.g. MLM on the prompts alone, whose towers this one starts from.

    Returns:
      What `result.json` holds.

    Raises:
      InputError: The dataset, the model, the earlier pretraining or the folder does not fit.
      alt_jax.errors.Stopped: A signal came.
    """
    began, rules = time.perf_counter(), sharding_rules.rules(config)
    origin = Origin("pretrain", init_from=None if init_from is None else str(init_from))
    with cluster.together():
        interactions.build(config.ctr)  # refused before data is read
        tracking.check(config.tracking)
        dataset = Dataset.load(config.data.dir, config.data.memory_gib)
        check_prepared(config)
        check_fields(config, origin, dataset.schema)
        config = recipe.pretraining(config, dataset.schema.splits["train"].rows)
        encoder = bridge.encoder_config(config.text, dataset.schema)
        run = Run(run_dir, origin, config, dataset.schema, encoder)
    cluster.check_same(_facts(run, dataset))
    if (done := run.finished()) is not None:
        console.log(f"{run_dir} is already finished.", run_dir=str(run_dir))
        return done
    values = config.pretrain
    plan = dataclasses.replace(_plan(config, values, rules), checkpoint_every=values.checkpoint_every)
    with cluster.together():
        mesh = make_mesh()
        check_batch(mesh, values.batch_size, values.microbatches)
        steps = _steps(mesh, dataset.train, plan)
        task = Pretrain.build(config, dataset, encoder)
    optimizer = pretrain_optimizer(values, steps)
    work = sum(flops.pretrain_flops(task, values.batch_size).values())
    shown = Shown("pretrain", work, config.text.dtype, pretrain_schedules(values, steps))
    with run.held():
        _announce(mesh, run)
        with Checkpoints(run_dir) as checkpoints:
            resumed_at = checkpoints.latest() or 0
            params = _start(task, checkpoints, mesh, run, dataset, init_from, rules)
            pieces = replicate(mesh, dataset.pieces)
            params, _ = train(task, run, checkpoints, mesh, dataset.train, pieces, params, optimizer, plan, shown=shown)
        found = learned.measure(task, mesh, params, pieces, dataset)
        _say_learned(found, config)
        result = {
            "stage": "pretrain",
            "init_from": origin.init_from,
            "steps": steps,
            "seed": config.seed,
            "valid": found,
            "machine": machine(mesh, began, resumed_at),
        }
        run.finish(result)
    return result


def check_fields(config: Config, origin: Origin, schema: Schema) -> None:
    """Refuses a run that its dataset does not have the fields for.

    Raises:
      InputError: It is one; names the tower, the loss or the value that needs other fields.
    """
    required.check(config, origin, schema)
    if origin.stage == "pretrain":
        pretraining.check(config, schema)
    elif origin.strategy == "plm":
        bridge.check_towers(config.finetune.plm, schema)
    if pretraining.reads_table(config) if origin.strategy is None else origin.strategy != "plm":
        interactions.check(config.ctr, schema)
        if config.ctr.init == "svd":
            factors.check(schema)


def _say_learned(found: dict[str, float], config: Config) -> None:
    """What a pretraining has learned, and a warning for each loss that has learned nothing."""
    good, bad = learned.verdict(found, config)
    if good:
        console.log(f"learned, on {found['rows']:,.0f} validation rows: {good}", valid=found)
    for sentence in bad:
        console.warn(sentence)


def finetune(config: Config, strategy: Strategy, init_from: Path | None, run_dir: Path) -> dict[str, Any]:
    """Trains click prediction, stops on validation AUC, and reads the test part once, at the end.

    Args:
      config: The experiment.
      strategy: `ctr`, `plm` or `joint`.
      init_from: Run folder of a pretraining, or None: the baseline without pretraining.
      run_dir: Where the run is kept; a run that was stopped goes on there.

    Returns:
      What `result.json` holds: metrics under "valid" and "test".

    Raises:
      InputError: The dataset, the model, the pretraining run or the folder does not fit.
      alt_jax.errors.Stopped: A signal came.
    """
    began, rules = time.perf_counter(), sharding_rules.rules(config)
    origin = Origin("finetune", strategy, None if init_from is None else str(init_from))
    with cluster.together():
        interactions.build(config.ctr)  # refused before data is read
        tracking.check(config.tracking)
        dataset = Dataset.load(config.data.dir, config.data.memory_gib)
        check_prepared(config)
        check_fields(config, origin, dataset.schema)
        part = dataset.schema.splits["train"]
        labels = number_labelled(part.labelled, config.finetune.label_share)
        config = recipe.finetuning(config, strategy, labels, init_from is not None)
        encoder = bridge.encoder_config(config.text, dataset.schema)
        run = Run(run_dir, origin, config, dataset.schema, encoder)
    cluster.check_same(_facts(run, dataset))
    if (done := run.finished()) is not None:
        console.log(f"{run_dir} is already finished.", run_dir=str(run_dir))
        return done
    values: FinetuneConfig = getattr(config.finetune, strategy)
    plan = dataclasses.replace(_plan(config, values, rules), patience=values.patience)
    with cluster.together():
        mesh = make_mesh()
        rows = labelled(dataset.train, config.finetune.label_share, config.seed, part.unlabelled)
        _steps(mesh, rows, plan)
        for split in ("valid", "test"):
            dataset.split(split).open()  # what is damaged is found now, not after training
        task, work = _click_task(run, dataset, plan.batch_size)
    rates = finetune_schedules(values)
    if strategy == "ctr":
        del rates["text"]
    dtype = "float32" if strategy == "ctr" else config.text.dtype
    shown = Shown(f"finetune {strategy}", work, dtype, rates)
    with run.held():
        _announce(mesh, run)
        probabilities = Probabilities(task, mesh, dataset.pieces)

        def validate(params: Params) -> dict[str, float]:
            return report(dataset, "valid", probabilities(params, dataset.valid.values))

        pieces, optimizer = replicate(mesh, dataset.pieces), finetune_optimizer(values)
        with Checkpoints(run_dir) as checkpoints:
            resumed_at = checkpoints.latest() or 0
            params = _start(task, checkpoints, mesh, run, dataset, init_from, rules)
            trained = train(task, run, checkpoints, mesh, rows, pieces, params, optimizer, plan, validate, shown=shown)
        best_step = trained[1].best_step
        del params, trained  # the best ones need the memory
        best = place(mesh, load_params(run_dir, best_step)[0], rules)
        scores = {split: probabilities(best, dataset.split(split).values) for split in ("valid", "test")}
        result = {
            "stage": "finetune",
            "strategy": strategy,
            "init_from": origin.init_from,
            "seed": config.seed,
            "protocol": dataset.schema.protocol,
            "best_step": best_step,
            **{split: report(dataset, split, score) for split, score in scores.items()},
            "machine": machine(mesh, began, resumed_at),
        }
        with cluster.together():
            dataset.train.check()  # and with it the files of the other parts
        run.finish(result, scores)
    return result


def _click_task(run: Run, dataset: Dataset, batch_size: int) -> tuple[Finetune, float]:
    """What a finetuning trains, and the FLOPs of a step."""
    task = finetune_task(run)
    lengths = None if task.strategy == "ctr" else dataset.prompt_tokens()
    if task.packs:
        task = dataclasses.replace(task, lengths=lengths)
    return task, sum(flops.finetune_flops(task, batch_size, lengths).values())


def machine(mesh: Mesh, began: float, resumed_at: int) -> dict[str, Any]:
    """What a run was computed on.

    Args:
      mesh: Devices.
      began: `time.perf_counter()` when this start of the run began.
      resumed_at: The step that it went on from; its seconds are those after that.
    """
    return {
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "seconds": round(time.perf_counter() - began, 1),
        "resumed_at": resumed_at,
    }


def load_finetuned(folder: Path) -> Trained:
    """Opens a finished finetuning run with its best parameters.

    Raises:
      InputError: The folder is not one, or is damaged.
    """
    with cluster.together():
        run = Run.load(folder)
        best_step = run_files.best_step(folder)
    params, step = load_params(folder, best_step)
    return Trained(run, finetune_task(run), params, step)


def finetune_task(run: Run) -> Finetune:
    """The task of a finetuning run."""
    strategy = run.origin.strategy
    assert strategy is not None
    return Finetune(ALT(run.config, run.schema, run.encoder), strategy)


def open_dataset(run: Run, data: Sequence[str] = ()) -> Dataset:
    """The very dataset that a run was trained on.

    Args:
      run: Of a run folder or an export.
      data: Folders or URLs, one of which it is; empty: where it was (`run_files.places`).

    Raises:
      InputError: It is gone or was prepared again with another outcome.
    """
    return Dataset.load(run_files.find_dataset(run.folder, data))


def evaluate(folders: Sequence[Path], split: str, data: Sequence[str] = ()) -> dict[str, float]:
    """Metrics on one split of a finished finetuning run, or of the mean of several runs' probabilities.

    Args:
      folders: Of the runs.
      split: Which part.
      data: Where their datasets are, if not where they were.

    Raises:
      InputError: A run or its dataset is missing or damaged, or the runs have different datasets.
    """
    runs = [load_finetuned(folder) for folder in folders]
    mesh = make_mesh()
    facts: dict[str, object] = {"what it does": f"evaluate {split}"}
    with cluster.together():
        dataset = open_dataset(runs[0].run, data)
        values = dataset.split(split).open().values
        for number, trained in enumerate(runs):
            facts |= {f"{name} of run {number}": fact for name, fact in _facts(trained.run, dataset).items()}
            facts[f"the step of run {number}"] = trained.step
            check_rules(mesh, sharding_rules.rules(trained.run.config))
    cluster.check_same(facts)
    probability = np.zeros(len(values))
    for trained in runs:
        if trained.run.schema.data_hash != dataset.schema.data_hash:
            raise InputError(
                f"{trained.run.folder} was trained on another dataset than {runs[0].run.folder}; their scores are of "
                "different rows; give runs of one dataset."
            )
        with cluster.together():
            own = open_dataset(trained.run, data)  # its prompts may come from another tokenizer
        probabilities, params = (
            Probabilities(trained.task, mesh, own.pieces),
            place(mesh, trained.params, sharding_rules.rules(trained.run.config)),
        )
        probability += probabilities(params, own.split(split).values) / len(runs)
    return report(dataset, split, probability)


def _plan(config: Config, values: PretrainConfig | FinetuneConfig, rules: Rules) -> Plan:
    """How a stage trains by its values, all of which are fitted."""
    assert values.batch_size is not None, "it was fitted"
    assert values.epochs is not None, "it was fitted"
    lazy = values.tables != "adam"
    return Plan(
        values.batch_size, values.epochs, config.seed, lazy_tables=lazy, rules=rules, nonfinite=config.nonfinite
    )


def _steps(mesh: Mesh, rows: Rows, plan: Plan) -> int:
    """Most updates of a plan; refuses one that cannot be run, before a run folder is made for it."""
    check_batch(mesh, plan.batch_size)
    check_rules(mesh, plan.rules)
    return updates(len(rows.labels), plan.batch_size, plan.epochs)


def _facts(run: Run, dataset: Dataset) -> dict[str, object]:
    """What all processes have to agree on, of a run and the dataset that they have."""
    return {
        "what it does": dataclasses.asdict(run.origin),
        "the run folder": str(run.folder),
        **run.config.flat(),
        "the dataset": [dataset.schema.data_hash, dataset.schema.fingerprint],
        "the prompts": hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in dataset.pieces)).hexdigest(),
        "the text tower": run.encoder.to_hf(),
    }


def _start(
    task: Pretrain | Finetune,
    checkpoints: Checkpoints,
    mesh: Mesh,
    run: Run,
    dataset: Dataset,
    init_from: Path | None,
    rules: Rules,
) -> Params | None:
    """Parameters to start from, where they belong; says where each sub-tree of them comes from.

    None for a run that has a checkpoint to go on from: it needs nothing of them, nor the memory twice.
    """
    if checkpoints.latest() is not None:
        return None
    params, summary = starting_params(task, mesh, run, dataset, init_from, rules)
    for line in summary:
        console.log(f"  {line}")
    return place(mesh, params, rules)


def _announce(mesh: Mesh, run: Run) -> None:
    """The first line of a stage: what it does, on what, and where; before anything is compiled."""
    config, what = run.config, " ".join(filter(None, (run.origin.stage, run.origin.strategy)))
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    device = mesh.devices.flat[0].device_kind
    console.log(
        f"{what} · seed {config.seed} · {mesh.size} × {device}{processes} · {config.data.dir}",
        stage=what,
        seed=config.seed,
        device=device,
        devices=mesh.size,
        processes=jax.process_count(),
        data=config.data.dir,
        run_dir=str(run.folder),
    )


def starting_params(
    task: Pretrain | Finetune, mesh: Mesh, run: Run, dataset: Dataset, init_from: Path | None, rules: Rules
) -> tuple[Params, list[str]]:
    """Parameters that a run starts from, and for each sub-tree of them a line that says where it comes from.

    Raises:
      InputError: The language model or the pretraining that they come from does not fit.
    """
    params: Params = jit_init(mesh, task.init, run.config.seed, rules)
    fresh: list[str] = []
    if init_from is None and run.config.ctr.init == "svd" and "ctr" in params:
        params = factors.put(params, dataset)
    with cluster.together():
        has_text = init_from is not None and pretraining.reads_text(Run.load(init_from).config)
    if not has_text:
        params, fresh = bridge.load_text(params, run.config.text, run.encoder)
    if init_from is None:
        return params, fresh
    return bridge.transfer(params, run.origin.strategy or "pretrain", init_from, run.schema, fresh)


def format_report(found: Mapping[str, float | None], split: str) -> str:
    """The split and its metrics, one line each; of an undefined one, NaN or as JSON has it, why it is."""
    lines = {"split": split} | {name: _format(found, name, value) for name, value in found.items()}
    return "\n".join(f"{name:<23} {said}" for name, said in lines.items())


def _format(found: Mapping[str, float | None], name: str, value: float | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if value is None or np.isnan(value):
        return f"undefined ({undefined(found, name)})" if name.endswith("auc") else "undefined"
    return f"{value:.5f}"


def to_json(found: dict[str, float]) -> str:
    """Metrics as one JSON object; an undefined one is null."""
    return json.dumps({k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in found.items()})
