"""tpu_vm.sh step by step, and tpu_queued.sh through preemptions, in a small cloud (fake_tool.py)."""

import os
import signal
from collections.abc import Callable

import pytest
from world import World

NAME = ("--name", "a")
TRAIN = ("alt-jax", "pretrain", "configs/it's a config.py", "--run-dir", "runs/a")
QUEUED = (*NAME, "--poll", "0", "--retries", "1", "alt-jax", "pretrain", "configs/a.py", "--run-dir", "/mnt/a")


def verbs(world: World) -> list[str]:
    """What the cloud was asked for, in order; ssh is not told apart."""
    return [call.args[3] for call in world.calls("gcloud")]


def test_all_goes_from_nothing_to_a_fetched_run(world: World) -> None:
    (world.repo / "data" / "p").mkdir(parents=True)
    (world.repo / "data" / "p" / "schema.json").write_text("{}")
    (world.folder / "vm" / "alt-jax" / "runs" / "a").mkdir(parents=True)
    (world.folder / "vm" / "alt-jax" / "runs" / "a" / "result.json").write_text("{}")
    world.play("alt-jax", {"out": "trained"})
    # The VM is deleted in the end, so the test looks at what was there from within a mount command.
    mount = "ls alt-jax alt-jax/.venv/bin > seen; cp seen '{}'".format(world.folder / "seen")
    done = world.run("tpu_vm.sh", "all", *NAME, "--spot", "--send", "data/p/", "--mount", mount, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
    assert verbs(world) == ["create", "scp", "ssh", "ssh", "ssh", "scp", "ssh", "scp", "delete"]
    assert world.state == "NONE"
    assert (world.repo / "runs" / "a" / "result.json").exists()
    (run,) = world.calls("alt-jax")
    assert run.args == list(TRAIN[1:])
    assert run.env["JAX_PLATFORMS"] == "tpu,cpu"
    assert [str(call) for call in world.calls("setup")] == ["setup tpu"]
    seen = (world.folder / "seen").read_text().split()
    assert {"alt_jax", "configs", "launch", "pyproject.toml", "README.md", "LICENSE", "alt-jax"} <= set(seen)
    assert "runs" not in os.listdir(world.folder / "home")


@pytest.mark.parametrize(
    ("tool", "plays", "code", "last"),
    [
        ("gcloud-create", [{"code": 1, "err": "no quota"}], 1, "create"),
        ("gcloud-ssh", [{"code": 255}], 255, "ssh"),
        ("alt-jax", [{"code": 2}], 2, "ssh"),
        ("alt-jax", [{"code": 75}], 75, "ssh"),
    ],
)
def test_all_stops_where_a_step_fails_and_leaves_the_vm(
    tool: str, plays: list[dict], code: int, last: str, world: World
) -> None:
    world.play(tool, *plays)
    done = world.run("tpu_vm.sh", "all", *NAME, *TRAIN)
    assert done.returncode == code
    assert verbs(world)[-1] == last
    assert ("exists and costs" in done.stderr) == (tool != "gcloud-create")
    assert world.state == ("NONE" if tool == "gcloud-create" else "ACTIVE")


def test_code_that_is_gone_here_goes_there_and_what_was_made_there_stays(world: World) -> None:
    world.run("tpu_vm.sh", "create", *NAME)
    there = world.folder / "vm" / "alt-jax"
    (world.repo / "alt_jax" / "old.py").write_text("")
    assert world.run("tpu_vm.sh", "install", *NAME).returncode == 0
    assert (there / "alt_jax" / "old.py").exists()
    (there / "runs").mkdir()
    (world.repo / "alt_jax" / "old.py").unlink()
    assert world.run("tpu_vm.sh", "install", *NAME).returncode == 0
    assert not (there / "alt_jax" / "old.py").exists()
    assert (there / "runs").exists()


def test_what_runs_is_not_reinstalled_and_stops_when_told(world: World) -> None:
    world.run("tpu_vm.sh", "create", *NAME)
    world.run("tpu_vm.sh", "install", *NAME)
    world.play("alt-jax", {"until_term": True, "code": 75})
    run = world.start("tpu_vm.sh", "run", *NAME, *TRAIN)
    try:
        while "alt-jax runs" not in run.stdout.readline():
            pass
        again = world.run("tpu_vm.sh", "install", *NAME)
        assert again.returncode == 0
        assert "its installation stays" in again.stderr
        assert len(world.calls("setup")) == 1
        assert world.run("tpu_vm.sh", "stop", *NAME).returncode == 0
        assert run.wait(timeout=30) == 75
    finally:
        run.stdout.close()
        run.kill()


def test_a_worker_of_its_own(world: World) -> None:
    world.run("tpu_vm.sh", "create", *NAME)
    world.run("tpu_vm.sh", "install", *NAME)
    assert world.run("tpu_vm.sh", "run", *NAME, "--worker", "3", *TRAIN).returncode == 0
    assert "--worker=3" in world.calls("gcloud")[-1].args


@pytest.mark.parametrize(
    ("plays", "code", "creates", "runs"),
    [
        ({}, 0, 1, 1),
        ({"alt-jax": [{"preempt": True, "code": 1}, {"preempt": True, "code": 75}, {}]}, 0, 3, 3),
        ({"alt-jax": [{"code": 75}, {"code": 75}]}, 0, 1, 3),
        ({"alt-jax": [{"code": 2}]}, 2, 1, 1),
        ({"alt-jax": [{"code": 134}, {}]}, 0, 1, 2),
        ({"alt-jax": [{"code": 134}] * 2}, 134, 1, 2),
        ({"gcloud-create": [{"code": 1, "err": "503"}]}, 0, 2, 1),
        ({"gcloud-create": [{"code": 1, "err": "no quota"}] * 2}, 1, 2, 0),
        ({"gcloud-scp": [{"code": 255}]}, 0, 1, 1),  # sshd is not there yet
        ({"gcloud-describe": [{"code": 1, "err": "503"}]}, 0, 1, 1),
    ],
    ids=["well", "preempted", "75", "2", "134", "134 often", "create", "create often", "install", "describe"],
)  # fmt: skip
def test_a_run_is_seen_through(plays: dict, code: int, creates: int, runs: int, world: World) -> None:
    for tool, what in plays.items():
        world.play(tool, *what)
    done = world.run("tpu_queued.sh", *QUEUED)
    assert done.returncode == code, done.stderr
    assert verbs(world).count("create") == creates
    assert len({str(call) for call in world.calls("alt-jax")}) == min(runs, 1)  # the same command, the same run folder
    assert len(world.calls("alt-jax")) == runs
    assert world.state == "NONE"  # nothing that costs is left
    assert all("--spot" in call.args for call in world.calls("gcloud") if call.args[3] == "create")
    if set(plays) <= {"alt-jax"}:  # on every new machine once, and not before a command is tried again on the old one
        assert len(world.calls("setup")) == creates


def test_a_request_that_fails_is_made_again_but_not_for_ever(world: World) -> None:
    (world.folder / "state").write_text("FAILED")
    (world.folder / "vm").mkdir()
    done = world.run("tpu_queued.sh", *QUEUED)
    assert done.returncode == 0
    assert verbs(world)[:3] == ["describe", "delete", "describe"]
    assert "quota" in done.stderr


def test_chips_that_are_there_already_are_used_and_kept_when_told(world: World) -> None:
    (world.folder / "state").write_text("ACTIVE")
    done = world.run("tpu_queued.sh", "--keep", "--on-demand", *QUEUED)
    assert done.returncode == 0
    assert "create" not in verbs(world)
    assert world.state == "ACTIVE"
    assert "queued-resources delete a --force" in done.stderr.replace("\n", " ")


def interrupted(world: World, start: Callable, number: signal.Signals) -> str:
    """What a script says after a signal to all that it started."""
    world.play("alt-jax", {"until_term": True, "code": 75})
    script = start()
    while not world.calls("alt-jax"):
        assert script.poll() is None
    os.killpg(script.pid, number)
    said = script.communicate(timeout=30)[0]
    assert script.returncode > 128
    return said


def test_ctrl_c_leaves_the_run_going_and_the_same_command_goes_on_with_it(world: World) -> None:
    said = interrupted(world, lambda: world.start("tpu_queued.sh", *QUEUED), signal.SIGINT)
    assert "is left as it is, and costs" in said
    assert world.state == "ACTIVE"
    other = world.run("tpu_queued.sh", *QUEUED, "--seed", "1")
    assert other.returncode == 69
    assert "another command is running on a" in other.stderr
    assert world.state == "ACTIVE"
    again = world.start("tpu_queued.sh", *QUEUED)
    while "running already" not in again.stdout.readline():
        assert again.poll() is None
    world.run("tpu_vm.sh", "stop", *NAME)
    assert again.communicate(timeout=30)[0].endswith("a: done.\n") or again.returncode == 0
    assert len(world.calls("alt-jax")) == 2  # that one, and after its 75 the same again
    assert world.state == "NONE"
