"""The workflow of continuous integration calls what the repository has, on the Pythons that the package supports."""

import os
import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from world import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(workflow: dict[Any, Any]) -> list[list[str]]:
    return [shlex.split(line) for step in steps(workflow) for line in step.get("run", "").splitlines()]


def test_when_it_runs_and_what_it_may(workflow: dict[Any, Any]) -> None:
    assert set(workflow[True]) == {"push", "pull_request", "schedule", "workflow_dispatch"}  # YAML 1.1: on is a bool
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job and "permissions" not in job for job in workflow["jobs"].values())
    assert {step["uses"].split("@")[0] for step in steps(workflow) if "uses" in step} == {
        "actions/checkout",
        "actions/setup-python",
        "actions/cache",
    }


def test_its_pythons_are_those_of_the_package(workflow: dict[Any, Any]) -> None:
    named = [match[1] for name in PROJECT["classifiers"] if (match := re.search(r"Python :: (\d+\.\d+)$", name))]
    allowed = SpecifierSet(PROJECT["requires-python"])
    strategy = workflow["jobs"]["tests"]["strategy"]
    assert strategy["matrix"]["python"] == [version for version in named if version in allowed]
    assert strategy["fail-fast"] is False
    others = {step["with"]["python-version"] for step in steps(workflow) if "python-version" in step.get("with", {})}
    assert others <= {"${{ matrix.python }}", *named}


def test_it_calls_scripts_that_exist_with_options_that_they_have(workflow: dict[Any, Any]) -> None:
    called = [command for command in commands(workflow) if command[0].startswith("./")]
    assert [command[0] for command in called] == ["./launch/test.sh", "./launch/test.sh", "./launch/setup.sh"]
    for script, *arguments in called:
        assert os.access(ROOT / script, os.X_OK), script
        text = (ROOT / script).read_text()
        for argument in arguments:
            if script.endswith("setup.sh"):
                assert argument in PROJECT["optional-dependencies"]
            else:
                assert re.search(rf"(?<![\w-]){re.escape(argument)}(?![\w-])", text), f"{script} has no {argument}"


def test_the_other_commands_are_hooks_of_pre_commit(workflow: dict[Any, Any]) -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [shlex.split(hook["entry"]) for hook in repository["hooks"] if hook["language"] == "system"]
    others = [command for command in commands(workflow) if not command[0].startswith("./")]
    assert others
    assert all(command in hooks for command in others)
