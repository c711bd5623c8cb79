"""Every command in the README and the docs is run.

Bash runs each block of commands, with stand-ins that write down what they were called with: so the shell's part
(variables, loops, quotes, continued lines) is its own. Then each call is looked at: `alt-jax` reads its arguments and
goes on to where the work would begin, a benchmark reads its own, a launch script runs dry, an extra and a test have to
exist. The pages that walk through a log of one's own are run for real, from the first command to the last.
"""

import argparse
import functools
import html.parser
import json
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path
from typing import NoReturn

import compiling
import markdown
import pytest

from alt_jax import cli, cluster, preflight, programs
from alt_jax.schema import Schema

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Names that the pages use for what is the reader's own.
STANDS_FOR = {
    "CONFIG": "configs/movielens_100k.py", "VARIANT": "scratch", "PROTOCOL": "time", "L2": "0.001", "TOWER": "fm",
    "TABLES": "adam", "TASK": "plm",
}  # fmt: skip
# Of a shell, of others, or with nothing that could be wrong in it.
OTHERS = ("curl", "diff", "docker", "mountpoint", "sudo", "gcsfuse", "mkdocs", "pre-commit")
TOOLS = ("alt-jax", "python", "pip", "pytest", "sbatch", *OTHERS)
GIVEN = {"MOUNT": "true", "MODEL": "--ctr.dim 8"}  # variables that a page has set elsewhere, or leaves to the reader
_RECORDER = f"""#!{sys.executable} -SE
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([sys.argv[0], *sys.argv[1:]]) + "\\n")
"""


class _Code(html.parser.HTMLParser):
    """The blocks of code of a page, and the pieces of it in running text."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[str, str]] = []  # language, text
        self.inline: list[str] = []
        self._inside: list[str] = []
        self._language, self._text = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("pre", "code"):
            self._inside.append(tag)
        if tag == "code":
            self._text = ""
            self._language = (dict(attrs).get("class") or "").removeprefix("language-")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "code":
            if "pre" in self._inside:
                self.blocks.append((self._language, self._text))
            else:
                self.inline.append(" ".join(self._text.split()))
        if tag in ("pre", "code"):
            self._inside.pop()


def code(page: Path) -> _Code:
    found = _Code()
    text = re.sub(r'^(```\w+) title=".*"$', r"\1", page.read_text(encoding="utf-8"), flags=re.M)
    found.feed(
        markdown.markdown(
            text,
            extensions=["pymdownx.superfences", "pymdownx.highlight", "tables"],
            extension_configs={"pymdownx.highlight": {"use_pygments": False}},
        )
    )
    return found


def titles(page: Path) -> dict[str, str]:
    """Files that a page shows, by name."""
    fences = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', page.read_text(encoding="utf-8"), re.M | re.S)
    return dict(fences)


def commands(page: Path) -> list[str]:
    """What the page tells to type: its blocks without a language, and what begins like a command in its text."""
    found = code(page)
    blocks = [text for language, text in found.blocks if language in ("", "bash")]
    begins = ("alt-jax ", "python benchmarks/", "./launch/", "pytest ", "pip install")
    typed = [text for text in found.inline if text.startswith(begins)]
    return blocks + [text for text in typed if "COMMAND" not in text and "|" not in text]


def calls(block: str, folder: Path) -> list[list[str]]:
    """What bash starts when it runs a block, in order."""
    log = folder / "calls"
    log.unlink(missing_ok=True)
    places = [folder / "bin" / name for name in TOOLS]
    places += [folder / ".venv" / "bin" / name for name in ("alt-jax", "pre-commit")]
    places += [folder / "launch" / path.name for path in (ROOT / "launch").glob("*.sh")]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(_RECORDER)
            path.chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "CALLS": str(log)} | GIVEN
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


class Reached(Exception):  # noqa: N818
    """The work would begin here."""


def _reached(*_: object, **__: object) -> NoReturn:
    raise Reached


WORK = (
    "alt_jax.data.prepare.prepare", "alt_jax.stages.pretrain", "alt_jax.stages.finetune", "alt_jax.stages.evaluate",
    "alt_jax.ablate.ablate", "alt_jax.demo.demo", "alt_jax.export.export", "alt_jax.data.beam.engine",
    "alt_jax.scorer.predict", "alt_jax.inspect.inspect", "alt_jax.report.build.report",
    "alt_jax.serving.server.serve",
)  # fmt: skip


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the configs, in which no command does anything."""
    for name in WORK:
        monkeypatch.setattr(name, _reached)
    for name in ("prepare", "train", "evaluate", "predict", "export", "serve", "ablate", "inspect", "report"):
        monkeypatch.setattr(preflight, name, lambda *_: None)  # it would miss the files that a page speaks of
    monkeypatch.setattr(cluster, "join", lambda *_, **__: None)
    monkeypatch.setattr(programs, "keep", lambda: None)
    (tmp_path / "configs").mkdir()  # which takes configs of the reader's own
    for path in (ROOT / "configs").glob("*.py"):
        (tmp_path / "configs" / path.name).symlink_to(path)
    for name in ("benchmarks", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_alt_jax(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its options are read, its config is loaded, and work would begin."""
    if "…" in arguments:
        arguments = arguments[: arguments.index("…")]
    for name, real in STANDS_FOR.items():
        arguments = [re.sub(rf"\b{name}\b", real, word) for word in arguments]
    if len(arguments) == 1:  # a command's name in running text
        assert arguments[0] in (*cli._COMMANDS, "--help")
        return
    try:
        status = cli.run(arguments)
    except Reached:
        return
    assert status == 0, capsys.readouterr().err
    assert arguments[0] == "list" or "--help" in arguments, "it came to its end without any work"


def check_benchmark(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script reads its arguments."""
    script, *rest = arguments
    parse_known = argparse.ArgumentParser.parse_known_args

    def parsed(self: argparse.ArgumentParser, *_: object) -> NoReturn:
        known, unknown = parse_known(self, rest)
        assert not unknown or "topologies" in script, f"{script}: no {unknown}"
        raise Reached(known)

    rest = [STANDS_FOR.get(word, word) for word in rest]
    if "…" in rest:
        rest = rest[: rest.index("…")]
        rest = rest[:-1] if rest and rest[-1].startswith("--") else rest
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        if "topologies" in script:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", lambda self, *_: parsed(self))
        patch.setattr(sys, "argv", [script, *rest])
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        before = dict(os.environ)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Reached:
            return
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)
    raise AssertionError(f"{script} reads no arguments")


def check_launch(script: str, arguments: list[str], folder: Path) -> None:
    """It runs dry; what only installs or runs everything has to exist, and its extras with it."""
    assert (ROOT / "launch" / script).is_file()
    if script == "setup.sh":
        assert set(arguments) <= set(extras()), arguments
    if script in ("setup.sh", "demo.sh", "test.sh", "attach.sh") or "…" in arguments:
        return
    verbs = ("create", "install", "send", "run", "fetch", "delete", "stop", "all", "slurm", "tpu", "gpu")
    at = 1 if arguments[0] in verbs else 0
    for word in arguments:  # what is to be sent or fetched
        if word.startswith(("data/", "runs/")):
            (folder / word).mkdir(parents=True, exist_ok=True)
            (folder / word / "schema.json").touch()
    environment = {"PATH": f"{folder / 'tools'}:/usr/bin:/bin", "HOME": str(folder), "SLURM_JOB_NUM_NODES": "4"}
    (folder / "tools").mkdir(exist_ok=True)
    for tool in ("gcloud", "kubectl", "nvidia-smi", "sbatch", "scontrol"):
        path = folder / "tools" / tool
        path.write_text("#!/bin/sh\necho us-west4-a\n")
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", f"launch/{script}", *arguments[:at], "--dry-run", *arguments[at:]], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


def check_other(tool: str, arguments: list[str]) -> None:
    """What is installed is an extra, what is tested exists; of the rest there is nothing to know."""
    if tool == "pip":
        named = re.findall(r"(?:alt-jax|\.)\[([a-z,]+)\]", " ".join(arguments))
        assert {extra for names in named for extra in names.split(",")} <= set(extras()), arguments
    if tool == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/")), arguments


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, list[str]] = project["optional-dependencies"]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page(
    page: Path, no_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = titles(page)
    for name, text in shown.items():
        (no_work / name).write_text(text, encoding="utf-8")
    shell = no_work / "shell"
    shell.mkdir()
    for block in commands(page):
        for path, *arguments in calls(block, shell):
            folder, tool = Path(path).parent.name, Path(path).name
            if tool == "alt-jax":
                check_alt_jax(arguments, capsys)
            elif folder == "launch":
                check_launch(tool, arguments, no_work)
            elif tool == "sbatch":
                check_launch("slurm.sbatch", arguments[arguments.index("launch/slurm.sbatch") + 1 :], no_work)
            elif tool == "python" and arguments[0] not in shown:
                check_benchmark(arguments, monkeypatch)
            else:
                check_other(tool, arguments)


def _walk(folder: Path, blocks: list[str]) -> str:
    """Runs blocks in real bash, with the real `alt-jax`; what it says."""
    (folder / "bin").mkdir()
    for name, words in (("alt-jax", ["-m", "alt_jax"]), ("python", [])):
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *words])} "$@"\n')
        path.chmod(0o755)
    environment = (
        os.environ
        | compiling.environment(devices=1)
        | {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
        }
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _blocks() -> list[str]:
    """What `own_log.md` says to type."""
    return [text for language, text in code(ROOT / "docs" / "own_log.md").blocks if language == ""]


def _python() -> str:
    """Its lines of Python that score a row."""
    return next(text for _, text in code(ROOT / "docs" / "own_log.md").blocks if "alt_jax.Scorer" in text)


def test_a_tiny_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`own_log.md` in this process, down to the service, with a smaller log and a smaller ID-only model."""
    small = {"range(12_000)": "range(600)", "epochs=3": "epochs=1", "layers=2": "layers=1", "hidden=48": "hidden=16"}
    small |= {"warmup=0.1": "warmup=0.1, epochs=1", "ema_decay=0.99": "ema_decay=0.99, epochs=1"}
    (tmp_path / "configs").mkdir()
    for name, text in titles(ROOT / "docs" / "own_log.md").items():
        smaller = functools.reduce(lambda text, change: text.replace(*change), small.items(), text)
        assert name != "configs/ads.py" or smaller.count("epochs=1") == 3
        (tmp_path / name).write_text(smaller, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("make_log.py")
    _setup, *blocks, _serve, _ask = _blocks()[: 2 + next(i for i, b in enumerate(_blocks()) if "alt-jax serve" in b)]
    (tmp_path / "shell").mkdir()
    for block in blocks:
        for path, *arguments in calls(block, tmp_path / "shell"):
            assert Path(path).name == "alt-jax"
            if arguments[0] == "finetune" and "runs/ctr" not in arguments:
                continue
            words = [word.replace("joint", "ctr") for word in arguments if "baseline" not in word]
            assert cli.run(list(dict.fromkeys(words))) == 0, capsys.readouterr().err
    capsys.readouterr()
    exec(_python().replace("joint", "ctr"), {})
    assert 0 < float(capsys.readouterr().out.split("[")[-1].split("]")[0]) < 1
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.glob("exported/ctr/*")} > {"params.safetensors", "score.stablehlo"}


def test_a_config_with_every_kind_of_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`data.md`'s, over a log that has all that it names."""
    (tmp_path / "every_kind.py").write_text(titles(ROOT / "docs" / "data.md")["every_kind.py"], encoding="utf-8")
    names = ("user_id", "device", "price", "genres", "item_id", "title", "campaign", "session", "time", "clicked")
    rows = [
        (f"u{n % 9}", "phone", n % 7 / 2, "war|noir", f"i{n % 5}", f"Film {n % 5}", n % 3, f"s{n}", n, n * n % 3 % 2)
        for n in range(200)
    ]
    text = "\n".join(",".join(map(str, row)) for row in [names, *rows])
    (tmp_path / "clicks.csv").write_text(text + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["prepare", "every_kind.py"]) == 0, capsys.readouterr().err
    schema = Schema.load(tmp_path / "data" / "clicks" / "schema.json")
    assert {field.kind for field in schema.fields} == {"category", "numeric", "multi", "sequence", "text"}
    assert cli.run(["inspect", "data/clicks", "--rows", "1"]) == 0
    assert "device is phone. price is" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, str]:
    """`own_log.md`, typed in down to the service: the folder, what was said; how to start the service, to ask it."""
    folder, page = tmp_path_factory.mktemp("walk"), ROOT / "docs" / "own_log.md"
    (folder / "configs").mkdir()
    for name, text in titles(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    blocks = _blocks()
    serving = next(i for i, block in enumerate(blocks) if block.startswith("alt-jax serve"))
    (folder / "score.py").write_text(_python())
    assert blocks[0].startswith("./launch/setup.sh ")  # which tests/launch tries
    said = _walk(folder, ["python make_log.py", *blocks[1:serving], "python score.py"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return folder, said, blocks[serving].replace("8000", port), blocks[serving + 1].replace("8000", port)


@pytest.mark.slow
def test_the_walk_ends_in_scores_and_a_report(walked: tuple[Path, str, str, str]) -> None:
    folder, said, *_ = walked
    assert (folder / "scores.parquet").is_file()
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "exported" / "joint" / "params.safetensors").is_file()
    assert 0 < float(said.split("[")[-1].split("]")[0]) < 1
    # What the page says of its pretraining.
    assert "learned, on 1,024 validation rows: MTM is" in said
    results = [json.loads((folder / "runs" / name / "result.json").read_text()) for name in ("ctr", "ctr_baseline")]
    with_it, without = (result["test"]["auc"] for result in results)
    assert with_it > without + 0.1


@pytest.mark.slow
def test_the_walk_ends_in_a_service(walked: tuple[Path, str, str, str]) -> None:
    """The request is that of the page, whose score is that of Python; curl itself may not be installed."""
    folder, said, serve, ask = walked
    environment = os.environ | compiling.environment(devices=1) | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "alt_jax", *serve.split()[1:]], cwd=folder, env=environment)
    try:
        words = shlex.split(ask)
        url = next(word for word in words if word.startswith("http"))
        header, body = (words[words.index(option) + 1] for option in ("-H", "-d"))
        _wait(url.replace("/score", "/healthz"), process)
        request = urllib.request.Request(url, body.encode(), dict([header.split(": ")]))
        with urllib.request.urlopen(request, timeout=60) as answer:
            scores = json.load(answer)["scores"]
        assert scores == pytest.approx([float(said.split("[")[-1].split("]")[0])], abs=1e-5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Until it answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service has ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")
