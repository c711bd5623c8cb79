"""gpu.sh starts a run again where that helps; attach.sh keeps one running when its connection ends."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from world import World

TRAIN = ("alt-jax", "pretrain", "configs/a.py", "--run-dir", "runs/a")


def trainings(world: World) -> int:
    return len(world.calls("alt-jax"))


def wait_for(world: World, line: str, log: Path | None = None) -> None:
    """Until a started run has said it."""
    for _ in range(300):
        if log is not None and log.exists() and line in log.read_text():
            return
        if log is None and trainings(world):
            return
        time.sleep(0.1)
    raise AssertionError(f"{line!r} did not come")


@pytest.mark.parametrize(
    ("codes", "code", "starts"),
    [
        ([0], 0, 1),
        ([75, 75, 0], 0, 3),
        ([2], 2, 1),
        ([75, 2], 2, 2),
        ([134, 0], 0, 2),
        ([134, 134, 134, 134], 134, 3),  # --retries 2
        ([134, 134, 75, 134, 134, 0], 0, 6),  # those before it saved do not count
        ([127], 127, 1),
    ],
)
def test_what_is_started_again(codes: list[int], code: int, starts: int, world: World) -> None:
    world.play("alt-jax", *({"code": code} for code in codes))
    done = world.run("gpu.sh", "--retries", "2", *TRAIN)
    assert done.returncode == code
    assert trainings(world) == starts
    assert [str(call) for call in world.calls("setup")] == ["setup cuda"]
    assert {call.env["JAX_PLATFORMS"] for call in world.calls("alt-jax")} == {"cuda,cpu"}
    assert {str(call) for call in world.calls("alt-jax")} == {" ".join(TRAIN)}


def test_without_a_gpu_nothing_is_installed_or_run(world: World) -> None:
    world.play("nvidia-smi", {"code": 9, "err": "driver not loaded\n"})
    done = world.run("gpu.sh", *TRAIN)
    assert done.returncode == 2
    assert "found no GPU" in done.stderr
    assert [call.tool for call in world.calls()] == ["nvidia-smi"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_run_save_and_ends_the_script(number: signal.Signals, world: World) -> None:
    world.play("alt-jax", {"until_term": True, "code": 75})
    script = world.start("gpu.sh", *TRAIN)
    try:
        while "alt-jax runs" not in script.stdout.readline():
            pass
        os.kill(script.pid, number)  # to the script alone, as `kill` does it, or a supervisor
        assert script.wait(timeout=30) == 75
    finally:
        script.stdout.close()
        script.kill()
    assert trainings(world) == 1
    assert world.refused() == ""


@pytest.fixture
def vm(world: World) -> World:
    """After an installation."""
    subprocess.run(["sh", world.repo / "launch" / "setup.sh", "tpu"], env=world.env, check=True)
    return world


def test_a_run_outlives_its_connection_and_is_attached_to(vm: World) -> None:
    vm.play("alt-jax", {"until_term": True, "code": 75})
    log = vm.folder / "home" / ".alt-jax" / "log"
    first = vm.start("attach.sh", *TRAIN)
    first.stdout.close()
    wait_for(vm, "alt-jax runs", log)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    other = vm.run("attach.sh", "alt-jax", "evaluate", "runs/a")
    assert other.returncode == 69
    assert "another command is running here: alt-jax pretrain configs/a.py --run-dir runs/a;" in other.stderr

    again = vm.start("attach.sh", *TRAIN)
    assert "running already" in again.stdout.readline()
    assert "alt-jax runs" in again.stdout.readline()
    stop = vm.run("attach.sh", "--stop")
    assert stop.returncode == 0
    assert again.wait(timeout=30) == 75
    again.stdout.close()
    assert trainings(vm) == 1
    assert vm.run("attach.sh", "--stop").returncode == 2  # nothing is running any more


@pytest.mark.parametrize("code", [0, 2, 75, 134])
def test_attached_the_exit_code_and_the_output_are_the_commands(code: int, vm: World) -> None:
    vm.play("alt-jax", {"code": code, "out": "AUC 0.5"}, {"out": "the second"})
    done = vm.run("attach.sh", *TRAIN)
    assert done.returncode == code
    assert done.stdout == "AUC 0.5\n"
    again = vm.run("attach.sh", *TRAIN)
    assert again.returncode == 0
    assert again.stdout == "the second\n"
