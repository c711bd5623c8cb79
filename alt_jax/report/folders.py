"""The folders of a report: what can be refused before anything is read of them but the names of their files."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from alt_jax.errors import InputError

TABLE = "table.json"


def check(folders: Sequence[Path], out: Path | None, price: float | None) -> Path:
    """Checks what a report is asked for.

    Returns:
      Where the page goes; by default `report.html` in the first folder.

    Raises:
      InputError: There is no folder, the price cannot be, or the page's place is taken by a folder.
    """
    if not folders:
        raise InputError("give the folder of a run or of a study, e.g. alt-jax report runs/joint.")
    if price is not None and not 0 <= price < math.inf:
        raise InputError(f"--price {price} should be US dollars an hour, 0 or more.")
    out = folders[0] / "report.html" if out is None else out
    if os.path.isdir(out):  # False for a name that cannot be
        raise InputError(f"{out} is a folder; give the name of a file, e.g. -o {out / 'report.html'}.")
    return out


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study; what is neither is taken for a run, which then says that it is none."""
    return (folder / TABLE).is_file() and not (folder / "run.json").is_file()


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all of them apart.

    Raises:
      InputError: A folder is given twice.
    """
    parts = [folder.absolute().parts for folder in folders]
    for number, folder in enumerate(folders):
        if parts[number] in parts[:number]:
            raise InputError(f"{folder} is given twice; name every run once.")
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return ["/".join(own[-length:]) for own in parts]
