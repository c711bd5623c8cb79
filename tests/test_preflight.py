"""What is refused before anything heavy is imported, and that the stages refuse it in the same words."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from tiny_runs import config_file

from alt_jax import bridge, scorer, stages, studies
from alt_jax.ablate import ablate
from alt_jax.config import Config, Strategy
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.sources import table
from alt_jax.errors import InputError
from alt_jax.export import export
from alt_jax.inspect import inspect
from alt_jax.report.build import report
from alt_jax.run import Origin, Run
from alt_jax.run_files import write_json

# Runs every command in one process, and tells what each said, its exit code, and what of the heavy is imported after.
CHILD = """
import contextlib, io, json, sys
from alt_jax import cli

said = {}
for name, arguments in json.load(sys.stdin).items():
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = cli.run(arguments)
    heavy = [m for m in ("jax", "flax", "transformers", "pyarrow._compute", "scipy", "matplotlib") if m in sys.modules]
    said[name] = [code, error.getvalue(), heavy]
json.dump(said, sys.stdout)
"""


class Case(NamedTuple):
    """A command that is refused; and what refuses it where the heavy modules are there, None for arguments alone."""

    arguments: list[object]
    heavy: Callable[[], object] | None


# Refused by the arguments, or by what stands before a stage in the command itself.
BY_ARGUMENTS = ("pretrain: option", "pretrain: no config", "evaluate: nothing", "serve: port", "list: choice")
NAMES = (
    *BY_ARGUMENTS,
    *(
        "prepare: no raw",
        "prepare: no file",
        "prepare: no column",
        "prepare: no column in a CSV",
        "prepare: no such user",
    ),
    *("prepare: no source", "prepare: no protocol", "prepare: taken", "prepare: no zip"),
    *("prepare: no folder", "prepare: no such user"),
    *("pretrain: no dataset", "pretrain: prepared otherwise"),
    *("pretrain: url", "pretrain: taken", "pretrain: another run", "pretrain: another config", "pretrain: no run"),
    *("finetune: from a finetuning", "finetune: from another schema", "finetune: from one unfinished"),
    *("evaluate: no run", "evaluate: unfinished", "evaluate: pretraining", "evaluate: no dataset"),
    *(
        "predict: no model",
        "predict: no rows",
        "predict: no table",
        "predict: no column",
        "predict: no column in a CSV",
    ),
    *("predict: damaged", "predict: output", "predict: same file"),
    *("export: no run", "export: taken", "serve: no model"),
    *("ablate: no study", "ablate: no arm", "ablate: no raw", "ablate: prepared otherwise"),
    *("inspect: nothing", "inspect: rows", "report: no run", "report: twice", "report: price"),
)


def changed(config: Config, **data: object) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


class World:
    """Run folders that look finished and hold no weights, tables, and a config file of it all."""

    def __init__(self, root: Path, config: Config, dataset: Dataset) -> None:
        self.root, self.config, self.schema = root, config, dataset.schema
        self.encoder = bridge.encoder_config(config.text, dataset.schema)
        self.file = config_file(root, config)
        self.new, self.nothing, self.taken, self.other = (root / n for n in ("new", "nothing", "taken", "other"))
        self.taken.mkdir()
        (self.taken / "notes.txt").write_text("mine")

        self.pretrained, self.half = self.run("pretrained", None), self.run("half", None, finished=False)
        self.ctr, self.unfinished = self.run("ctr", "ctr"), self.run("unfinished", "ctr", finished=False)
        self.gone = self.run("gone", "ctr", changed(config, dir=str(root / "nowhere")))
        shutil.copytree(self.pretrained, self.other)
        text = (self.other / "schema.json").read_text(encoding="utf-8")
        text = text.replace(dataset.schema.vocabulary_hash, 64 * "0")
        (self.other / "schema.json").write_text(text, encoding="utf-8")

        self.raw = Path(config.data.raw)
        self.wrong, self.csv, self.no_table, self.damaged = (
            root / name for name in ("wrong.parquet", "wrong.csv", "rows.txt", "damaged.parquet")
        )
        rows = pq.read_table(self.raw)
        rows = rows.rename_columns([name.replace("title", "titel") for name in rows.column_names])
        pq.write_table(rows, self.wrong)
        pyarrow.csv.write_csv(rows, self.csv)
        shutil.copy(self.raw, self.no_table)
        self.damaged.write_bytes(b"PAR1 no more")

    def run(self, name: str, strategy: Strategy | None, config: Config | None = None, *, finished: bool = True) -> Path:
        origin = Origin("pretrain" if strategy is None else "finetune", strategy)
        folder = Run(self.root / name, origin, config or self.config, self.schema, self.encoder).start().folder
        scores = {"auc": 0.5, "rows": 60}
        if finished:
            write_json(folder / "result.json", {"best_step": 1, "valid": scores, "test": scores})
        return folder


def options(**data: str) -> list[object]:
    return [word for name, value in data.items() for word in (f"--data.{name}", value)]


def of_prepare(world: World) -> Iterator[tuple[str, list[object], Callable[[], object] | None]]:
    for name, values in (
        ("no raw", {"raw": ""}),
        ("no file", {"raw": str(world.nothing)}),
        ("no column", {"label": "lable"}),
        ("no column in a CSV", {"raw": str(world.csv)}),
        ("no such user", {"user": "nobody"}),
        ("no source", {"source": "movielens"}),
        ("no protocol", {"protocol": "randon"}),
        ("taken", {"dir": str(world.taken)}),
    ):
        data = {"dir": str(world.new)} | values
        yield f"prepare: {name}", [world.file, *options(**data)], partial(prepare, changed(world.config, **data))
    for name, values in (
        ("no zip", {"source": "movielens_1m", "raw": str(world.nothing)}),
        ("no folder", {"source": "goodreads"}),
    ):
        config = changed(Config(), dir=str(world.new), **values)
        own = world.root / values["source"]
        own.mkdir()
        yield f"prepare: {name}", [config_file(own, config)], partial(prepare, config)


def of_training(world: World) -> Iterator[tuple[str, list[object], Callable[[], object] | None]]:
    yield "pretrain: option", [world.file, "--run-dri", world.new], None
    yield "pretrain: no config", [world.nothing, "--run-dir", world.new], None
    for name, values, folder in (
        ("no dataset", {"dir": str(world.nothing)}, world.new),
        ("prepared otherwise", {"protocol": "time"}, world.new),
        ("url", {}, Path("gs://bucket/run")),
        ("another run", {}, world.ctr),
    ):
        heavy = partial(stages.pretrain, changed(world.config, **values), folder)
        yield f"pretrain: {name}", [world.file, *options(**values), "--run-dir", folder], heavy
    seeded = dataclasses.replace(world.config, seed=3)
    arguments = [world.file, "--seed", 3, "--run-dir", world.half]
    yield "pretrain: another config", arguments, partial(stages.pretrain, seeded, world.half)
    run = Run(world.taken, Origin("pretrain"), world.config, world.schema, world.encoder)
    yield "pretrain: taken", [world.file, "--run-dir", world.taken], run.start
    for name, flags, folder in (
        ("pretrain: no run", [], world.nothing),
        ("finetune: from a finetuning", ["--strategy", "ctr"], world.ctr),
        ("finetune: from another schema", ["--strategy", "ctr"], world.other),
        ("finetune: from one unfinished", ["--strategy", "ctr"], world.half),
    ):
        arguments = [world.file, *flags, "--init-from", folder, "--run-dir", world.new]
        yield name, arguments, partial(bridge.transfer, {}, "ctr", folder, world.schema)


def of_models(world: World) -> Iterator[tuple[str, list[object], Callable[[], object] | None]]:
    yield "evaluate: nothing", [], None
    for name, folder in (
        ("evaluate: no run", world.nothing),
        ("evaluate: unfinished", world.unfinished),
        ("evaluate: pretraining", world.pretrained),
    ):
        yield name, [folder, "--json"], partial(stages.evaluate, [folder], "test")
    yield "evaluate: no dataset", [world.gone], partial(stages.open_dataset, Run.load(world.gone))

    ctr, raw, new, nothing = world.ctr, world.raw, world.new, world.nothing
    scores = world.root / "scores.csv"
    yield "predict: no model", [nothing, raw, "-o", scores], partial(scorer.predict, nothing, raw, scores)
    for name, path in (
        ("no rows", nothing),
        ("no table", world.no_table),
        ("no column", world.wrong),
        ("no column in a CSV", world.csv),
        ("damaged", world.damaged),
    ):
        yield f"predict: {name}", [ctr, path, "-o", scores], partial(table.read, path, world.schema.columns)
    yield "predict: output", [ctr, raw, "-o", new], partial(scorer.predict, ctr, raw, new)
    yield "predict: same file", [ctr, raw, "-o", raw], partial(scorer.predict, ctr, raw, raw)
    out = world.new.with_name("exported")  # which no other refusal makes
    yield "export: no run", [nothing, out], partial(export, nothing, out)
    yield "export: taken", [ctr, world.taken], partial(export, ctr, world.taken)
    yield "serve: no model", [nothing], partial(scorer.Scorer.load, nothing)
    yield "serve: port", [ctr, "--port", 65536], None


def of_many(world: World) -> Iterator[tuple[str, list[object], Callable[[], object] | None]]:
    new, nothing, losses = world.new, str(world.nothing), studies.get("losses")

    def study(**data: str) -> Callable[[], object]:
        return partial(ablate, changed(world.config, **data), losses.only(["icl"]), seeds=1, folder=new, jobs=1)

    flags: list[object] = [world.file, "--study", "losses", "--run-dir", new, "--arms", "icl"]
    unprepared = {"dir": str(new), "raw": nothing}
    yield "ablate: no study", [world.file, "--study", "loses", "--run-dir", new], partial(studies.get, "loses")
    yield "ablate: no arm", [*flags, "mmm"], partial(losses.only, ["icl", "mmm"])
    yield "ablate: no raw", [*flags, *options(**unprepared)], study(**unprepared)
    yield "ablate: prepared otherwise", [*flags, *options(protocol="time")], study(protocol="time")

    ctr, page = world.ctr, new / "page.html"
    yield "inspect: nothing", [world.taken], partial(inspect, str(world.taken))
    yield "inspect: rows", [ctr, "--rows", -1], partial(inspect, str(ctr), -1)
    yield "report: no run", [nothing, "-o", page], partial(report, [world.nothing], page)
    yield "report: twice", [ctr, ctr, "-o", page], partial(report, [ctr, ctr], page)
    yield "report: price", [ctr, "--price", -1], partial(report, [ctr], price=-1.0)
    yield "list: choice", ["tower"], None


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config, tiny_dataset: Dataset) -> dict[str, Case]:
    """Every refusal."""
    world = World(tmp_path_factory.mktemp("refused"), tiny_config, tiny_dataset)
    made = itertools.chain(of_prepare(world), of_training(world), of_models(world), of_many(world))
    return {name: Case([name.partition(":")[0], *arguments], heavy) for name, arguments, heavy in made}


@pytest.fixture(scope="module")
def said(cases: dict[str, Case]) -> dict[str, tuple[int, str, list[str]]]:
    """What every command says: its code, standard error, and what of the heavy is imported by then."""
    commands = {name: [str(argument) for argument in case.arguments] for name, case in cases.items()}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(commands), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str, list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused_in_one_sentence_with_nothing_heavy_imported(
    name: str, said: dict[str, tuple[int, str, list[str]]]
) -> None:
    code, error, heavy = said[name]
    assert code == 2
    assert error.startswith(f"alt-jax {name.partition(':')[0]}: ")
    assert error.count("\n") == 1
    assert not heavy


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_ARGUMENTS])
def test_the_stages_refuse_it_in_the_same_words(
    name: str, cases: dict[str, Case], said: dict[str, tuple[int, str, list[str]]]
) -> None:
    heavy = cases[name].heavy
    assert heavy is not None
    with pytest.raises(InputError) as found:
        heavy()
    assert said[name][1] == f"alt-jax {name.partition(':')[0]}: {found.value}\n"


def test_every_case_is_asked(cases: dict[str, Case]) -> None:
    assert set(cases) == set(NAMES)


def test_the_shipped_configs_import_nothing_heavy() -> None:
    """A config is read before anything can be refused by it."""
    code = (
        "import sys; from pathlib import Path; from alt_jax.config import load_config\n"
        "for path in Path('configs').glob('*.py'): load_config(path)\n"
        "heavy = {'jax', 'flax', 'transformers', 'pyarrow'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_goes_on_does_not_need_where_it_started_from(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    """Its pretraining may be gone by then."""
    from alt_jax import preflight

    origin = Origin("finetune", "ctr", str(tmp_path / "gone"))
    encoder = bridge.encoder_config(tiny_config.text, tiny_dataset.schema)
    with pytest.raises(InputError, match="is not a run folder"):
        preflight.train(tiny_config, origin, tmp_path / "run")
    Run(tmp_path / "run", origin, tiny_config, tiny_dataset.schema, encoder).start()
    preflight.train(tiny_config, origin, tmp_path / "run")
