"""slurm.sbatch within a job, and sweep.sh, which submits many or starts many TPUs."""

import os
import re
import signal
from pathlib import Path

import pytest
from world import ROOT, World

TRAIN = ("alt-jax", "pretrain", "configs/a.py", "--run-dir", "my runs/a")
ABLATE = ("alt-jax", "ablate", "configs/a.py", "--study", "losses", "--run-dir", "/mnt/runs")


def job(world: World, **more: str) -> dict[str, str]:
    """The variables of a job, which runs a copy of the file elsewhere."""
    return {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(world.repo), **more}


@pytest.mark.parametrize(
    ("codes", "code", "starts", "requeued"),
    [
        ([0], 0, 1, False),
        ([75], 75, 1, True),
        ([2], 2, 1, False),
        ([134, 0], 0, 2, False),
        ([134, 75], 75, 2, True),
        ([134, 134, 134], 134, 3, False),
    ],
)
def test_what_goes_back_into_the_queue(codes: list[int], code: int, starts: int, requeued: bool, world: World) -> None:
    world.play("srun", *({"code": code} for code in codes))
    done = world.run("slurm.sbatch", "--retries", "2", *TRAIN, **job(world))
    assert done.returncode == code
    assert len(world.calls("srun")) == starts
    assert (["requeue", "42"] in [call.args for call in world.calls("scontrol")]) == requeued


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED"])
def test_a_job_that_is_cancelled_or_requeued_by_slurm_is_left_to_slurm(state: str, world: World) -> None:
    world.play("srun", {"code": 75})
    world.play("scontrol", {"out": state})
    assert world.run("slurm.sbatch", *TRAIN, **job(world)).returncode == 75
    assert "requeue" not in [call.args[0] for call in world.calls("scontrol")]


@pytest.mark.parametrize(
    ("nodes", "gpus", "cluster", "env"),
    [
        ("1", "", [], {}),
        ("1", "8", [], {"JAX_PLATFORMS": "cuda,cpu"}),
        ("4", "", ["--cluster", "auto"], {}),
        ("4", "4", ["--cluster", "auto"], {"JAX_PLATFORMS": "cuda,cpu", "JAX_LOCAL_DEVICE_IDS": "0,1,2,3"}),
        ("2", "1", ["--cluster", "auto"], {"JAX_PLATFORMS": "cuda,cpu", "JAX_LOCAL_DEVICE_IDS": "0"}),
    ],
)
def test_a_task_a_node_with_all_its_gpus(nodes: str, gpus: str, cluster: list[str], env: dict, world: World) -> None:
    variables = job(world, SLURM_JOB_NUM_NODES=nodes, **({"SLURM_GPUS_ON_NODE": gpus} if gpus else {}))
    assert world.run("slurm.sbatch", *TRAIN, **variables).returncode == 0
    (step,) = world.calls("srun")
    assert {f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"} <= set(step.args)
    (run,) = world.calls("alt-jax")
    assert run.args == [*TRAIN[1:], *cluster]
    assert run.env == env


def test_slurm_runs_a_copy_and_finds_the_repository_where_it_was_submitted(world: World, tmp_path: Path) -> None:
    copy = tmp_path / "slurm_script"
    copy.write_text((world.repo / "launch" / "slurm.sbatch").read_text())
    assert world.run(f"../../../{copy.name}", *TRAIN, **job(world)).returncode == 0
    elsewhere = world.run(f"../../../{copy.name}", *TRAIN, **job(world, SLURM_SUBMIT_DIR="/"))
    assert elsewhere.returncode == 2
    assert "not the root of the repository" in elsewhere.stderr


def test_sigterm_to_the_batch_shell_lets_the_run_save(world: World) -> None:
    world.play("alt-jax", {"until_term": True, "code": 75})
    script = world.start("slurm.sbatch", *TRAIN, **job(world))
    while "alt-jax runs" not in script.stdout.readline():
        assert script.poll() is None
    os.kill(script.pid, signal.SIGTERM)
    assert "back into the queue" in script.communicate(timeout=30)[0]


def test_the_directives_come_before_the_first_command_and_warn_in_time() -> None:
    lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert directives[-1] < commands[0]
    options = {lines[i].removeprefix("#SBATCH ") for i in directives}
    # To the steps (no B:), which save; requeueing needs --requeue, and appends to the log.
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append", "--ntasks-per-node=1"} <= options


def test_an_array_is_one_job_whose_parts_know_their_number(world: World) -> None:
    done = world.run("sweep.sh", "slurm", "--tasks", "3", "--gpus-per-node=8", "--time", "1:00:00", "--", *ABLATE)
    assert done.returncode == 0
    (submitted,) = world.calls("sbatch")
    assert {"--array=0-2", "--nodes=1", "--gpus-per-node=8"} <= set(submitted.args)
    script = submitted.args[submitted.args.index("launch/slurm.sbatch") + 1 :]
    for number in range(3):
        assert world.run("slurm.sbatch", *script, **job(world, SLURM_ARRAY_TASK_ID=str(number))).returncode == 0
    assert [call.args[-2:] for call in world.calls("alt-jax")] == [["--task", f"{i}/3"] for i in range(3)]
    alone = world.run("slurm.sbatch", *script, **job(world))
    assert alone.returncode == 2
    assert "sbatch --array=0-2" in alone.stderr


def test_the_tpus_of_a_sweep_have_names_and_tasks_of_their_own(world: World) -> None:
    """Without a cloud: what is started are stand-ins of tpu_queued.sh, of which the second's input is wrong."""
    calls = world.folder / "queued"
    (world.repo / "launch" / "tpu_queued.sh").write_text(
        f'#!/bin/sh\necho "$@" >>"{calls}"\ncase "$*" in *s-1*) exit 2 ;; *) exit 1 ;; esac\n'
    )
    done = world.run("sweep.sh", "tpu", "--tasks", "3", "--name", "s", "--zone", "z", "--", *ABLATE)
    assert done.returncode == 2
    command = " ".join(ABLATE)
    expected = [f"--name s-{i} --zone z -- {command} --task {i}/3" for i in range(3)]
    assert sorted(calls.read_text().splitlines()) == expected
    assert re.findall(r"s-(\d): exit code (\d)", done.stderr) == [("0", "1"), ("1", "2"), ("2", "1")]
    assert (world.repo / "sweep-s-2.log").exists()


def test_a_sweep_that_is_stopped_stops_watching_all_of_them(world: World) -> None:
    world.play("alt-jax", *[{"until_term": True, "code": 75}] * 2)
    script = world.start("sweep.sh", "tpu", "--tasks", "1", "--name", "s", "--poll", "0", "--", *ABLATE)
    while not world.calls("alt-jax"):
        assert script.poll() is None
    os.kill(script.pid, signal.SIGTERM)
    assert "stopped watching" in script.communicate(timeout=30)[0]
    assert script.returncode == 143
    world.run("tpu_vm.sh", "stop", "--name", "s-0")
    assert "is left as it is, and costs" in (world.repo / "sweep-s-0.log").read_text()
