import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from tiny_runs import Runs, config_file, trained

from alt_jax import __version__, cli
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.run_files import write_place

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def alt(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`alt(*arguments)`: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def refused(alt: Cli) -> Callable[..., str]:
    """`refused(*arguments)`: the one sentence on stderr of a command that exits with code 2."""

    def call(*arguments: object) -> str:
        code, _, err = alt(*arguments)
        assert code == 2, err
        assert err.startswith(f"alt-jax {arguments[0]}: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return err

    return call


@pytest.fixture
def config(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> str:
    return config_file(tmp_path, tiny_config)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "new" / "run"


# What is said without being asked to work.


def test_usage_names_every_command(alt: Cli) -> None:
    for arguments, code in (((), 2), (("--help",), 0), (("-h",), 0)):
        found, out, _ = alt(*arguments)
        assert found == code
        assert all(f"\n  {command} " in out for command in cli._COMMANDS)
    assert alt("--version")[:2] == (0, f"alt-jax {__version__}\n")


@pytest.mark.parametrize("columns", [None, "100"])
@pytest.mark.parametrize("command", ["", *cli._COMMANDS])
def test_help_of_every_command_fits_a_screen(
    command: str, columns: str | None, alt: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 lines of 100 columns, with an example."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    code, out, err = alt(*filter(None, (command, "--help")))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert out.startswith(f"usage: alt-jax {command or 'COMMAND'}")
    assert any(line.lower().startswith(f"example: alt-jax {command}") for line in lines)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_short_help_says_where_the_values_of_a_config_are_shown(alt: Cli) -> None:
    for command in ("prepare", "pretrain", "finetune", "ablate"):
        _, out, _ = alt(command, "--help")
        assert "--loss.mlm" not in out
        assert f"`alt-jax {command} CONFIG --help` shows them" in out


def test_help_with_a_config_shows_its_values(alt: Cli, config: str) -> None:
    code, out, _ = alt("pretrain", config, "--help")
    assert code == 0
    assert {"--loss.mlm", "--run-dir", "--preset"} <= set(out.split())
    assert "(default: 120)" in out  # text.vocab_size of the tiny experiment


def test_help_is_quick() -> None:
    """Neither jax nor transformers is imported to show how to call a command."""
    code = (
        "import sys; from alt_jax import cli\n"
        "for arguments in (['--help'], ['pretrain', '--help'], ['export', '--help']): cli.run(arguments)\n"
        "heavy = {'jax', 'flax', 'transformers', 'orbax', 'pyarrow', 'tensorflow', 'torch'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_module_and_exit_code() -> None:
    """Really as a process, since the exit code is a contract."""
    found = subprocess.run(
        [sys.executable, "-m", "alt_jax", "pretrain", "/no/such.py"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr == "alt-jax pretrain: Config /no/such.py does not exist; the shipped ones are in configs/.\n"
    assert found.stdout == ""


@pytest.mark.parametrize("arguments", [["--help"], ["ablate", "--help"], ["list", "towers"]])
def test_the_reader_of_the_output_may_go(arguments: list[str]) -> None:
    """`alt-jax ablate --help | head` says no more than head shows."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "alt_jax", *arguments]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("towers", "dcn_mix"),
        *(("texts", family) for family in ("bert", "roberta", "distilbert", "electra", "modernbert")),
        ("datasets", "table"),
        ("datasets", "bookcrossing"),
        ("datasets", "goodreads"),
        ("protocols", "random"),
        ("protocols", "cold_items"),
        ("presets", "paper"),
        ("studies", "baselines"),
    ],
)
def test_list(alt: Cli, what: str, name: str) -> None:
    code, out, _ = alt("list", what)
    assert code == 0
    assert name in out.splitlines()


# Arguments that cannot be.


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pretrain.batch-siz", "8"], "no option --pretrain.batch-siz; did you mean --pretrain.batch-size?"),
        (["--loss.mlmm=0"], "no option --loss.mlmm; did you mean --loss.mlm?"),
        (["--ctr.tower_name", "x"], "did you mean --ctr.tower?"),
        (["--run-dri", "x"], "did you mean --run-dir?"),
        (["--xyzzy", "1"], "no option --xyzzy; `alt-jax pretrain"),
        (["--loss.mlm", "-1"], "--loss.mlm: Input should be greater than or equal to 0 (got -1.0)"),
        (["--loss.mlm", "nan"], "--loss.mlm: Input should be a finite number"),
        (["--finetune.plm.batch-size=0"], "--finetune.plm.batch-size: Input should be greater than 0 (got 0)"),
        (["--pretrain.checkpoint_every", "-2"], "--pretrain.checkpoint-every: "),
        (["--seed", "-1"], "--seed: "),
        (["--seed", "four"], "--seed: invalid literal for int() with base 10: 'four'"),
        (["--seed"], "Missing value for argument '--seed'"),
        (["--mtm.method", "hinge"], "invalid choice 'hinge' for argument '--mtm.method'"),
        (["surplus"], "Unrecognized options: surplus"),
        ([], "give --run-dir"),
    ],
)
def test_flag_that_cannot_be(refused: Callable[..., str], config: str, flags: list[str], said: str) -> None:
    assert said in refused("pretrain", config, *flags, *(["--run-dir", "/nowhere"] if flags else []))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretain"], "no such command"),
        (["pretrain"], "give a config file first"),
        (["pretrain", "--run-dir", "x"], "give a config file first"),
        (["finetune", "CONFIG", "--strategy", "both"], "invalid choice 'both'"),
        (["finetune", "CONFIG", "--strategy", "ctr", "--run-dir", "x"], "give --init-from"),
        (["evaluate"], "give the folder of a finished run"),
        (["evaluate", "x", "--split", "dev"], "invalid choice 'dev'"),
        (["predict", "x", "y"], "give -o"),
        (["predict", "x", "-o", "z"], "give rows;"),
        (["list", "tower"], "invalid choice 'tower'"),
    ],
)
def test_command_that_cannot_be(refused: Callable[..., str], config: str, arguments: list[str], said: str) -> None:
    assert said in refused(*(config if argument == "CONFIG" else argument for argument in arguments))


def test_config_file_that_cannot_be(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text("x = 1\n")
    assert "get_config()" in refused("prepare", path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be run" in refused("prepare", path)
    assert "does not exist" in refused("prepare", tmp_path)


# Data and values that cannot be.


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.raw", "/no/such/table.csv"], "/no/such/table.csv does not exist"),
        (["--data.raw", ""], "data.raw"),
        (["--data.source", "movielens"], "did you mean 'movielens_1"),
        (["--data.protocol", "randon"], "did you mean 'random'?"),
        (["--data.label", "lable"], "did you mean 'label'?"),
        (["--data.label", "title"], "title"),
        (["--data.positive-above", "9"], "data.positive_above"),
        (["--data.min-count", "1000"], "data.min_count"),
        (["--data.user", "nobody"], "'nobody'"),
        (["--data.timestamp", "title", "--data.protocol", "time"], "'title'"),
        (["--text.model", "/no/such/model"], "/no/such/model"),
        (["--text.max-length", "8"], "text.max_length is 8"),
    ],
)
def test_prepare_refuses(refused: Callable[..., str], config: str, tmp_path: Path, flags: list[str], said: str) -> None:
    out = tmp_path / "prepared"
    assert said in refused("prepare", config, "--data.dir", out, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.py"]


def test_prepare_refuses_a_table_too_small_to_split(
    refused: Callable[..., str], config: str, tmp_path: Path, tiny_config: Config
) -> None:
    pq.write_table(pq.read_table(tiny_config.data.raw).slice(0, 3), tmp_path / "small.parquet")
    said = refused("prepare", config, "--data.raw", tmp_path / "small.parquet", "--data.dir", tmp_path / "prepared")
    assert "split of" in said
    assert "is empty" in said
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.dir", "/no/such/dataset"], "run `alt-jax prepare` first"),
        (["--data.protocol", "time"], "was prepared with data.protocol = 'random', not 'time'; pass --data.protocol r"),
        (["--loss.icl", "0", "--loss.mlm", "0", "--loss.mtm", "0"], "nothing to pretrain"),
        (["--ctr.tower", "dcnmix"], "did you mean 'dcn_mix'?"),
        (["--pretrain.batch-size", "488"], "larger than the 480 training rows"),
        (["--pretrain.batch-size", "15"], "multiple of 2"),
        (["--text.model", "MODEL"], "prepared with the tokenizer 'trained'"),
        (["--text.heads", "3"], "text.hidden 16 is not divisible by text.heads 3"),
    ],
)
def test_pretrain_refuses(
    refused: Callable[..., str],
    config: str,
    run_dir: Path,
    tiny_config: Config,
    tiny_dataset: Dataset,
    tmp_path: Path,
    flags: list[str],
    said: str,
) -> None:
    if "MODEL" in flags:
        out = tmp_path / "exported"
        from alt_jax.export import export

        export(trained(tiny_config).joint, out)
        settings = json.loads((out / "text_tower" / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["do_lower_case"] = False
        (out / "text_tower" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        flags = [flags[0], str(out / "text_tower")]
    assert said in refused("pretrain", config, "--run-dir", run_dir, *flags)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--init-from", "none", "--text.max-length", "32"], "was prepared with text.max_length = 64, not 32; pass"),
        (["--init-from", "/no/such/run"], "/no/such/run is not a run folder"),
        (["--init-from", "none", "--finetune.ctr.batch-size", "488"], "larger than the 480 training rows"),
        (["--init-from", "none", "--finetune.ctr.batch-size", "15"], "multiple of 2"),
    ],
)
def test_finetune_refuses(refused: Callable[..., str], config: str, run_dir: Path, flags: list[str], said: str) -> None:
    assert said in refused("finetune", config, "--strategy", "ctr", "--run-dir", run_dir, *flags)
    assert not run_dir.exists()


def test_run_folder_of_something_else(
    refused: Callable[..., str], config: str, tiny_config: Config, tmp_path: Path
) -> None:
    runs = trained(tiny_config)
    assert "started with pretrain.epochs = 3, not 1" in refused("pretrain", config, "--run-dir", runs.pretrain)
    arguments = ["finetune", config_file(tmp_path, runs.config), "--strategy", "ctr", "--init-from", "none"]
    assert "another run" in refused(*arguments, "--run-dir", runs.pretrain)
    assert "not a run folder" in refused(*arguments, "--run-dir", Path(tiny_config.data.dir))


# What is done with a finished run.


@pytest.fixture
def runs(tiny_config: Config, tiny_dataset: Dataset) -> Runs:
    return trained(tiny_config)


@pytest.fixture
def rows(tmp_path: Path, tiny_config: Config) -> Path:
    table = pq.read_table(tiny_config.data.raw).drop_columns(["label"]).slice(0, 5)
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def test_evaluate_prints_one_json_object(alt: Cli, runs: Runs) -> None:
    code, out, _ = alt("evaluate", runs.ctr, "--json")
    assert code == 0
    found = json.loads(out)
    assert found == json.loads((runs.ctr / "result.json").read_text(encoding="utf-8"))["test"]
    assert {"auc", "logloss", "gauc", "ece", "rows"} <= found.keys()
    code, out, _ = alt("evaluate", runs.ctr, "--split", "valid")
    assert code == 0
    assert "\nauc " in out


def test_a_stage_says_what_it_does_before_it_compiles(runs: Runs, tiny_config: Config) -> None:
    """In a pipe, where nothing else is to be seen meanwhile."""
    first, *more = runs.said.splitlines()
    assert first.startswith("finetune joint · seed 0 · 2 × ")
    assert first.endswith(tiny_config.data.dir)
    at = more.index("compiling…")
    assert re.fullmatch(r"compiled in \d+\.\d s", more[at + 1])
    assert more[at + 2].startswith("epoch 1/")
    assert more.count("compiling…") == 1


def test_predict_and_export(alt: Cli, runs: Runs, rows: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    assert alt("predict", runs.ctr, rows, "-o", scores)[:2] == (
        0,
        f"predict · {runs.ctr} · {rows} → {scores}\nscored 5 rows to {scores}\n",
    )
    assert alt("export", runs.ctr, tmp_path / "out")[0] == 0
    assert alt("predict", tmp_path / "out", rows, "--output", tmp_path / "again.csv")[0] == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "scores.csv").read_bytes()


def test_finished_run_is_refused_where_it_does_not_serve(
    refused: Callable[..., str], runs: Runs, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    assert "predicts no clicks" in refused("evaluate", runs.pretrain)
    assert "predicts no clicks" in refused("predict", runs.pretrain, rows, "-o", out)
    assert "predicts no clicks" in refused("export", runs.pretrain, tmp_path / "out")
    assert "not a run folder" in refused("evaluate", tmp_path)
    assert "not a run folder" in refused("evaluate", tmp_path / "nowhere")
    assert "already exists" in refused("export", runs.ctr, tmp_path)

    half = tmp_path / "half"
    shutil.copytree(runs.ctr, half)
    (half / "result.json").unlink()
    assert "not finished" in refused("evaluate", half)
    shutil.copy(runs.ctr / "result.json", half)
    shutil.rmtree(half / "checkpoints")
    assert "holds no checkpoint" in refused("evaluate", half)
    for content in ("{}", '{"best_step": "x"}', '{"best_step": null}'):
        (half / "result.json").write_text(content)
        assert "result.json" in refused("evaluate", half)


def test_predict_refuses_rows(refused: Callable[..., str], runs: Runs, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"

    def said(path: Path) -> str:
        return refused("predict", runs.ctr, path, "-o", out)

    assert "does not exist" in said(tmp_path / "none.csv")
    (tmp_path / "rows.txt").write_text("x")
    assert "not named like a table" in said(tmp_path / "rows.txt")
    table = pyarrow.csv.read_csv(rows)
    pyarrow.csv.write_csv(table.rename_columns([n.replace("title", "titel") for n in table.column_names]), rows)
    assert "has no column 'title'; did you mean 'titel'?" in said(rows)
    rows.write_text("user_id,gender\n1,2,3\n")
    assert str(rows) in said(rows)
    rows.write_bytes("user_id,gender,age,item_id,title,genre\nü,f,1,2,3,4\n".encode("latin-1"))
    assert "UTF-8" in said(rows)
    rows.write_text("")
    assert str(rows) in said(rows)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no more")
    assert "cannot be read as Parquet" in said(tmp_path / "rows.parquet")
    nested = pa.table({name: [[1]] for name in ("user_id", "gender", "age", "item_id", "title", "genre")})
    pq.write_table(nested, tmp_path / "rows.parquet")
    assert "no plain spelling" in said(tmp_path / "rows.parquet")
    assert not out.exists()


def test_predict_says_before_scoring_that_the_output_cannot_be_written(
    refused: Callable[..., str], runs: Runs, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alt_jax.scorer.Scorer.score", lambda *_: pytest.fail("scored in vain"))
    (tmp_path / "taken.csv").mkdir()
    assert "taken.csv cannot be written (Is a directory)" in refused(
        "predict", runs.ctr, rows, "-o", tmp_path / "taken.csv"
    )
    assert "cannot be written" in refused("predict", runs.ctr, rows, "-o", rows / "scores.csv")


def test_dataset_prepared_again_is_refused(refused: Callable[..., str], alt: Cli, runs: Runs, tmp_path: Path) -> None:
    """Evaluating on other rows under the same name would be a silent mistake."""
    config = dataclasses.replace(runs.config.data, dir=str(tmp_path / "prepared"))
    moved = tmp_path / "run"
    shutil.copytree(runs.ctr, moved)
    (moved / "config.json").write_text(dataclasses.replace(runs.config, data=config).to_json(), encoding="utf-8")
    (moved / "data.json").unlink()  # as in a run of an older version
    assert "prepared/schema.json does not exist); name its folder with --data.dir" in refused("evaluate", moved)
    again = config_file(tmp_path, dataclasses.replace(runs.config, data=config))
    assert alt("prepare", again, "--data.protocol", "time")[0] == 0
    assert "prepared holds another one" in refused("evaluate", moved)


def test_a_dataset_that_has_been_moved_is_named(
    alt: Cli, refused: Callable[..., str], runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, and with the run copied to where nothing of the dataset's place is left."""
    shutil.copytree(runs.ctr, tmp_path / "run")
    shutil.copytree(runs.config.data.dir, tmp_path / "elsewhere")
    write_place(tmp_path / "run", "/no/such/place")
    changed = runs.config.override({"data.dir": "prepared"})
    (tmp_path / "run" / "config.json").write_text(changed.to_json(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    said = refused("evaluate", "run")
    assert all(place in said for place in ("/no/such/place/schema.json", "(", "prepared/schema.json does not exist)"))
    code, out, _ = alt("evaluate", "run", "--data.dir", "elsewhere", "--json")
    assert code == 0
    result = json.loads((runs.ctr / "result.json").read_text())["test"]
    assert json.loads(out)["auc"] == pytest.approx(result["auc"])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody, root included, can write")
def test_unwritable_run_folder(refused: Callable[..., str], config: str) -> None:
    assert "cannot be written" in refused("pretrain", config, "--run-dir", "/proc/run")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--mlm.unit", "token", "--mask.pairing", "same"],
            "--mask.pairing 'same' pairs the fields that MLM and MTM hide",
        ),
        (["--icl.learn-temperature", "True", "--icl.temperature", "0.001"], "--icl.temperature 0.001 is below 0.01"),
        (
            ["--finetune.joint.fusion", "average", "--finetune.joint.alpha", "0.2"],
            "--finetune.joint.alpha 0.2 has no effect",
        ),
    ],
)
def test_values_that_do_not_go_together(refused: Callable[..., str], config: str, flags: list[str], said: str) -> None:
    message = refused("pretrain", config, "--run-dir", "nowhere", *flags)
    assert said in message
    assert "ArgsKwargs" not in message
    assert not Path("nowhere").exists()
