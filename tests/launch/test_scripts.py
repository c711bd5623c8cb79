"""What holds for every launch script: its help, its dry run, the sentence for bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from world import ROOT, World

TRAIN = ("alt-jax", "pretrain", "configs/a b.py", "--loss.mlm", "0", "--run-dir", "/mnt/it's $HOME; a run")
ABLATE = ("alt-jax", "ablate", "configs/a.py", "--study", "losses", "--run-dir", "/mnt/runs")
JOB = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8", "SLURM_ARRAY_TASK_ID": "2"}
POD = ("--name", "a", "--image", "registry/alt-jax:cuda", "--claim", "share")

# Each script with all it needs; the environment that it needs for that.
COMPLETE = {
    "gpu": ("gpu.sh", *TRAIN),
    "tpu create": ("tpu_vm.sh", "create", "--name", "a", "--zone", "us-west4-a", "--project", "p", "--spot"),
    "tpu all": (
        "tpu_vm.sh", "all", "--name", "a", "--send", "data of mine", "--mount", "echo 'a  b' >m", *TRAIN[:-1], "runs/x"
    ),
    "tpu queued": ("tpu_queued.sh", "--name", "a", "--poll", "0", "--mount", "true", *TRAIN),
    "slurm": ("slurm.sbatch", "--tasks", "4", *TRAIN),
    "sweep slurm": ("sweep.sh", "slurm", "--tasks", "4", "--time", "1:00:00", "--", *ABLATE),
    "sweep tpu": ("sweep.sh", "tpu", "--tasks", "1", "--name", "a", "--poll", "0", "--", *ABLATE),
    "k8s gpu": ("k8s.sh", "gpu", *POD, "--hosts", "4", "--", *TRAIN),
    "k8s tpu": ("k8s.sh", "tpu", *POD, "--hosts", "2", "--chips", "4", "--", *TRAIN),
}  # fmt: skip


def set_up(world: World) -> None:
    (world.repo / "data of mine").mkdir()
    (world.repo / "data of mine" / "schema.json").write_text("{}")
    # The run folder that `all` fetches.
    (world.folder / "vm" / "alt-jax" / "runs" / "x").mkdir(parents=True)


@pytest.mark.parametrize("arguments", COMPLETE.values(), ids=COMPLETE)
def test_a_dry_run_prints_what_a_run_does_and_does_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """What it prints is pasted into a shell: the same calls come, of the same tools with the same words."""
    script, *rest = arguments
    at = 1 if rest[0] in ("create", "all", "slurm", "tpu", "gpu") else 0
    dry = [*rest[:at], "--dry-run", *rest[at:]]
    world = World(tmp_path / "real")
    set_up(world)
    printed = world.run(script, *dry, **JOB)
    assert printed.returncode == 0, printed.stderr
    assert not world.calls()
    assert printed.stderr == ""

    real = world.run(script, *rest, **JOB)
    assert real.returncode == 0, real.stderr
    pasted = World(tmp_path / "pasted")
    set_up(pasted)
    text = printed.stdout.replace(str(world.folder), str(pasted.folder))
    waiting = [line for line in text.splitlines() if " describe " in line]
    text = "\n".join(line for line in text.splitlines() for _ in range(3 if line in waiting else 1))
    subprocess.run(
        ["bash", "-e", "-c", text], cwd=pasted.repo, env=pasted.env | JOB, check=True, capture_output=True, timeout=60
    )
    assert pasted.refused() == ""
    calls = [f"{call}{call.env}{call.stdin}" for call in world.calls()]
    said = [f"{call}{call.env}{call.stdin}".replace(str(pasted.folder), str(world.folder)) for call in pasted.calls()]
    looking = ("describe", "nvidia-smi")  # not what is done, but what is looked at
    assert [c for c in said if not any(w in c for w in looking)] == [
        c for c in calls if not any(w in c for w in looking)
    ]
    assert said


BAD = {
    "gpu, no command": (("gpu.sh",), "command to run"),
    "gpu, option": (("gpu.sh", "--tasks", "1", *TRAIN), "no option --tasks"),
    "gpu, retries": (("gpu.sh", "--retries", "many", *TRAIN), "--retries many is not a whole number"),
    "tpu, nothing": (("tpu_vm.sh",), "say what to do"),
    "tpu, action": (("tpu_vm.sh", "destroy"), "no 'destroy'"),
    "tpu, no name": (("tpu_vm.sh", "create"), "--name NAME"),
    "tpu, name without value": (("tpu_vm.sh", "create", "--name"), "--name needs a value"),
    "tpu, option for a value": (("tpu_vm.sh", "create", "--name", "--zone", "z"), "--name needs a value"),
    "tpu, name with a space": (("tpu_vm.sh", "create", "--name", "my tpu"), "'my tpu' should be"),
    "tpu, no command": (("tpu_vm.sh", "run", "--name", "a"), "command to run"),
    "tpu, stray word": (("tpu_vm.sh", "delete", "--name", "a", "b"), "takes no 'b'"),
    "tpu, absolute path": (("tpu_vm.sh", "fetch", "--name", "a", "/etc"), "/etc should be a path in"),
    "tpu, path outside": (("tpu_vm.sh", "fetch", "--name", "a", "runs/../../x"), "should be a path in"),
    "tpu, two paths": (("tpu_vm.sh", "fetch", "--name", "a", "x", "y"), "one path, not 2"),
    "tpu, nothing to send": (("tpu_vm.sh", "send", "--name", "a", "data/x"), "data/x does not exist"),
    "tpu, all, run folder": (("tpu_vm.sh", "all", "--name", "a", "alt-jax", "--run-dir", "../x"), "a path in the"),
    "queued, no name": (("tpu_queued.sh", *TRAIN), "--name NAME"),
    "queued, no command": (("tpu_queued.sh", "--name", "a"), "command to run"),
    "queued, no run folder": (("tpu_queued.sh", "--name", "a", "alt-jax", "pretrain"), "needs --run-dir /PATH"),
    "queued, run folder on the VM": (("tpu_queued.sh", "--name", "a", "alt-jax", "--run-dir", "r"), "lost with the VM"),
    "slurm, no command": (("slurm.sbatch",), "command to run"),
    "slurm, outside a job": (("slurm.sbatch", *TRAIN), "sbatch [options] launch/slurm.sbatch alt-jax pretrain"),
    "sweep, where": (("sweep.sh", "cloud"), "no 'cloud'"),
    "sweep, no --": (("sweep.sh", "slurm", "--tasks", "2", *ABLATE), "put -- before"),
    "sweep, no tasks": (("sweep.sh", "slurm", "--", *ABLATE), "--tasks N"),
    "sweep, not a study": (("sweep.sh", "slurm", "--tasks", "2", "--", *TRAIN), "not 'alt-jax pretrain'"),
    "sweep, own task": (("sweep.sh", "slurm", "--tasks", "2", "--", *ABLATE, "--task=0/2"), "leave --task out"),
    "sweep, tpu, no name": (("sweep.sh", "tpu", "--tasks", "2", "--", *ABLATE), "--name NAME"),
    "k8s, on what": (("k8s.sh", "cpu"), "no 'cpu'"),
    "k8s, no image": (("k8s.sh", "gpu", "--name", "a", "--claim", "c", *TRAIN), "--image ''"),
    "k8s, name": (("k8s.sh", "gpu", *POD, "--name", "A_b", *TRAIN), "--name 'A_b'"),
    "k8s, hosts": (("k8s.sh", "gpu", *POD, "--hosts", "0", *TRAIN), "at least 1"),
    "k8s, topology": (("k8s.sh", "tpu", *POD, "--topology", "4x4", *TRAIN), "has 16 chips"),
    "k8s, of the other kind": (("k8s.sh", "gpu", *POD, "--topology", "4x4", *TRAIN), "is for tpu"),
    "k8s, line break": (("k8s.sh", "gpu", *POD, "alt-jax", "a\nb"), "line break"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "why"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_runs_nothing(arguments: tuple[str, ...], why: str, world: World) -> None:
    script, *rest = arguments
    done = world.run(script, *rest)
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.startswith(f"{script}: ")
    assert done.stderr.count("\n") == 1
    assert not world.calls()


SCRIPTS = ["gpu.sh", "tpu_vm.sh", "tpu_queued.sh", "slurm.sbatch", "sweep.sh", "k8s.sh", "attach.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top(script: str, world: World) -> None:
    done = world.run(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script}" in done.stdout
    assert "set -euo" not in done.stdout
    assert "SBATCH" not in done.stdout
    assert ("--dry-run" in done.stdout) == (script != "attach.sh")


@pytest.mark.parametrize(
    ("script", "tool"),
    [("tpu_vm.sh", "gcloud"), ("tpu_queued.sh", "gcloud"), ("gpu.sh", "nvidia-smi"), ("k8s.sh", "kubectl"),
     ("sweep.sh", "sbatch"), ("slurm.sbatch", "srun")],
)  # fmt: skip
def test_a_missing_tool_is_named(script: str, tool: str, world: World) -> None:
    for name in ("bash", "env", "awk", "dirname", "cat"):
        (world.bin / name).symlink_to(str(shutil.which(name)))
    (world.bin / tool).unlink()
    complete = next(arguments for arguments in COMPLETE.values() if arguments[0] == script)
    if script == "tpu_vm.sh":
        complete = COMPLETE["tpu create"]
    done = world.run(*complete, PATH=str(world.bin), **JOB)
    assert done.returncode == 2
    assert f"{tool} was not found" in done.stderr
    assert not world.calls()


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_printed_command_is_read_back_as_the_same_words(shell: str) -> None:
    words = [
        "plain-1.0/a:b=c,d",
        "",
        " ",
        "it's",
        '"',
        "'",
        "''",
        "\\",
        "\\'",
        "a\nb",
        "$HOME",
        "`id`",
        "*",
        "&",
        "~",
        "ä",
        "!x",
        "a\\&b",
    ]
    script = f'source "{ROOT}/launch/steps.sh"; quoted "$@"'
    line = subprocess.run(["bash", "-c", script, "x", *words], capture_output=True, text=True, check=True).stdout
    echo = f"{sys.executable} -SEc 'import sys, json; print(json.dumps(sys.argv[1:]))' "
    back = subprocess.run([shell, "-c", echo + line], capture_output=True, text=True, check=True).stdout
    assert json.loads(back) == words
