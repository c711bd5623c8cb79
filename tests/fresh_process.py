"""A new Python in which alt_jax cannot be imported."""

import subprocess
import sys
from pathlib import Path

# The editable installation would be found wherever the process runs.
_BLOCK = """
import sys


class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "alt_jax":
            raise ImportError("alt_jax is not to be used here")


sys.meta_path.insert(0, Nowhere())
try:
    import alt_jax
except ImportError:
    pass
else:
    sys.exit("alt_jax was found")
"""


def without_alt_jax(code: str, folder: Path) -> None:
    """Runs code in a folder; fails with what it said if it fails."""
    here = f"sys.path.insert(0, {str(folder)!r})"  # as for a script that lies there
    command = [sys.executable, "-I", "-c", f"{_BLOCK}\n{here}\n{code}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
