"""The small files of a run folder and of an export, and what they alone can refuse. Imports neither JAX nor a model.

`alt_jax.run` makes run folders and says what is in them.
"""

import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from alt_jax import console
from alt_jax.config import Config, Strategy, first_problem
from alt_jax.data.storage import SCHEMA, is_url, place
from alt_jax.errors import InputError
from alt_jax.schema import Schema

if TYPE_CHECKING:
    import numpy as np

LOCK = "run.lock"
SCORES = "scores.npz"
DATA = "data.json"
PARAMS = "params.safetensors"  # an export has it, a run has not
# What an export takes of its run as it is.
EXPORTED = ("config.json", "schema.json", "encoder.json", "run.json", "result.json")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Origin:
    """What a run does: its stage, the finetuning strategy, and the pretraining run it starts from (or None)."""

    stage: Literal["pretrain", "finetune"]
    strategy: Strategy | None = None
    init_from: str | None = None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON so that the file is either whole or not there."""
    replace(path, json.dumps(console.finite(value), indent=2, allow_nan=False) + "\n")


def replace(path: Path, content: str | bytes) -> None:
    """Writes text or bytes so that the file is either whole or as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_object(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
      InputError: The file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); the run folder is damaged.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object; the run folder is damaged.")
    return value


def read_origin(folder: Path) -> Origin:
    """What the run of a folder does.

    Raises:
      InputError: It is no run folder, or `run.json` is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder (it has no run.json); give the --run-dir of a run.")
    try:
        origin: Origin = TypeAdapter(Origin).validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {first_problem(error)}.") from None
    except OSError as error:
        raise _not_whole(folder, error) from None
    return origin


def read_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
      InputError: `config.json` is missing or damaged.
    """
    path = folder / "config.json"
    try:
        return Config.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise _not_whole(folder, error) from None


def read_result(folder: Path, origin: Origin) -> dict[str, Any] | None:
    """What a finished run wrote, or None.

    Raises:
      InputError: The file is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    found = read_object(path)
    if origin.stage == "finetune" and not all(_are_scores(found.get(part)) for part in ("valid", "test")):
        raise InputError(f"{path} does not hold the scores of a finetuning; the run folder is damaged.")
    return found


def write_scores(folder: Path, scores: Mapping[str, "np.ndarray"]) -> None:
    """Keeps the probability of every row of some parts, in order, as float32; the file is either whole or not there."""
    import numpy as np

    content, arrays = io.BytesIO(), {split: score.astype(np.float32) for split, score in scores.items()}
    np.savez(content, allow_pickle=False, **arrays)
    replace(folder / SCORES, content.getvalue())


def read_scores(folder: Path) -> dict[str, "np.ndarray"]:
    """What `write_scores` kept, by part; nothing of a run that is not finished, or of an older one.

    Raises:
      InputError: The file is damaged.
    """
    import numpy as np

    path = folder / SCORES
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {split: stored[split] for split in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it, and do without it.") from None


def check_path(folder: Path) -> None:
    """Refuses a URL as a run folder; a path has already lost one of its slashes. And a name that no text can hold.

    Raises:
      InputError: It is one.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"--run-dir {os.fsencode(folder)!r} is not UTF-8; give it another name.") from None
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):
        raise InputError(
            f"--run-dir {folder} is a URL, but runs are kept on a file system; mount it, and give the path."
        )


def check_free(folder: Path) -> None:
    """Refuses a folder for a new run that holds something else than the beginning of one.

    Raises:
      InputError: It does.
    """
    begun = re.compile(r"(config|schema|encoder|data)\.json|run\.lock|\.(run|data)\.json\..*\.partial")
    present = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not all(begun.fullmatch(name) for name in present):
        raise InputError(f"{folder} is not empty and not a run folder; give another --run-dir.")


def check_same(folder: Path, origin: Origin, config: Config) -> None:
    """Refuses a folder that holds another run.

    Raises:
      InputError: It is; names what differs. Or it is damaged.
    """
    if (theirs := read_origin(folder)) != origin:
        raise InputError(
            f"{folder} holds another run ({_sentence(theirs)}, not {_sentence(origin)}); give another --run-dir."
        )
    if changed := config.another_run(read_config(folder)):
        name, (new, old) = next(iter(changed.items()))
        raise InputError(
            f"{folder} was started with {name} = {old!r}, not {new!r}; give another --run-dir to change it."
        )


def check_pretraining(folder: Path, schema: Schema) -> None:
    """Refuses what a run on a dataset cannot start from: not a finished pretraining on the same fields and tokens.

    Raises:
      InputError: It is none.
    """
    origin = read_origin(folder)
    if origin.stage != "pretrain":
        raise InputError(f"{folder} is a finetuning run; --init-from takes the run folder of a pretraining.")
    if Schema.load(folder / SCHEMA).fingerprint != schema.fingerprint:
        raise InputError(
            f"{folder} was pretrained on another schema (fields, vocabulary or tokenizer differ); "
            "train on the dataset it was pretrained on, or pretrain again."
        )
    if read_result(folder, origin) is None:
        raise InputError(f"The pretraining in {folder} is not finished; run its command again until it is.")


def write_place(folder: Path, name: str) -> None:
    """Keeps where a run finds its dataset, so that it finds it from elsewhere, and after both have been moved.

    Args:
      folder: The run folder.
      name: The dataset's folder, relative to the current one or not, or its URL.
    """
    found = {"dir": name}
    if not is_url(name):
        path = os.path.abspath(name)
        found = {"dir": path, "from_run": os.path.relpath(path, os.path.abspath(folder))}
    write_json(folder / DATA, found)


def places(folder: Path, given: Sequence[str] = ()) -> list[str]:
    """Where the dataset of a run or an export may be: where it was, where that is from the run, and as the config says.

    Args:
      folder: Of the run or the export.
      given: Where it is said to be (`--data.dir`): nowhere else, then.

    Raises:
      InputError: `config.json` or `data.json` is missing or damaged; a run of an older version has none of the latter.
    """
    if given:
        return list(given)
    found = read_object(folder / DATA) if (folder / DATA).is_file() else {}
    if not all(isinstance(name, str) for name in found.values()):
        raise InputError(f"{folder / DATA} does not hold places; remove it, and name the dataset with --data.dir.")
    names = [found["dir"]] if "dir" in found else []
    if "from_run" in found:
        names.append(os.path.normpath(os.path.join(os.path.abspath(folder), found["from_run"])))
    names.append(read_config(folder).data.dir)
    return list({name if is_url(name) else os.path.abspath(name): name for name in reversed(names)}.values())[::-1]


def find_dataset(folder: Path, given: Sequence[str] = ()) -> str:
    """The first of `places` that holds the very dataset that a run was trained on.

    Raises:
      InputError: None does; says of each why. Or as `places`.
    """
    wanted, why = Schema.load(folder / SCHEMA), []
    for name in places(folder, given):
        try:
            where = place(name)
            if not where.has(SCHEMA):
                why.append(f"{where / SCHEMA} does not exist")
            elif Schema.load(where.folder / SCHEMA) == wanted:
                return name
            else:
                why.append(f"{name} holds another one")
        except InputError as error:
            why.append(str(error).rstrip("."))
    raise InputError(
        f"The dataset that {folder} was trained on is not found ({', '.join(why)}); name its folder with --data.dir, "
        "or prepare it again."
    )


def best_step(folder: Path) -> int:
    """The step of the best parameters of a finished finetuning.

    Raises:
      InputError: The folder is not one, or is damaged.
    """
    origin = read_origin(folder)
    result = read_result(folder, origin)
    if origin.strategy is None:
        raise InputError(f"{folder} is a pretraining run, which predicts no clicks; finetune it first.")
    if result is None:
        raise InputError(f"The finetuning in {folder} is not finished; run its command again until it is.")
    found = result.get("best_step")
    if not isinstance(found, int):
        raise InputError(f"{folder / 'result.json'} names no best_step; train again in another --run-dir.")
    return found


def is_exported(folder: Path, out: Path) -> bool:
    """Whether `out` is there and says everything that a run says of itself: it came by a rename, so it is whole.

    Raises:
      InputError: Something else is there.
    """
    if not out.exists():
        return False
    pairs = [(folder / name, out / name) for name in EXPORTED]
    if not all(a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes() for a, b in pairs):
        raise InputError(f"{out} already exists; give a new folder.")
    return True


def kind(name: str, rows: int) -> Literal["dataset", "run", "export"]:
    """What of a path there is to inspect, with so many of its rows; a URL is that of a dataset.

    Raises:
      InputError: It is nothing of this, or `rows` is negative.
    """
    if rows < 0:
        raise InputError(f"--rows {rows} is negative; give 0 for none, or how many to show.")
    folder = Path(name)
    if is_url(name):
        return "dataset"
    if (folder / PARAMS).is_file():
        return "export"
    if (folder / "run.json").is_file():
        return "run"
    if (folder / SCHEMA).is_file():
        return "dataset"
    raise InputError(_neither(folder))


def _neither(folder: Path) -> str:
    """What to say of a path that holds nothing to show."""
    wanted = "a prepared dataset (schema.json), a run (run.json) or an export (params.safetensors)"
    if not folder.is_dir():
        return f"{folder} is {'not a folder' if folder.exists() else 'not there'}; give the folder of {wanted}."
    marks = [f"{below}/{mark}" for mark in (SCHEMA, "run.json") for below in ("*", "*/*")]
    found = (path.parent for mark in marks for path in sorted(folder.glob(mark)))
    below = list(dict.fromkeys(str(path) for path in found))[:3]
    hint = f"give one inside it, e.g. {' or '.join(below)}." if below else "give the folder of one."
    return f"{folder} is not {wanted}; {hint}"


def _not_whole(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} is not a whole run folder: {str(error).splitlines()[0]}.")


def _are_scores(value: Any) -> bool:
    """Whether this is an object of numbers, undefined ones null, with an AUC and the rows that each AUC is of."""
    if not isinstance(value, dict) or "auc" not in value:
        return False
    counts = [f"{name.removesuffix('auc')}rows" for name in value if name.endswith("auc") and name != "gauc"]
    return all(type(value.get(name)) is int for name in counts) and all(
        n is None or type(n) in (int, float) for n in value.values()
    )


def _sentence(origin: Origin) -> str:
    if origin.stage == "pretrain":
        return f"a pretraining from {origin.init_from}" if origin.init_from else "a pretraining"
    return f"a {origin.strategy} finetuning from {origin.init_from or 'no pretraining'}"
