import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alt_jax.checkpoint import _PLAIN, Checkpoints, load_params
from alt_jax.errors import InputError
from alt_jax.sharding import make_mesh, replicate

OPTIMIZER = optax.adam(1e-3)


def tree(step: int) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(0), step)
    params = {
        "ctr": {"embedding": {"embedding": jax.random.normal(key, (6, 4))}, "bias": jnp.float32(step)},
        "text": {"layer": {"0": {"kernel": jax.random.normal(key, (4, 4))}}},
    }
    return replicate(make_mesh(), params)


def save(checkpoints: Checkpoints, step: int, score: float | None = None) -> None:
    params = tree(step)
    checkpoints.save(step, params, OPTIMIZER.init(params), {"best_step": step}, score)
    checkpoints.wait()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    opened = Checkpoints(tmp_path)
    yield opened
    opened.close()


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_restore_is_bit_equal(tmp_path: Path, checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() is None
    params = tree(7)
    state = OPTIMIZER.update(params, OPTIMIZER.init(params), params)[1]
    loop = {"best_step": 3, "best_score": 0.1 + 0.2, "waited": 0}
    checkpoints.save(7, params, state, loop, None)
    checkpoints.wait()
    assert checkpoints.latest() == 7

    template = tree(0)
    found, found_state, found_loop = checkpoints.restore(7, template, OPTIMIZER.init(template))
    assert_same(found, params)
    assert_same(found_state, state)
    assert found_loop == loop
    assert jax.tree.leaves(found)[0].sharding == jax.tree.leaves(params)[0].sharding

    loaded, step = load_params(tmp_path)
    assert step == 7
    assert_same(loaded, jax.tree.map(np.asarray, params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_another_process_restores(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    again = Checkpoints(tmp_path)
    params, _, _ = again.restore(1, tree(0), OPTIMIZER.init(tree(0)))
    assert_same(params, tree(1))
    again.close()


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.6, 0.9, 0.7, 0.5, 0.4], [2, 4, 5]),  # the best, and the newest two although they are not
        ([0.6, 0.7, 0.8, 0.9], [3, 4]),
        ([None, None, None], [2, 3]),
        ([0.9, 0.6, 0.7, None], [1, 3, 4]),  # between two evaluations
    ],
)
def test_best_and_newest_are_kept(
    tmp_path: Path, checkpoints: Checkpoints, scores: list[float | None], kept: list[int]
) -> None:
    for step, score in enumerate(scores, start=1):
        save(checkpoints, step, score)
    assert steps(tmp_path) == kept
    assert checkpoints.latest() == kept[-1]
    assert load_params(tmp_path, kept[0])[1] == kept[0]


def test_best_is_remembered_after_a_restart(tmp_path: Path) -> None:
    for step, score in ((1, 0.9), (2, 0.5), (3, 0.6), (4, 0.7)):
        opened = Checkpoints(tmp_path)
        save(opened, step, score)
        opened.close()
    assert steps(tmp_path) == [1, 3, 4]


def with_leaf(params: dict[str, Any], leaf: Any) -> dict[str, Any]:
    return {**params, "ctr": {**params["ctr"], "more": leaf}}


def without_bias(params: dict[str, Any]) -> dict[str, Any]:
    return {**params, "ctr": {"embedding": params["ctr"]["embedding"]}}


def with_shape(params: dict[str, Any]) -> dict[str, Any]:
    return {**params, "text": {"layer": {"0": {"kernel": jnp.zeros((4, 8))}}}}


@pytest.mark.parametrize(
    "change",
    [lambda params: with_leaf(params, jnp.zeros(3)), without_bias, with_shape],
    ids=["missing", "left over", "other shape"],
)
def test_a_tree_that_does_not_fit_is_refused(checkpoints: Checkpoints, change: Any) -> None:
    """Orbax alone would hand back a ShapeDtypeStruct for a missing leaf, or cut an array to the wanted shape."""
    save(checkpoints, 1)
    template = replicate(make_mesh(), change(tree(0)))
    with pytest.raises(InputError, match="Checkpoint") as caught:
        checkpoints.restore(1, template, OPTIMIZER.init(template))
    assert "\n" not in str(caught.value)


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "/d/" in str(path))


@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_truncated_file_is_refused(tmp_path: Path, checkpoints: Checkpoints, item: str) -> None:
    save(checkpoints, 1)
    files = data_files(tmp_path / "checkpoints" / "1" / item)
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.restore(1, tree(0), OPTIMIZER.init(tree(0)))
    if item == "params":
        with pytest.raises(InputError, match="is damaged"):
            load_params(tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    for path in data_files(tmp_path / "checkpoints" / "1" / "params"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(InputError, match="not as it was saved"):
        load_params(tmp_path)


@pytest.mark.parametrize("lost", ["params/_METADATA", "params/manifest.ocdbt", "params", "checksums.json"])
def test_lost_file_is_refused(tmp_path: Path, checkpoints: Checkpoints, lost: str) -> None:
    save(checkpoints, 1)
    path = tmp_path / "checkpoints" / "1" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match="Checkpoint"):
        load_params(tmp_path)


def test_a_save_vouches_for_nothing_but_itself(tmp_path: Path, checkpoints: Checkpoints) -> None:
    """Neither for an older checkpoint that has lost files, nor for what a network file system leaves there."""
    save(checkpoints, 1)
    (tmp_path / "checkpoints" / "1" / "checksums.json").unlink()
    data_files(tmp_path / "checkpoints" / "1" / "params")[0].unlink()
    (tmp_path / "checkpoints" / ".nfs0001").touch()
    save(checkpoints, 2)
    load_params(tmp_path, 2)
    with pytest.raises(InputError, match="is damaged"):
        load_params(tmp_path, 1)


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_params(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is damaged"):
        load_params(tmp_path)


def test_absent_step_is_refused(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 2)
    with pytest.raises(InputError, match=r"no checkpoint of step 3 \(only 2\)"):
        load_params(tmp_path, 3)


def test_half_written_checkpoint_is_never_taken_for_whole(tmp_path: Path) -> None:
    """What a save leaves when it is killed: a folder under a temporary name."""
    opened = Checkpoints(tmp_path)
    save(opened, 1)
    opened.close()
    root = tmp_path / "checkpoints"
    half = root / "2.orbax-checkpoint-tmp-1700000000000000"
    shutil.copytree(root / "1", half)
    assert load_params(tmp_path)[1] == 1
    again = Checkpoints(tmp_path)
    assert again.latest() == 1
    save(again, 2)
    again.close()
    assert load_params(tmp_path)[1] == 2
    assert not half.exists()


def test_a_checkpoint_is_never_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is no longer kept leaves its place in one step; what a kill leaves of it goes at the next start."""
    root, removed = tmp_path / "checkpoints", tmp_path / "checkpoints" / ".deleted"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_empty_deleted", lambda self: None)  # as if it were killed each time before that
        opened = Checkpoints(tmp_path)
        for step in (1, 2, 3):
            save(opened, step)
        opened.close()
    assert steps(tmp_path) == [2, 3]
    assert (removed / "1" / "checksums.json").is_file()
    shutil.rmtree(removed / "1" / "params")
    assert load_params(tmp_path)[1] == 3
    again = Checkpoints(tmp_path)
    assert again.latest() == 3
    assert not removed.exists()
    save(again, 4)
    again.close()
    assert sorted(path.name for path in root.iterdir()) == ["3", "4"]


# What a file system allows, and a library may take for a pattern, an escape, an option, another folder or a bucket.
ODD = ["lr[1]", "[!x]", "**", "a?b", "back\\slash", "50%20", "-x", ".x", "x~", "ü λ", "'\"$(a)", "a:b@c#d|e", "\udcff"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_checkpoint_is_found_again_whatever_its_folders_are_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / f"run {name}"
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 3, 0.5)
        save(checkpoints, 7, 0.4)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nor is anything written beside it
    assert steps(folder) == [3, 7]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 7
        params, state, loop = checkpoints.restore(7, tree(0), OPTIMIZER.init(tree(0)))
    assert_same((params, state), (tree(7), OPTIMIZER.init(tree(7))))
    assert loop == {"best_step": 7}
    assert_same(load_params(folder, 3)[0], tree(3))


def test_a_folder_that_is_called_like_a_bucket_is_a_folder() -> None:
    """Orbax takes /gs/runs/a for gs://runs/a; such a folder is not ours to make here."""
    assert _PLAIN.fullmatch("/home/gs/runs")
    assert not any(_PLAIN.fullmatch(f"/{store}{rest}") for store in ("gs", "s3", "az", "hf") for rest in ("", "/a"))


def test_a_link_without_a_plain_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t[1]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t[1]"))
    with pytest.raises(InputError, match="set TMPDIR"):
        Checkpoints(tmp_path / "run[1]")
