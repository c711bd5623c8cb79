import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import trained

from alt_jax import stages
from alt_jax.bridge import TRANSFERRED, check_towers, encoder_config, load_text, transfer
from alt_jax.checkpoint import load_params
from alt_jax.config import Config, Strategy
from alt_jax.data.dataset import Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.tokenizer import load_tokenizer, train_wordpiece
from alt_jax.errors import InputError
from alt_jax.models import huggingface
from alt_jax.models.alt import ALT
from alt_jax.models.bert import BertConfig
from alt_jax.models.encoder import EncoderConfig
from alt_jax.models.modernbert import GLOBAL, LOCAL, ModernBertConfig
from alt_jax.run import Origin, Run
from alt_jax.sharding import make_mesh
from alt_jax.tasks import Finetune, text_length

STRATEGIES: tuple[Strategy, ...] = ("ctr", "plm", "joint")


def fresh(config: Config, dataset: Dataset, strategy: Strategy) -> tuple[dict[str, Any], EncoderConfig]:
    """Parameters' shapes stand for fresh parameters: what is not replaced must come back as it is."""
    encoder = encoder_config(config.text, dataset.schema)
    task = Finetune(ALT(config, dataset.schema, encoder), strategy)
    return jax.eval_shape(task.init, jax.random.key(0)), encoder


def with_text(config: Config, **text: Any) -> Config:
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **text))


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exactly_the_sub_trees_are_taken(tiny_config: Config, tiny_dataset: Dataset, strategy: Strategy) -> None:
    runs = trained(tiny_config)
    params, _ = fresh(runs.config, tiny_dataset, strategy)
    found, summary = transfer(params, strategy, runs.pretrain, tiny_dataset.schema)
    pretrained, _ = load_params(runs.pretrain)
    assert found.keys() == params.keys()
    for name, tree in found.items():
        source = pretrained[name] if name in TRANSFERRED[strategy] else params[name]
        assert jax.tree.structure(tree) == jax.tree.structure(source)
        for mine, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(source), strict=True):
            if name in TRANSFERRED[strategy]:
                np.testing.assert_array_equal(mine, theirs)
            else:
                assert mine is theirs
    lines = dict(line.split(": ", 1) for line in summary)
    for name in params:
        assert lines[name].startswith(f"from {runs.pretrain}, step 90" if name in TRANSFERRED[strategy] else "fresh")
    assert set(lines["left behind"].split(", ")) == pretrained.keys() - set(TRANSFERRED[strategy])


def test_finetuning_says_what_it_took(tiny_config: Config, tiny_dataset: Dataset) -> None:
    runs = trained(tiny_config)
    for line in (f"  ctr: from {runs.pretrain}, step 90 (", f"  text: from {runs.pretrain}, step 90 ("):
        assert line in runs.said
    for line in ("  ctr_logit: fresh (", "  text_logit: fresh (", "  fusion: fresh (", "  left behind: align_ctr, "):
        assert line in runs.said
    assert json.loads((runs.joint / "run.json").read_text(encoding="utf-8"))["init_from"] == str(runs.pretrain)


def narrow_ctr(config: Config) -> Config:
    return dataclasses.replace(config, ctr=dataclasses.replace(config.ctr, dim=8))


def deeper_text(config: Config) -> Config:
    return with_text(config, layers=2)


def shallower_ctr(config: Config) -> Config:
    return dataclasses.replace(config, ctr=dataclasses.replace(config.ctr, hidden=(16,)))


@pytest.mark.parametrize("change", [narrow_ctr, shallower_ctr, deeper_text, lambda c: with_text(c, hidden=8)])
def test_another_width_is_refused(
    tiny_config: Config, tiny_dataset: Dataset, change: Callable[[Config], Config]
) -> None:
    runs = trained(tiny_config)
    params, _ = fresh(change(runs.config), tiny_dataset, "joint")
    with pytest.raises(InputError, match="use the tower sizes") as caught:
        transfer(params, "joint", runs.pretrain, tiny_dataset.schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda schema: dataclasses.replace(schema, vocabulary_hash="other"),
        lambda schema: dataclasses.replace(schema, fields=schema.fields[:-1]),
        lambda schema: dataclasses.replace(schema, text=dataclasses.replace(schema.text, fingerprint="other")),
    ],
    ids=["vocabulary", "fields", "tokenizer"],
)
def test_another_schema_is_refused(tiny_config: Config, tiny_dataset: Dataset, change: Callable[[Any], Any]) -> None:
    runs = trained(tiny_config)
    params, _ = fresh(runs.config, tiny_dataset, "joint")
    with pytest.raises(InputError, match="another schema"):
        transfer(params, "joint", runs.pretrain, change(tiny_dataset.schema))


def test_a_run_that_is_no_finished_pretraining_is_refused(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    runs = trained(tiny_config)
    params, _ = fresh(runs.config, tiny_dataset, "joint")

    def refused(folder: Path, said: str) -> None:
        with pytest.raises(InputError, match=said):
            transfer(params, "joint", folder, tiny_dataset.schema)

    refused(runs.ctr, "is a finetuning run")
    refused(tmp_path, "is not a run folder")
    refused(tmp_path / "nowhere", "is not a run folder")
    unfinished = copy(runs.pretrain, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    refused(unfinished, "is not finished")
    empty = copy(runs.pretrain, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    refused(empty, "holds no checkpoint")


def test_a_refused_finetuning_leaves_no_folder(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> None:
    runs = trained(tiny_config)
    with pytest.raises(InputError, match="use the tower sizes"):
        stages.finetune(narrow_ctr(runs.config), "ctr", runs.pretrain, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# A text tower from a local Hugging Face folder.


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of width 8 with a WordPiece of its own."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-bert"
    tokenizer = train_wordpiece(["User ID is u1. Title is red stone. Genre is film noir."], 90)
    encoder = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    shapes = huggingface._param_shapes(encoder)
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(0, 0.1, shape).astype(np.float32) for path, shape in shapes.items()}
    huggingface.save(folder, encoder, huggingface.traverse_util.unflatten_dict(leaves), tokenizer)
    return folder


def test_model_folder_with_another_tokenizer_is_refused(
    tiny_config: Config, tiny_dataset: Dataset, model_folder: Path
) -> None:
    config = with_text(tiny_config, model=str(model_folder))
    with pytest.raises(InputError, match=r"prepare it again with --text\.model"):
        encoder_config(config.text, tiny_dataset.schema)


@pytest.fixture(scope="module")
def modelled(
    tiny_config: Config, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> tuple[Config, Dataset]:
    """The tiny experiment prepared with the model's tokenizer."""
    folder = str(tmp_path_factory.mktemp("modelled") / "prepared")
    config = with_text(tiny_config, model=str(model_folder))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=folder))
    return config, prepare(config)


def test_model_folder_gives_the_text_tower(modelled: tuple[Config, Dataset], model_folder: Path) -> None:
    config, dataset = modelled
    params, encoder = fresh(config, dataset, "joint")
    assert encoder == huggingface.load_config(model_folder)
    found, summary = load_text(params, config.text, encoder)
    weights = huggingface.load_weights(model_folder, encoder)
    jax.tree.map(np.testing.assert_array_equal, found["text"], weights)
    assert all(found[name] is params[name] for name in params if name != "text")
    assert [line.split(" (")[0] for line in summary if line.startswith("text:")] == [f"text: from {model_folder}"]
    assert all("fresh" in line for line in summary if not line.startswith("text:"))


def test_two_steps_from_the_model_folder(
    tmp_path: Path, modelled: tuple[Config, Dataset], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = modelled
    recipe = dataclasses.replace(config.finetune.plm, batch_size=240)
    config = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, plm=recipe))
    result = stages.finetune(config, "plm", None, tmp_path / "run")
    assert f"  text: from {model_folder} (" in capsys.readouterr().out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, second, valid = map(json.loads, lines)
    assert (first["step"], second["step"], valid["step"], result["best_step"]) == (1, 2, 2, 2)
    assert first["loss"] != second["loss"]
    assert valid["valid/auc"] == result["valid"]["auc"]
    assert stages.to_json(stages.evaluate([tmp_path / "run"], "test")) == stages.to_json(result["test"])


@pytest.mark.parametrize("length", [57, 64])
def test_a_tower_of_our_own_has_positions_for_prompts_of_every_length(
    length: int, tiny_dataset: Dataset, tiny_config: Config
) -> None:
    """Also where prompts are cut to a length that batches round up."""
    text = dataclasses.replace(tiny_dataset.schema.text, length=length, max_length=length)
    found = encoder_config(
        dataclasses.replace(tiny_config.text, max_length=length), dataclasses.replace(tiny_dataset.schema, text=text)
    )
    assert found.max_length == text_length(length) == 64


def test_dataset_of_a_model_needs_that_model(modelled: tuple[Config, Dataset], tiny_config: Config) -> None:
    _, dataset = modelled
    with pytest.raises(InputError, match=r"text\.model is empty"):
        encoder_config(tiny_config.text, dataset.schema)


@pytest.fixture(scope="module")
def modernbert(modelled: tuple[Config, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The same dataset's tokenizer with a ModernBERT."""
    config, _ = modelled
    tokenizer = load_tokenizer(config.text.model)
    encoder = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=66,
        layer_types=(GLOBAL, LOCAL),
        pad_token_id=tokenizer.pad_token_id,
    )
    leaves = {path: np.full(shape, 0.1, np.float32) for path, shape in huggingface._param_shapes(encoder).items()}
    folder = tmp_path_factory.mktemp("hub") / "tiny-modernbert"
    huggingface.save(folder, encoder, huggingface.traverse_util.unflatten_dict(leaves), tokenizer)
    return with_text(config, model=str(folder))


def test_another_family_gives_the_text_tower(modelled: tuple[Config, Dataset], modernbert: Config) -> None:
    params, encoder = fresh(modernbert, modelled[1], "plm")
    assert isinstance(encoder, ModernBertConfig)
    found, _ = load_text(params, modernbert.text, encoder)
    assert (found["text"]["layers"]["1"]["attn_norm"]["scale"] == np.float32(0.1)).all()


def test_prompts_too_long_for_another_family_are_refused(modelled: tuple[Config, Dataset], modernbert: Config) -> None:
    schema = modelled[1].schema
    schema = dataclasses.replace(schema, text=dataclasses.replace(schema.text, max_length=67))
    with pytest.raises(InputError, match=r"up to 67 tokens, .* reads 66; .*--text\.max-length 66"):
        encoder_config(modernbert.text, schema)


def test_more_tokens_than_embeddings_are_refused(modelled: tuple[Config, Dataset]) -> None:
    config, schema = modelled[0], modelled[1].schema
    size = schema.text.vocab_size
    schema = dataclasses.replace(schema, text=dataclasses.replace(schema.text, vocab_size=size + 1))
    with pytest.raises(InputError, match=rf"the tokenizer has {size + 1} tokens, .* embeddings for {size};"):
        encoder_config(config.text, schema)


def test_prompts_too_long_for_the_model_are_refused(modelled: tuple[Config, Dataset]) -> None:
    config, dataset = modelled
    schema = dataclasses.replace(dataset.schema, text=dataclasses.replace(dataset.schema.text, max_length=65))
    with pytest.raises(InputError, match=r"--text\.max-length 64"):
        encoder_config(config.text, schema)


# --- stages in a row ---


def test_mlm_on_prompts_alone_is_a_first_stage(tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset) -> None:
    """Domain adaptation: a pretraining of the text tower alone, from which one of both towers goes on."""
    plain = {"mlm.with_table": False, "mlm.unit": "token"}
    adapting = tiny_config.override({"loss.icl": 0, "loss.mtm": 0, **plain})
    first, second = tmp_path / "first", tmp_path / "second"
    stages.pretrain(adapting, first)
    adapted, _ = load_params(first)
    assert set(adapted) == {"text", "mlm"}
    still = tiny_config.override({"pretrain.learning_rate": 1e-12, "pretrain.text_learning_rate": 1e-12})
    stages.pretrain(still, second, first)
    found, _ = load_params(second)
    assert {"ctr", "text", "align_ctr", "mlm", "mtm"} <= set(found)
    for mine, theirs in zip(jax.tree.leaves(found["text"]), jax.tree.leaves(adapted["text"]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    with pytest.raises(InputError, match=r"was started with|another run"):
        stages.pretrain(tiny_config, second)
    with pytest.raises(InputError, match=r"has no parameters for 'ctr', only for"):
        stages.finetune(tiny_config, "ctr", first, tmp_path / "ctr")
    stages.finetune(tiny_config, "plm", first, tmp_path / "ptab")  # MLM, then classify
    assert Run.load(tmp_path / "ptab").result() is not None


def test_both_text_towers_start_from_the_pretrained_one(tiny_config: Config, tiny_dataset: Dataset) -> None:
    runs = trained(tiny_config)
    params, _ = fresh(runs.config.override({"finetune.plm.towers": "two"}), tiny_dataset, "plm")
    found, summary = transfer(params, "plm", runs.pretrain, tiny_dataset.schema)
    pretrained, _ = load_params(runs.pretrain)
    for name in ("text", "text_second"):
        jax.tree.map(np.testing.assert_array_equal, found[name], pretrained["text"])
    assert [line.split(":")[0] for line in summary if "fresh" in line] == ["two_text_logit"]


def test_two_text_towers_need_an_item_to_split_at(tiny_config: Config, tiny_dataset: Dataset) -> None:
    two = tiny_config.override({"finetune.plm.towers": "two"}).finetune.plm
    check_towers(two, tiny_dataset.schema)
    with pytest.raises(InputError, match="declares no item; set"):
        check_towers(two, dataclasses.replace(tiny_dataset.schema, item=None))
    with pytest.raises(InputError, match="has no field before it"):
        check_towers(two, dataclasses.replace(tiny_dataset.schema, item=tiny_dataset.schema.names[0]))


def test_scratch_takes_no_weights(modelled: tuple[Config, Dataset]) -> None:
    config, dataset = modelled
    scratch = with_text(config, init="scratch")
    params, encoder = fresh(scratch, dataset, "plm")
    found, summary = load_text(params, scratch.text, encoder)
    assert found is params
    assert all("fresh" in line for line in summary)


def test_a_pretraining_without_text_starts_ctr_and_joint_but_not_plm(
    tmp_path: Path, tiny_config: Config, tiny_dataset: Dataset
) -> None:
    """Where both towers are wanted, the text tower starts as without a pretraining."""
    config = tiny_config.override({"loss.icl": 0, "loss.mlm": 0, "mtm.with_text": False})
    stages.pretrain(config, tmp_path / "pretrain")
    encoder = encoder_config(config.text, tiny_dataset.schema)
    found, _ = load_params(tmp_path / "pretrain")
    assert set(found) == {"ctr", "mtm"}
    run = Run(tmp_path / "run", Origin("finetune", "joint"), config, tiny_dataset.schema, encoder)
    start = tmp_path / "pretrain", ()
    params, said = stages.starting_params(stages.finetune_task(run), make_mesh(), run, tiny_dataset, *start)
    jax.tree.map(np.testing.assert_array_equal, params["ctr"], found["ctr"])
    assert any(line.startswith("ctr: from ") for line in said)
    assert any(line.startswith("text: fresh") for line in said)
    run = Run(tmp_path / "run", Origin("finetune", "plm"), config, tiny_dataset.schema, encoder)
    with pytest.raises(InputError, match="has no parameters for 'text'"):
        stages.starting_params(stages.finetune_task(run), make_mesh(), run, tiny_dataset, *start)
