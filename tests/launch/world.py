"""A copy of the repository's launch scripts in a folder of its own, with stand-ins for every tool that they call."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TOOLS = ("gcloud", "sbatch", "srun", "scontrol", "kubectl", "nvidia-smi", "python3", "alt-jax")
_SETUP = """#!/bin/sh
venv="$(dirname "$0")/../.venv/bin"
mkdir -p "$venv"
ln -sf "{bin}/alt-jax" "$venv"
exec "{bin}/setup" "$@"
"""


class Call(NamedTuple):
    """How a tool was called."""

    tool: str
    args: list[str]
    env: dict[str, str]
    stdin: str

    def __str__(self) -> str:
        return " ".join([self.tool, *self.args])


class World:
    """The folder, and what to start in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.repo = folder / "the repo"
        self.bin.mkdir(parents=True)
        (folder / "plays").mkdir()
        for name in (*TOOLS, "setup"):
            tool = self.bin / name
            # Another name would be another file, but argv[0] of a script is the path it was found under.
            tool.write_text(f"#!{sys.executable} -SE\n" + (Path(__file__).parent / "fake_tool.py").read_text())
            tool.chmod(0o755)
        self.repo.mkdir()
        shutil.copytree(ROOT / "launch", self.repo / "launch")
        for part in ("alt_jax", "configs"):
            (self.repo / part).mkdir()
            (self.repo / part / "__init__.py").write_text("")
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.repo)
        setup = self.repo / "launch" / "setup.sh"
        setup.write_text(_SETUP.format(bin=self.bin))

    @property
    def env(self) -> dict[str, str]:
        """The environment of the scripts: nothing of the caller's but the system's tools."""
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "WORLD": str(self.folder),
            "ALT_JAX_PAUSE": "0",
        }

    def play(self, tool: str, *plays: dict) -> None:
        """Says what a tool does at its first, second, … call."""
        (self.folder / "plays" / f"{tool}.json").write_text(json.dumps(plays))

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end; what the tools refused fails the test."""
        done = subprocess.run(
            ["bash", f"launch/{script}", *arguments],
            cwd=self.repo, env=self.env | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert self.refused() == "", done.stderr
        return done

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Starts a script in a process group of its own, which listens to Ctrl-C.

        In the background (`&`) a shell lets a suite ignore it, and what ignores a signal hands that down.
        """
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                ["bash", f"launch/{script}", *arguments],
                cwd=self.repo, env=self.env | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)

    def refused(self) -> str:
        """What a tool was called with that the real one does not take."""
        path = self.folder / "refused"
        return path.read_text() if path.exists() else ""

    def calls(self, *tools: str) -> list[Call]:
        """How these tools were called, or all; in order."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [Call(**json.loads(line)) for line in lines]
        return [call for call in calls if not tools or call.tool in tools]

    @property
    def state(self) -> str:
        """Of the cloud's only TPU."""
        path = self.folder / "state"
        return path.read_text() if path.exists() else "NONE"
