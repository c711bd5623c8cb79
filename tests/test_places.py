"""A run finds the dataset that it was trained on from anywhere, and takes no other for it."""

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from alt_jax import bridge, run_files
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.run import Run
from alt_jax.run_files import Origin, find_dataset
from alt_jax.schema import Schema


class Project(NamedTuple):
    """A folder with `data`, of which the schema is enough here, and `runs/a`, started in it."""

    folder: Path
    run: Run


@pytest.fixture
def project(tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    shutil.copy(tiny_dataset.folder / "schema.json", folder / "data")
    monkeypatch.chdir(folder)
    encoder = bridge.encoder_config(tiny_config.text, tiny_dataset.schema)
    config = tiny_config.override({"data.dir": "data"})
    run = Run(Path("runs/a"), Origin("finetune", "ctr"), config, tiny_dataset.schema, encoder).start()
    return Project(folder, run)


def spoil(data: Path) -> None:
    """Another dataset of the same name."""
    schema = Schema.load(data / "schema.json")
    dataclasses.replace(schema, data_hash="other").save(data / "schema.json")


def test_from_another_folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_dataset(Path("project/runs/a")) == str(project.folder / "data")


@pytest.mark.parametrize("copied", [False, True])
def test_run_and_dataset_are_moved_together(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (shutil.copytree if copied else shutil.move)(project.folder, tmp_path / "there")
    if copied:
        spoil(project.folder / "data")  # the copy's own is right beside it
    assert find_dataset(tmp_path / "there" / "runs" / "a") == str(tmp_path / "there" / "data")


def test_a_run_alone_is_copied_into_a_folder_that_has_the_dataset(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(project.folder / "runs" / "a", other / "deep" / "er" / "a")
    shutil.move(project.folder / "data", other / "data")
    monkeypatch.chdir(other)
    assert find_dataset(Path("deep/er/a")) == "data"


def test_what_is_not_found_is_named_with_every_place(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(project.folder, tmp_path / "there")
    shutil.move(tmp_path / "there" / "data", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "there" / "runs" / "a"
    with pytest.raises(InputError) as caught:
        find_dataset(run)
    for place in (project.folder / "data", tmp_path / "there" / "data", "data"):
        assert f"{place}/schema.json does not exist" in str(caught.value)
    assert "name its folder with --data.dir" in str(caught.value)
    assert find_dataset(run, ["elsewhere"]) == "elsewhere"
    assert find_dataset(run, ["nothing", "elsewhere"]) == "elsewhere"


def test_another_dataset_is_never_taken(project: Project, tmp_path: Path) -> None:
    shutil.copytree("data", tmp_path / "right")
    spoil(project.folder / "data")
    with pytest.raises(InputError, match=r"not found \(.*data holds another one\)"):
        find_dataset(project.run.folder)
    with pytest.raises(InputError, match="data holds another one"):
        find_dataset(project.run.folder, ["data"])
    assert find_dataset(project.run.folder, ["data", str(tmp_path / "right")]) == str(tmp_path / "right")


def test_a_run_that_goes_on_elsewhere_remembers_that(project: Project, tmp_path: Path) -> None:
    shutil.move("data", tmp_path / "moved")
    config = project.run.config.override({"data.dir": str(tmp_path / "moved")})
    dataclasses.replace(project.run, config=config).start()
    assert find_dataset(project.run.folder) == str(tmp_path / "moved")


def test_a_run_of_an_older_version_looks_where_its_config_says(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.run.folder / "data.json").unlink()
    assert find_dataset(project.run.folder) == "data"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"name its folder with --data\.dir"):
        find_dataset(project.folder / "runs" / "a")


def test_a_url_stays_one(project: Project) -> None:
    run_files.write_place(project.run.folder, "memory://nowhere/data")
    assert run_files.places(project.run.folder) == ["memory://nowhere/data", "data"]
    with pytest.raises(InputError, match=r"memory://nowhere/data/schema\.json does not exist"):
        find_dataset(project.run.folder, ["memory://nowhere/data"])


@pytest.mark.parametrize("content", ["", "[]", '{"dir": 3}'])
def test_a_damaged_file_is_named(project: Project, content: str) -> None:
    (project.run.folder / "data.json").write_text(content)
    with pytest.raises(InputError, match=r"runs/a/data\.json"):
        find_dataset(project.run.folder)
