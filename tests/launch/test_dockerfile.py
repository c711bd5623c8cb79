"""The Dockerfile, read as `docker build` reads it: its steps are run here with stand-ins, for every accelerator."""

import fnmatch
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from world import ROOT

INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}


def steps() -> list[tuple[str, str]]:
    """Instructions and their arguments; lines that end in a backslash go on."""
    lines = [line for line in (ROOT / "launch" / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_the_instructions() -> None:
    names = [name for name, _ in steps()]
    assert set(names) <= INSTRUCTIONS
    assert steps()[0] == ("FROM", "python:3.12-slim")
    assert ("ARG", "ACCELERATOR=cpu") in steps()
    assert names.index("ARG") > names.index("FROM")  # else it would not be seen
    assert steps()[-2] == ("USER", "1000")  # not root
    assert steps()[-1][0] == "CMD"
    assert "ENTRYPOINT" not in names  # k8s/*.yaml give the whole command as args
    last_install = max(i for i, (name, text) in enumerate(steps()) if name == "RUN" and "pip install" in text)
    code = steps().index(("COPY", "alt_jax alt_jax"))
    first_install = min(i for i, (name, text) in enumerate(steps()) if name == "RUN" and "pip install" in text)
    assert first_install < code < last_install  # a change of the code does not install jax again


def ignored(path: str) -> bool:
    """By .dockerignore: the last pattern that fits counts."""
    last = False
    for pattern in (ROOT / ".dockerignore").read_text().split():
        negated = pattern.startswith("!")
        bare = pattern.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        fits = any(fnmatch.fnmatch(part, bare) for part in (parts if "**/" in pattern else parts[:1]))
        last = not negated if fits else last
    return last


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    copied = [word for name, text in steps() if name == "COPY" for word in text.split()[:-1]]
    assert "alt_jax" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert not ignored(path), path
    for path in (".git", ".venv", "data", "runs", "tests", "alt_jax/models/__pycache__"):
        assert ignored(path), path


@pytest.mark.parametrize(
    ("accelerator", "target"), [("cpu", "."), ("cuda", ".[cuda]"), ("tpu", ".[tpu]"), ("gpu", None)]
)
def test_the_build_argument_chooses_the_extra(accelerator: str, target: str | None, tmp_path: Path) -> None:
    (tmp_path / "pip").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n')
    (tmp_path / "pip").chmod(0o755)
    installs = [text for name, text in steps() if name == "RUN" and "pip install" in text]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ACCELERATOR": accelerator}
    codes = [subprocess.run(["sh", "-c", text], env=env, check=False).returncode for text in installs]
    if target is None:
        assert codes[0] == 2
        return
    assert codes == [0, 0]
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls[0] == ["install", target]
    assert calls[1][-1] == "."
    assert "--no-deps" in calls[1]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert target == "." or target[2:-1] in extras
