"""Nothing that is loaded runs code, but for config files, which are Python that the user trusts."""

import ast
import io
import json
import re
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from alt_jax.cli import USAGE
from alt_jax.config import load_config
from alt_jax.data.dataset import Dataset
from alt_jax.data.shards import array_of
from alt_jax.data.sources.movielens import RELEASES
from alt_jax.data.sources.original import read_files
from alt_jax.data.tokenizer import load_tokenizer
from alt_jax.errors import InputError
from alt_jax.models import huggingface

ROOT = Path(__file__).parents[1]
_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "torch", "tarfile"}
_CALLS = {"eval", "exec", "compile", "__import__", "extractall", "extract", "unpack_archive", "run_path", "run_module"}


def _found(text: str) -> list[str]:
    """What a module's source has that could run, or unpack, what it loads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in _MODULES]
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _CALLS and ast.unparse(node.func) not in ("re.compile", "self.compile", "jax.lax.extract"):
                found.append(ast.unparse(node.func))
            for keyword in node.keywords:
                if keyword.arg in ("trust_remote_code", "allow_pickle") and ast.unparse(keyword.value) != "False":
                    found.append(ast.unparse(keyword))
    return found


def test_no_module_runs_what_it_loads_but_a_config_file() -> None:
    found = {
        str(path.relative_to(ROOT)): _found(path.read_text(encoding="utf-8")) for path in ROOT.glob("alt_jax/**/*.py")
    }
    assert {name: what for name, what in found.items() if what} == {"alt_jax/config.py": ["runpy.run_path"]}
    bad = "import pickle\nfrom torch import load\neval('1')\nnp.load(x, allow_pickle=True)\na.f(trust_remote_code=yes)"
    assert len(_found(bad)) == 5


def test_it_is_said_that_a_config_file_is_code() -> None:
    assert "CONFIG is a Python file" in USAGE
    assert "a config is Python that you trust" in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "run only what you trust" in (load_config.__doc__ or "")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickled_array_is_refused_and_does_not_run(tmp_path: Path, tiny_dataset: Dataset) -> None:
    ran, buffer = tmp_path / "ran", io.BytesIO()
    np.save(buffer, np.array([Payload(ran)], dtype=object), allow_pickle=True)
    np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True)
    assert ran.exists(), "the payload would run"
    ran.unlink()
    with pytest.raises(ValueError, match="OBJECT array"):
        array_of(buffer.getvalue())
    copy = tmp_path / "prepared"
    copy.mkdir()
    for path in tiny_dataset.folder.rglob("*"):
        target = copy / path.relative_to(tiny_dataset.folder)
        target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    with zipfile.ZipFile(copy / "pieces.npz", "w") as archive:
        for name in ("tokens", "start", "length", "maskable", "feature", "number"):
            archive.writestr(f"{name}.npy", buffer.getvalue())
    with pytest.raises(InputError, match=r"pieces\.npz cannot be read"):
        Dataset.load(copy)
    assert not ran.exists()


def test_code_beside_a_model_does_not_run(tmp_path: Path, tiny_dataset: Dataset) -> None:
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Own: pass\n"
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tiny_dataset.folder / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "own.py").write_text(code)
    automatic = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own", "AutoModel": "own.Own"}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": automatic}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"auto_map": automatic, "tokenizer_class": "Own"})
    )
    with pytest.raises(InputError):
        huggingface.load_config(folder)
    try:
        load_tokenizer(str(folder))  # ignores the code, or refuses the folder
    except InputError as error:
        assert "No tokenizer can be loaded" in str(error)  # noqa: PT017
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickled weights can run code"):
        huggingface._weight_files(folder)
    assert not ran.exists()


def test_a_zip_is_read_in_place(tmp_path: Path) -> None:
    """Nothing is unpacked, so that no member's name, or link, leads anywhere."""
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "ml-100k.zip", "w") as archive:
        for member in ("../u.data", "/tmp/u.user", "a/../../u.item"):
            archive.writestr(member, b"x")
        link = zipfile.ZipInfo("u.info")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    files = read_files(inside / "ml-100k.zip", "ml-100k", ("u.data", "u.user", "u.item"), ("u.info",))
    assert files["u.info"] == b"/etc/passwd"  # the link's own text, not what it leads to
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "ml-100k.zip"]


def test_what_is_downloaded_comes_over_https_and_is_known_by_its_hash() -> None:
    for release in RELEASES.values():
        assert release.archive.url.startswith("https://")
        assert re.fullmatch(r"[0-9a-f]{64}", release.archive.sha256)
    opened = [path for path in ROOT.glob("alt_jax/**/*.py") if "urlopen" in path.read_text(encoding="utf-8")]
    assert [path.name for path in opened] == ["download.py"]
    for folder in ("alt_jax", "launch", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert not re.search(r"(curl|wget)\b.*\|\s*(ba)?sh\b", path.read_text(encoding="utf-8")), path
                urls = re.findall(r"http://[^\s\"')]+", path.read_text(encoding="utf-8"))
                local = (
                    "http://localhost",
                    "http://127.0.0.1",
                    "http://{",
                    "http://www2.informatik",
                    "http://metadata",
                )
                assert not [url for url in urls if not url.startswith(local)], path


# --- What it is built from ---


def test_dependencies_are_ranges_for_users_and_the_tools_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(text for listed in extras.values() for text in listed)]:
        assert not [bound for bound in Requirement(text).specifier if bound.operator in ("==", "===")], text
    lines = (ROOT / "launch" / "constraints-dev.txt").read_text(encoding="utf-8").splitlines()
    pinned = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    tools = {Requirement(text).name for text in extras["dev"]} - {"alt-jax", "pyyaml"}  # any pyyaml reads the same
    assert tools <= pinned


def test_known_vulnerabilities_are_looked_for_before_a_push() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    audit = next(hook for hook in hooks if hook["id"] == "pip-audit")
    assert audit["stages"] == ["pre-push"]
    assert "--strict" in audit["entry"]  # without it, what cannot be looked up passes for clean
