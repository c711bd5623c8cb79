"""What a command refuses by its arguments, the config and the paths, before JAX, transformers or Arrow's compute.

To import those takes seconds, and to wait for them only to read that a file is missing is a nuisance. Every check here
is one that the command makes anyway, by the same function, so that it says the same; what needs the data, the model or
the devices is found there.

Where several processes run a command together, only what all of them say ends all of them: then nothing is to be
checked here.
"""

from collections.abc import Sequence
from pathlib import Path

from alt_jax import required, run_files, studies
from alt_jax.config import Config, DataConfig
from alt_jax.data import declared, headers, protocol_presets, published, sources, table_files, target
from alt_jax.data.prepared_config import check_prepared
from alt_jax.data.storage import SCHEMA, is_url, place
from alt_jax.errors import InputError
from alt_jax.report import folders as reported
from alt_jax.run_files import Origin
from alt_jax.schema import Schema
from alt_jax.serving.limits import check_port
from alt_jax.studies import Study


def prepare(config: Config) -> None:
    """Where the dataset goes, and what is declared of the raw data.

    Raises:
      InputError: The place is taken, the declaration is wrong, or there is no such file or column.
    """
    if not is_url(config.data.dir):  # what a network takes its time for is asked once, later
        target.check_target(config.data.dir)
    protocol_presets.get(config.data.protocol)
    _raw(config.data)


def train(config: Config, origin: Origin, run_dir: Path) -> None:
    """The dataset, the run folder, and the pretraining that a new run starts from.

    Raises:
      InputError: There is no dataset, it was prepared otherwise or has no field that the run reads, the folder is
        taken, or the pretraining is none.
    """
    run_files.check_path(run_dir)
    schema = None
    if not is_url(config.data.dir):
        schema = Schema.load(place(config.data.dir).folder / SCHEMA)
        check_prepared(config)
        required.check(config, origin, schema)
    if (run_dir / "run.json").is_file():
        run_files.check_same(run_dir, origin, config)
        return  # it may be past its start, and the pretraining gone
    run_files.check_free(run_dir)
    if origin.init_from is None:
        return
    if schema is None:
        run_files.read_origin(Path(origin.init_from))
    else:
        run_files.check_pretraining(Path(origin.init_from), schema)


def evaluate(folders: Sequence[Path], data: Sequence[str]) -> None:
    """Finished finetunings, and their datasets.

    Raises:
      InputError: A folder is none, or a dataset is gone.
    """
    if not folders:
        raise InputError("give the folder of a finished run, e.g. alt-jax evaluate runs/joint.")
    for folder in folders:
        _finetuned(folder, data)


def predict(
    model: Path, rows: Path, output: Path, data: Sequence[str], keep: Sequence[str] = (), history: str = ""
) -> None:
    """A model, and rows that have the columns that it reads and those that are kept.

    Raises:
      InputError: The model is none, there is no table, it lacks a column, or the output cannot be.
    """
    table_files.check_output(rows, output)
    scorable(model, data)
    schema = Schema.load(model / SCHEMA)
    made = {field.column for field in schema.fields if field.kind == "sequence" and history}
    wanted = {**schema.columns_of(run_files.read_origin(model).strategy), **dict.fromkeys(keep, "")}
    wanted = {column: clause for column, clause in wanted.items() if column not in made}
    config = run_files.read_config(model).data
    headers.check_columns(rows, wanted, config.csv)
    if history not in ("", "dataset") and config.source == "table":
        headers.check_columns(Path(history), declared.own_columns(config), config.csv)


def export(folder: Path, out: Path, data: Sequence[str]) -> None:
    """A finished finetuning, and a new folder.

    Raises:
      InputError: It is none, or the folder is taken.
    """
    if not run_files.is_exported(folder, out):
        _finetuned(folder, data)


def serve(model: Path, port: int, data: Sequence[str]) -> None:
    """A model, and a port.

    Raises:
      InputError: It is none.
    """
    check_port(port)
    scorable(model, data)


def scorable(model: Path, data: Sequence[str] = ()) -> None:
    """What scores rows: a finetuning or an export.

    Raises:
      InputError: It is neither.
    """
    if (model / run_files.PARAMS).is_file():
        run_files.read_origin(model)
    else:
        _finetuned(model, data)


def ablate(config: Config, study: Study, run_dir: Path) -> None:
    """The dataset of a study, or the raw data that it will be prepared from.

    Raises:
      InputError: There is neither, or the dataset was prepared otherwise.
    """
    run_files.check_path(run_dir)
    for arm in study.arms:
        changed = any(name.startswith(("data.", "text.")) for name in arm.values)  # it may have a dataset of its own
        if changed or not study.trained(arm) or is_url(config.data.dir):
            continue
        with studies.refusing(f"arm {arm.name!r}"):
            if place(config.data.dir).has(SCHEMA):
                check_prepared(config)
            else:
                prepare(config)
        return


def inspect(name: str, rows: int) -> None:
    """Something to inspect.

    Raises:
      InputError: There is nothing.
    """
    run_files.kind(name, rows)


def report(folders: Sequence[Path], out: Path | None, price: float | None) -> None:
    """Runs and studies.

    Raises:
      InputError: A folder is neither, or the page cannot be.
    """
    reported.check(folders, out, price)
    reported.short_names(folders)
    for folder in folders:
        if not reported.is_study(folder):
            run_files.read_origin(folder)


def _finetuned(folder: Path, data: Sequence[str]) -> None:
    """A finished finetuning whose dataset is still there."""
    run_files.best_step(folder)
    if not any(is_url(name) for name in run_files.places(folder, data)):
        run_files.find_dataset(folder, data)


def _raw(data: DataConfig) -> None:
    """Raw data as declared: the files, and the columns of an own table."""
    sources.check_name(data.source)
    if data.source != "table":
        published.check(data)
        return
    declared.own_fields(data)
    for path in (data.raw, data.valid, data.test):
        if path:
            headers.check_columns(Path(path), declared.own_columns(data), data.csv)
    if data.unlabelled:
        headers.check_columns(Path(data.unlabelled), declared.own_columns(data, labelled=False), data.csv)
