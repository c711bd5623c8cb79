"""The direction of imports: the package keeps the contracts of pyproject.toml, and what breaks one is named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder: Path) -> tuple[int, str]:
    """Checks the alt_jax in a folder, in a process that has imported no other, by the pyproject.toml beside it."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=wide, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_package_keeps_its_contracts() -> None:
    code, said = lint(ROOT)
    assert code == 0, said


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on a copy of the package that breaks every contract."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "alt_jax", folder / "alt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    added = {
        "data/shards.py": "def f():\n    from alt_jax.models.table import Rows\n",  # inside a function counts as well
        "comparison.py": "from alt_jax.scorer import Scorer\n",
        "config.py": "from alt_jax import cluster\n",
        "data/storage.py": "from alt_jax.data import shards\n",
        "elsewhere.py": "",
    }
    for name, text in added.items():
        with (folder / "alt_jax" / name).open("a") as file:
            file.write(text)
    code, said = lint(folder)
    assert code == 1, said
    return said


@pytest.mark.parametrize(
    "lines",
    [
        ("alt_jax.data is not allowed to import alt_jax.models:", "alt_jax.data.shards -> alt_jax.models.table (l."),
        ("alt_jax.comparison is not allowed to import alt_jax.scorer:", "alt_jax.comparison -> alt_jax.scorer (l."),
        ("alt_jax.config is not allowed to import alt_jax.cluster:", "alt_jax.config -> alt_jax.cluster (l."),
        ("No cycles are allowed in alt_jax.data.", "- .storage -> .shards (1 import)"),
        ("The following modules are not listed as layers:", "- alt_jax.elsewhere"),
    ],
    ids=["upwards", "serving from studies", "parallel from config", "cycle", "no place"],
)
def test_an_import_against_the_direction_fails_with_both_names(lines: tuple[str, ...], broken: str) -> None:
    for line in lines:
        assert line in broken
