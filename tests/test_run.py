import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from alt_jax.bridge import encoder_config
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.models.encoder import EncoderConfig
from alt_jax.run import Origin, Run, wait_until_free, write_json

PRETRAIN = Origin("pretrain")


@pytest.fixture
def encoder(tiny_config: Config, tiny_dataset: Dataset) -> EncoderConfig:
    return encoder_config(tiny_config.text, tiny_dataset.schema)


@pytest.fixture
def run(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset, encoder: EncoderConfig) -> Run:
    return Run(tmp_path / "deep" / "run", PRETRAIN, tiny_config, tiny_dataset.schema, encoder).start()


def steps(run: Run) -> list[int]:
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_load_gives_what_start_wrote(run: Run) -> None:
    assert Run.load(run.folder) == run


def test_start_again_opens_the_same_run(run: Run) -> None:
    run.log([{"step": 1}])
    again = Run(run.folder, run.origin, run.config, run.schema, run.encoder).start()
    assert again == run
    assert steps(again) == [1]


_HOLDS = """
import sys
from pathlib import Path
from alt_jax.run import Run
with Run.load(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_until_its_process_has_gone(run: Run) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="is in use by another process"), run.held():
            pass
        other.kill()
    with run.held():
        pass
    assert run.folder.exists()


@pytest.mark.parametrize("logged", [False, True])
def test_a_folder_of_which_nothing_came_goes_again(run: Run, tmp_path: Path, logged: bool) -> None:
    fresh = dataclasses.replace(run, folder=tmp_path / "fresh")

    def fail() -> None:
        with fresh.held():
            if logged:
                fresh.log([{"step": 1}])
            raise InputError("too large")

    with pytest.raises(InputError, match="too large"):
        fail()
    assert fresh.folder.exists() == logged


def test_finished_is_the_result_of_the_same_run_only(run: Run) -> None:
    assert run.finished() is None
    run.finish({"stage": "pretrain"})
    assert run.finished() == {"stage": "pretrain"}
    with pytest.raises(InputError, match="holds another run"):
        dataclasses.replace(run, origin=Origin("finetune", "ctr")).finished()
    elsewhere = dataclasses.replace(run, folder=run.folder / "nowhere")
    assert elsewhere.finished() is None
    assert not elsewhere.folder.exists()


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (Origin("finetune", "ctr"), "a pretraining, not a ctr finetuning from no pretraining"),
        (Origin("finetune", "plm", "runs/p"), "a pretraining, not a plm finetuning from runs/p"),
    ],
)
def test_another_stage_is_refused(run: Run, origin: Origin, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Run(run.folder, origin, run.config, run.schema, run.encoder).start()


def test_another_config_is_refused_and_the_difference_named(run: Run) -> None:
    changed = dataclasses.replace(run.config, loss=dataclasses.replace(run.config.loss, mlm=0.5))
    with pytest.raises(InputError, match=r"started with loss\.mlm = 1\.0, not 0\.5"):
        Run(run.folder, PRETRAIN, changed, run.schema, run.encoder).start()


def test_another_dataset_is_refused(run: Run) -> None:
    changed = dataclasses.replace(run.schema, data_hash="other")
    with pytest.raises(InputError, match="is not the one"):
        Run(run.folder, PRETRAIN, run.config, changed, run.encoder).start()


def test_another_text_tower_is_refused(run: Run) -> None:
    """A model folder may change under an unchanged name."""
    changed = dataclasses.replace(run.encoder, hidden_size=32)
    with pytest.raises(InputError, match="text tower"):
        Run(run.folder, PRETRAIN, run.config, run.schema, changed).start()


def test_a_folder_with_other_things_is_refused_untouched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="not empty and not a run folder"):
        Run(tmp_path / "photos", PRETRAIN, run.config, run.schema, run.encoder).start()
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_file_in_the_way_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="give another --run-dir"):
            Run(folder, PRETRAIN, run.config, run.schema, run.encoder).start()


def test_half_made_folder_is_completed(run: Run) -> None:
    """run.json is written last: a start that was killed before it is no run, and the next start makes it one."""
    (run.folder / "run.json").unlink()
    (run.folder / "schema.json").write_text('{"source"', encoding="utf-8")
    (run.folder / ".run.json.123.partial").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not a run folder"):
        Run.load(run.folder)
    again = Run(run.folder, run.origin, run.config, run.schema, run.encoder).start()
    assert Run.load(run.folder) == again == run


@pytest.mark.parametrize("name", ["run.json", "config.json", "schema.json", "encoder.json"])
@pytest.mark.parametrize("content", [None, "", '{"a": ', '{"a": 1}', "[]"])
def test_damaged_file_is_named(run: Run, name: str, content: str | None) -> None:
    path = run.folder / name
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Run.load(run.folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_result_is_there_only_when_finished(run: Run) -> None:
    assert run.result() is None
    run.finish({"test": {"auc": 0.5, "gauc": float("nan")}})
    assert run.result() == {"test": {"auc": 0.5, "gauc": None}}
    (run.folder / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"result\.json"):
        run.result()


@pytest.mark.parametrize("lost", ["rows", "auc", "unseen_item_rows"])
def test_scores_without_what_they_are_of_are_damaged(run: Run, tmp_path: Path, lost: str) -> None:
    """Why an undefined AUC is undefined is read from the rows beside it."""
    scores = {"auc": 0.5, "rows": 4, "unseen_item_auc": None, "unseen_item_rows": 0}
    tuned = Run(tmp_path / "tuned", Origin("finetune", "ctr"), run.config, run.schema, run.encoder).start()
    tuned.finish({"valid": scores, "test": scores})
    assert tuned.result() == {"valid": scores, "test": scores}
    tuned.finish({"valid": scores, "test": {name: n for name, n in scores.items() if name != lost}})
    with pytest.raises(InputError, match=r"result\.json does not hold the scores of a finetuning"):
        tuned.result()


def test_log_appends_json_lines_and_has_no_nan(run: Run) -> None:
    run.log([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("-inf")}])
    run.log([{"step": 3, "loss": 0.5}])
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert found == [{"step": 1, "loss": None}, {"step": 2, "loss": None}, {"step": 3, "loss": 0.5}]


def test_rewind_drops_what_will_be_done_again(run: Run) -> None:
    run.rewind(0)  # nothing there yet
    run.log([{"step": step} for step in (1, 2, 3, 3, 4, 5)])
    run.rewind(3)
    assert steps(run) == [1, 2, 3, 3]
    run.rewind(0)
    assert steps(run) == []


def test_what_a_killed_process_was_writing_goes(run: Run) -> None:
    """Once nobody else can be in the folder."""
    for name in (".result.json.123.partial", ".metrics.jsonl.9.partial"):
        (run.folder / name).write_text("{", encoding="utf-8")
    with run.held():
        run.log([{"step": 1}])
    assert not list(run.folder.glob(".*"))
    assert steps(run) == [1]


def test_who_comes_at_once_waits_until_a_dying_process_has_saved(run: Run) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        wait_until_free(run.folder, 0.1)
        assert other.poll() is None  # it did not wait for ever
        other.stdin.close()  # it ends soon
        wait_until_free(run.folder, 60)
        with run.held():
            pass
    wait_until_free(run.folder / "nowhere", 60)
    assert not (run.folder / "nowhere").exists()


def test_rewind_drops_a_line_cut_short(run: Run) -> None:
    run.log([{"step": 1}, {"step": 2}])
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    run.rewind(9)
    assert steps(run) == [1, 2]
    run.log([{"step": 3}])
    assert steps(run) == [1, 2, 3]


def test_write_json_leaves_no_partial_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": 2}


def test_a_url_is_no_run_folder(run: Run) -> None:
    with pytest.raises(InputError, match=r"gs:/bucket/run is a URL, but runs are kept on a file system; mount it"):
        dataclasses.replace(run, folder=Path("gs://bucket/run"))


def test_a_name_that_no_text_can_hold_is_no_run_folder(run: Run) -> None:
    with pytest.raises(InputError, match="is not UTF-8"):
        dataclasses.replace(run, folder=Path("lr\udcff"))
