"""Stands in for every command that the launch scripts call; which one it is, its own name says.

It writes down how it was called (`calls.jsonl` in the folder `$WORLD`), refuses options that the real tool does not
have, and does what the test wrote into `plays/TOOL.json`, a list of what to do at the first, second, … call:

```
{"code": 75}                 exit with it
{"err": "no quota"}          say so on standard error
{"preempt": true}            the cloud takes the TPU away while the command runs
{"until_term": true}         run until SIGTERM, then exit with the code
```

Where nothing is written, all goes well. `gcloud` is a small cloud: one TPU that is asked for, waited for, deleted, and
refuses what cannot be in its state; its one worker is the folder `$WORLD/vm`, where commands are run for real.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

WORLD = Path(os.environ["WORLD"])
# Options of the real tools: True if a value follows. gcloud 528.0.0, its GA commands.
_ANYWHERE = {"--zone": True, "--project": True, "--quiet": False, "--format": True}
_CONNECT = {
    "--worker": True, "--internal-ip": False, "--dry-run": False, "--plain": False, "--ssh-key-file": True,
    "--force-key-file-overwrite": False, "--strict-host-key-checking": True, "--ssh-key-expiration": True,
    "--ssh-key-expire-after": True,
}  # fmt: skip
_PLACED = {
    "--accelerator-type": True, "--async": False, "--data-disk": True, "--description": True, "--internal-ips": False,
    "--labels": True, "--metadata": True, "--metadata-from-file": True, "--network": True, "--range": True,
    "--reserved": False, "--scopes": True, "--service-account": True, "--shielded-secure-boot": False, "--spot": False,
    "--subnetwork": True, "--tags": True, "--topology": True, "--type": True,
}  # fmt: skip
GCLOUD = {
    ("tpu-vm", "create"): _PLACED | {"--version": True, "--preemptible": False, "--queue-count": True},
    ("tpu-vm", "ssh"): _CONNECT | {"--command": True, "--output-directory": True, "--ssh-flag": True},
    ("tpu-vm", "scp"): _CONNECT | {"--recurse": False, "--compress": False, "--scp-flag": True},
    ("tpu-vm", "delete"): {"--async": False},
    ("queued-resources", "create"): _PLACED
    | {
        "--node-id": True, "--node-count": True, "--node-prefix": True, "--runtime-version": True,
        "--guaranteed": False, "--valid-after-duration": True, "--valid-after-time": True,
        "--valid-until-duration": True, "--valid-until-time": True, "--reservation-host-project": True,
        "--reservation-host-folder": True, "--reservation-host-organization": True,
    },
    ("queued-resources", "describe"): {},
    ("queued-resources", "delete"): {"--async": False, "--force": False},
}  # fmt: skip
REQUIRED = {
    ("tpu-vm", "create"): {"--version"},
    ("queued-resources", "create"): {"--node-id", "--accelerator-type", "--runtime-version"},
}
SBATCH = {
    "--array": True, "--nodes": True, "--gpus-per-node": True, "--gres": True, "--time": True, "--partition": True,
    "--account": True, "--qos": True, "--job-name": True, "--mem": True, "--cpus-per-task": True, "--constraint": True,
    "--ntasks-per-node": True, "--requeue": False, "--signal": True, "--open-mode": True, "--output": True,
    "--exclusive": False,
}  # fmt: skip
SRUN = {
    "--nodes": True, "--ntasks": True, "--ntasks-per-node": True, "--cpus-per-task": True, "--kill-on-bad-exit": True,
}  # fmt: skip


def main() -> int:
    tool, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    shown = {name: os.environ[name] for name in ("JAX_PLATFORMS", "JAX_LOCAL_DEVICE_IDS") if name in os.environ}
    stdin = sys.stdin.read() if tool == "kubectl" else ""
    with (WORLD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({"tool": tool, "args": arguments, "env": shown, "stdin": stdin}) + "\n")
    known = {"gcloud": gcloud, "sbatch": sbatch, "srun": srun, "scontrol": scontrol, "python3": python3, "uv": uv}
    return known.get(tool, lambda _: perform(tool))(arguments)


def refuse(why: str) -> int:
    """Marks the test's world as broken, so that the test fails however the script takes it."""
    with (WORLD / "refused").open("a") as said:
        said.write(why + "\n")
    print(f"ERROR: {why}", file=sys.stderr)
    return 64


def perform(name: str) -> int:
    play = next_play(name)
    code = play.get("code", 0)
    if play.get("until_term"):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
        print(f"{name} runs", flush=True)
        time.sleep(30)
        return refuse(f"{name} was not stopped")
    print(play.get("err", ""), end="", file=sys.stderr)
    if play.get("out"):
        print(play["out"], flush=True)
    if play.get("preempt"):
        set_state("SUSPENDED")
    return code


def next_play(name: str) -> dict:
    path = WORLD / "plays" / f"{name}.json"
    plays = json.loads(path.read_text()) if path.exists() else []
    if not plays:
        return {}
    path.write_text(json.dumps(plays[1:]))
    return plays[0]


def split(arguments: Sequence[str], known: dict[str, bool]) -> tuple[list[str], dict[str, str]]:
    """Positional arguments, and options; raises SystemExit(64) for an option that the tool does not have."""
    positional, options = [], {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in known:
            sys.exit(refuse(f"unrecognized arguments: {word}"))
        if known[name] and not equals:
            value = next(words, "")
        if known[name] != bool(value):
            sys.exit(refuse(f"argument {name}: a value too many or missing"))
        options[name] = value
    return positional, options


def state() -> str:
    path = WORLD / "state"
    return path.read_text() if path.exists() else "NONE"


def set_state(now: str) -> None:
    (WORLD / "state").write_text(now)


COMING = {"CREATING": "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE"}


def gcloud(arguments: list[str]) -> int:
    noun, verb = tuple(arguments[2:4])
    if arguments[:2] != ["compute", "tpus"] or (noun, verb) not in GCLOUD:
        return refuse(f"Invalid choice: {arguments[:4]}")
    positional, options = split(arguments[4:], _ANYWHERE | GCLOUD[noun, verb])
    missing = REQUIRED.get((noun, verb), set()) - set(options)
    if missing or len(positional) != (2 if verb == "scp" else 1):
        return refuse(f"{noun} {verb}: missing {missing}, or wrong positional arguments {positional}")
    why = impossible(verb)
    if why:
        print(f"ERROR: {why}", file=sys.stderr)
        return 1
    scripted = perform(f"gcloud-{verb}")
    if scripted:
        return scripted
    if verb == "ssh":
        return connected(options["--command"])
    if verb == "scp":
        copy(*map(there, positional))
    elif verb == "create":
        set_state("ACTIVE" if noun == "tpu-vm" else "CREATING")
    elif verb == "delete":
        set_state("NONE")
        shutil.rmtree(WORLD / "vm", ignore_errors=True)  # its disk goes with it
    else:
        set_state(COMING.get(state(), state()))
        print(state())
    return 0


def impossible(verb: str) -> str:
    """Why the cloud cannot do this in the state that it is in; what no script should ask for fails the test."""
    if verb == "create" and state() != "NONE":
        refuse("ALREADY_EXISTS")
    if verb == "delete" and state() == "NONE":
        refuse("there is nothing to delete")
    if verb in ("ssh", "scp") and state() != "ACTIVE":
        return "the TPU is in an unusable state"
    return "NOT_FOUND: Resource was not found" if verb == "describe" and state() == "NONE" else ""


def there(path: str) -> Path:
    _, colon, name = path.partition(":")
    return WORLD / "vm" / name if colon else Path(path)


def copy(source: Path, destination: Path) -> None:
    (WORLD / "vm").mkdir(exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, destination / source.name, dirs_exist_ok=True)
    else:
        shutil.copy(source, destination)


def connected(command: str) -> int:
    home = WORLD / "vm"
    home.mkdir(exist_ok=True)
    code = subprocess.run(
        ["bash", "-c", command], cwd=home, env=os.environ | {"HOME": str(home)}, stdin=subprocess.DEVNULL, check=False
    ).returncode
    return 255 if state() != "ACTIVE" else code  # a connection to a machine that is gone


def sbatch(arguments: list[str]) -> int:
    first = next((i for i, word in enumerate(arguments) if word.endswith(".sbatch")), len(arguments))
    split(arguments[:first], SBATCH)
    if not Path(*arguments[first : first + 1]).is_file():
        return refuse("sbatch: no such script")
    return perform("sbatch")


def srun(arguments: list[str]) -> int:
    first = next(i for i, word in enumerate(arguments) if not word.startswith("-"))
    split(arguments[:first], SRUN)
    scripted = next_play("srun").get("code")
    if scripted is not None:
        return scripted
    tasks: list[subprocess.Popen] = []
    stopped = []

    def stop(*_: object) -> None:  # passed on to the tasks
        stopped.append(True)
        for task in tasks:
            task.terminate()

    signal.signal(signal.SIGTERM, stop)
    tasks.append(subprocess.Popen(arguments[first:]))
    if stopped:  # before there was one
        tasks[0].terminate()
    return tasks[0].wait()


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "job"]:
        print(
            f"JobId={arguments[-1]} JobName=alt-jax JobState={next_play('scontrol').get('out', 'RUNNING')} Reason=None"
        )
        return 0
    return 0 if arguments[0] == "requeue" and arguments[1:] == ["42"] else refuse(f"scontrol {arguments}")


def python3(arguments: list[str]) -> int:
    if arguments[:3] != ["-m", "pip", "install"]:
        os.execv(sys.executable, [sys.executable, *arguments])
    home = Path(os.environ["HOME"]) / ".alt-jax" / "uv"
    wanted = [
        "--quiet",
        "--target",
        str(home),
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "-r",
        "launch/uv.txt",
    ]
    if arguments[3:] != wanted or "--hash=sha256:" not in Path("launch/uv.txt").read_text():
        return refuse(f"python3 {arguments}")
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "uv").symlink_to(WORLD / "bin" / "python3")
    return 0


def uv(arguments: list[str]) -> int:
    if arguments == ["python", "find", "3.12"]:
        print(sys.executable)
        return 0
    return 0 if arguments == ["python", "install", "3.12"] else refuse(f"uv {arguments}")


if __name__ == "__main__":
    sys.exit(main())
