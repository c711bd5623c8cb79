import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import pytest

from alt_jax import cli, console
from alt_jax.progress import Meter

# A stage of ten updates that says something in between.
STAGE = """
import sys
from alt_jax import console
from alt_jax.progress import Meter

console.use(sys.argv[1])
with Meter("finetune joint", 4800) as meter:
    for number in range(10):
        meter.advance(480)
        meter.show(losses={"loss": 1.88214}, share_of_peak=0.34, learning_rates={"text": 5e-5, "rest": 1e-3})
        if number == 5:
            console.log("epoch 1/2")
"""


def on_terminal(columns: int) -> str:
    """What a terminal of a width receives."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen([sys.executable, "-c", STAGE, "text"], stdout=theirs, stderr=theirs):
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize(("columns", "counts"), [(100, True), (75, False)])
def test_a_terminal_shows_one_line(columns: int, counts: bool) -> None:
    said = on_terminal(columns)
    lines = said.replace("\n", "\r").split("\r")
    assert max(map(len, lines)) <= columns
    last = [line for line in lines if line.strip()][-1]
    assert last.startswith("finetune joint 100%")
    assert ("4.80k/4.80k" in last) == counts
    assert "rows/s" in last
    assert "ETA 00:00, loss 1.88" in last
    if counts:
        assert last.rstrip().endswith("34% of peak  lr 5e-5/1e-3")
    assert "epoch 1/2" in [line.strip() for line in lines]  # on a line of its own
    assert said.endswith("\n")


def test_a_pipe_shows_none() -> None:
    done = subprocess.run([sys.executable, "-c", STAGE, "text"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("epoch 1/2\n", "")


def test_json_has_an_object_a_line() -> None:
    done = subprocess.run([sys.executable, "-c", STAGE, "json"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["message"] for line in found] == ["progress", "epoch 1/2", "progress"]
    last = found[-1]
    assert (last["stage"], last["rows"], last["of"], last["eta_s"]) == ("finetune joint", 4800, 4800, 0)
    assert (last["loss"], last["share_of_peak"]) == (1.88214, 0.34)
    assert last["learning_rates"] == {"text": 5e-5, "rest": 1e-3}
    assert last["time"].endswith("+00:00")


def test_streams_facts_and_levels(capsys: pytest.CaptureFixture[str]) -> None:
    console.log("a", number=1)
    console.error("b")
    assert capsys.readouterr() == ("a\n", "b\n")
    console.use("json")
    console.log("a", number=float("nan"), where=Path("x"))
    console.warn("b\nc")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    out, err = capsys.readouterr()
    one = json.loads(out)
    assert (one["level"], one["message"], one["number"], one["where"]) == ("info", "a", None, "x")
    two, three = (json.loads(line) for line in err.splitlines())
    assert (two["level"], two["message"]) == ("warning", "b\nc")
    assert "old" in three["message"]


def test_compiling_is_said_with_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    console.use("json")
    with console.compiling():
        assert json.loads(capsys.readouterr().out)["message"] == "compiling…"
    found = json.loads(capsys.readouterr().out)
    assert found["message"] == f"compiled in {found['seconds']} s"


def test_a_crash_is_one_object() -> None:
    code = "from alt_jax import console; console.use('json'); 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = json.loads(done.stderr)
    assert (done.returncode, found["message"]) == (1, "ZeroDivisionError: division by zero")
    assert "Traceback" in found["traceback"]


@pytest.mark.parametrize("flag", ["--log-format", "--log_format"])
@pytest.mark.parametrize("command", ["prepare", "pretrain", "finetune", "ablate"])
def test_what_a_command_refuses_has_the_format(capsys: pytest.CaptureFixture[str], command: str, flag: str) -> None:
    assert cli.run([command, "/no/such.py", flag, "json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(err)
    assert out == ""
    assert (found["level"], found["exit_code"]) == ("error", 2)
    assert found["message"].startswith(f"alt-jax {command}: Config /no/such.py does not exist")


def test_nobody_sees_progress_of_another_process() -> None:
    console.use("json")
    assert not Meter("pretrain", 8, first=False).wanted
