"""One screen about a folder: against the tokenizer, against `predict`, against the training loss, and on any folder."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from slow_rows import cross_entropy, fresh, log_sigmoid
from tiny_runs import Runs, trained

from alt_jax import bridge, cli, recovery
from alt_jax.checkpoint import load_params
from alt_jax.config import Config, FieldConfig, LossConfig
from alt_jax.data.batches import Batch
from alt_jax.data.dataset import TOKENIZER, Dataset
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import sentence
from alt_jax.data.tokenizer import load_tokenizer
from alt_jax.errors import InputError
from alt_jax.export import export
from alt_jax.inspect import COLUMNS, LINES, inspect
from alt_jax.run import Origin, Run
from alt_jax.scorer import predict


@pytest.fixture(scope="module")
def runs(tiny_config: Config, tiny_dataset: Dataset) -> Runs:
    return trained(tiny_config)


@pytest.fixture(scope="module")
def exported(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "joint"
    export(runs.joint, out)
    return out


@pytest.fixture(scope="module")
def said(runs: Runs, exported: Path, tiny_config: Config) -> dict[str, str]:
    """What is shown of each kind of folder."""
    places = {
        "dataset": tiny_config.data.dir,
        "pretrain": runs.pretrain,
        "joint": runs.joint,
        "ctr": runs.ctr,
        "export": exported,
    }
    return {name: inspect(str(place)) for name, place in places.items()}


def entries(page: str, label: str) -> list[str]:
    """What stands behind a label, its lines joined again; once for every time that the label occurs."""
    found: list[str] = []
    inside = False
    for line in page.splitlines():
        if line[:9].strip() == label:
            found.append(line[9:])
            inside = True
        elif inside and not line[:9].strip():
            found[-1] += f" {line[9:]}"
        else:
            inside = False
    return found


def valid_sentences(tiny_config: Config, dataset: Dataset) -> list[str]:
    """The prompts of the validation part as text, from the raw table."""
    raw = pq.read_table(tiny_config.data.raw).take(np.asarray(dataset.valid.rows)).to_pylist()
    return [
        sentence([field.name for field in tiny_config.data.fields], [row[f.column] for f in tiny_config.data.fields])
        for row in raw
    ]


def decoded(dataset: Dataset, text: str) -> str:
    """What the tokenizer makes of a whole sentence."""
    tokenizer = load_tokenizer(str(dataset.folder / TOKENIZER))
    return tokenizer.decode(tokenizer(text)["input_ids"])


# What is shown.


def test_every_kind_fits_a_screen(said: dict[str, str]) -> None:
    for page in said.values():
        assert len(page.splitlines()) <= LINES == 40
        assert max(map(len, page.splitlines())) <= COLUMNS == 100
        assert page.replace("\n", "").isprintable()


def test_a_dataset_is_described_by_its_raw_table(
    said: dict[str, str], tiny_config: Config, tiny_dataset: Dataset
) -> None:
    raw = pq.read_table(tiny_config.data.raw).to_pylist()
    train, valid = ([raw[row] for row in tiny_dataset.split(name).rows] for name in ("train", "valid"))
    page = said["dataset"]
    assert f"train 480 rows, {np.mean([row['label'] for row in train]):.1%} positive" in page
    assert f"valid 60 rows, {np.mean([row['label'] for row in valid]):.1%} positive" in page
    for field in tiny_config.data.fields:
        (line,) = [line for line in page.splitlines() if line.startswith(f"  {field.name} ")]
        every, seen = ({row[field.column] for row in part} for part in (raw, train))
        unseen = np.mean([row[field.column] not in seen for row in valid])
        number, known = len(every), len(seen)
        assert line.split()[len(field.name.split()) :][:5] == [
            "category",
            "1",
            str(number),
            str(known),
            f"{unseen:.1%}",
        ]
    assert re.search(r"Item ID .* Title\n", page)
    whole = load_tokenizer(str(tiny_dataset.folder / TOKENIZER))
    lengths = []
    for row in raw:
        fields = tiny_config.data.fields
        lengths.append(len(whole(sentence([f.name for f in fields], [row[f.column] for f in fields]))["input_ids"]))
    median = sorted(lengths)[(len(lengths) - 1) // 2]
    assert f"median {median} tokens · longest {max(lengths)} · limit 64" in page
    assert tiny_dataset.schema.data_hash[:12] in page


def test_prompts_are_the_tokenizers_of_the_whole_sentence(
    said: dict[str, str], tiny_config: Config, tiny_dataset: Dataset
) -> None:
    expected = [decoded(tiny_dataset, text) for text in valid_sentences(tiny_config, tiny_dataset)[:3]]
    for name in ("dataset", "joint", "ctr", "export"):
        assert entries(said[name], "prompt") == expected
    labels = np.asarray(tiny_dataset.valid.labels[:3]).tolist()
    assert [int(label) for label in re.findall(r"^valid \d .* label (\d)", said["joint"], re.M)] == labels


def test_masked_prompts_hide_what_is_said_to_be_hidden(
    said: dict[str, str], tiny_config: Config, tiny_dataset: Dataset
) -> None:
    """The masks, replaced by the hidden value, give the whole prompt; so the field that is named is the hidden one."""
    page = said["pretrain"]
    prompts, hidden = entries(page, "prompt"), entries(page, "MLM")
    expected = [decoded(tiny_dataset, text) for text in valid_sentences(tiny_config, tiny_dataset)[:3]]
    assert len(prompts) == len(hidden) == 3
    for prompt, line, whole in zip(prompts, hidden, expected, strict=True):
        name, value = re.match(r"(.*?) is “(.*?)”", line).groups()  # type: ignore[union-attr]
        masked = re.search(rf"{name.lower()} is ((\[MASK\] ?)+)", prompt)
        assert masked
        assert prompt.replace(masked[1].strip(), value) == whole
        guesses = re.findall(r"(?:[^|,]+) (\d\.\d\d)(?=[,|]| |$)", line.split("predicted")[1])
        assert guesses
        assert all(0 <= float(p) <= 1 for p in guesses)


def test_a_pretraining_says_where_it_is(said: dict[str, str], runs: Runs) -> None:
    page = said["pretrain"]
    assert "state    finished at step 90 of 90" in page
    last = json.loads((runs.pretrain / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"loss {last['loss']:.4g} · icl {last['icl']:.4g} · mlm {last['mlm']:.4g}" in page
    (values,) = entries(page, "values")
    assert "ctr.dim 4" in values
    assert "pretrain.epochs 3" in values
    assert "finetune." not in values
    assert re.search(r"step 60 \([\d.]+ [kM]B\) · step 90 \(", page)


def test_weights_are_counted(said: dict[str, str], runs: Runs) -> None:
    for name, steps in (("pretrain", 90), ("joint", None)):
        (line,) = entries(said[name], "weights")
        counts = {part: int(number.replace(",", "")) for part, number in re.findall(r"(\w+) ([\d,]+)(?: ·|$)", line)}
        folder = getattr(runs, name)
        step = steps or json.loads((folder / "result.json").read_text())["best_step"]
        params, _ = load_params(folder, step)
        expected = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in params.items()}
        assert counts == expected | {"all": sum(expected.values())}
        if name == "joint":
            assert f"α = {float(params['fusion']['alpha']):.4f}" in line


@pytest.mark.parametrize("name", ["joint", "ctr"])
def test_a_finetuning_predicts_as_predict_does(
    said: dict[str, str], runs: Runs, tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, name: str
) -> None:
    raw = pq.read_table(tiny_config.data.raw).take(np.asarray(tiny_dataset.valid.rows)[:3])
    pq.write_table(raw.drop_columns(["label"]), tmp_path / "rows.parquet")
    predict(getattr(runs, name), tmp_path / "rows.parquet", tmp_path / "scores.csv")
    scores = pyarrow.csv.read_csv(tmp_path / "scores.csv")["score"].to_pylist()
    shown = [float(p) for p in re.findall(r"predicted (\d\.\d+)", said[name])]
    assert shown == pytest.approx(scores, abs=2e-6)
    if name == "joint":
        assert [float(p) for p in re.findall(r"predicted (\d\.\d+)", said["export"])] == shown


def test_a_finetuning_says_what_came_of_it(said: dict[str, str], runs: Runs) -> None:
    result = json.loads((runs.joint / "result.json").read_text())
    for name in ("joint", "export"):
        assert "finetuning, strategy joint" in said[name]
        assert entries(said[name], "from") == [str(runs.pretrain)]
        for split in ("valid", "test"):
            (line,) = entries(said[name], split)
            assert line.startswith(f"auc {result[split]['auc']:.4f} · logloss {result[split]['logloss']:.4f}")
            assert f"step {result['best_step']}" in line
    assert re.search(r"step \d+ \([^)]*, best\)", said["joint"])


def test_an_export_without_its_dataset(exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    config = Config.from_json((moved / "config.json").read_text(encoding="utf-8"), "config.json")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir="/gone"))
    (moved / "config.json").write_text(config.to_json(), encoding="utf-8")
    page = inspect(str(moved))
    assert "params.safetensors" in page
    assert 'AutoModel.from_pretrained("EXPORT/text_tower")' in page
    assert "/gone/schema.json does not exist" in entries(page, "rows")[0]
    assert not entries(page, "prompt")


def test_rows_and_split(tiny_config: Config, tiny_dataset: Dataset) -> None:
    assert not entries(inspect(tiny_config.data.dir, rows=0), "prompt")
    page = inspect(tiny_config.data.dir, rows=5, split="test")
    assert re.findall(r"^test (\d) · raw row (\d+)", page, re.M) == [
        (str(i), str(row)) for i, row in enumerate(np.asarray(tiny_dataset.test.rows)[:5])
    ]
    assert len(re.findall("^valid", inspect(tiny_config.data.dir, rows=1000), re.M)) == 60


# What a model makes of hidden values: from its logits, the losses that it was trained with.

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "spans, masked helper, same masks": {
        **{"mlm.unit": "span", "mask.helper": "masked", "mask.pairing": "same", "mask.unit": "group"},
        "mask.rate": 0.4,
    },
    "tokens, without the table": {"mlm.unit": "token", "mlm.with_table": False, "mask.rate": 0.3},
    "replaced features": {"mtm.method": "rfd", "mask.rate": 0.5, "mask.helper": "masked"},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[pytest.mark.slow] if name in ("default", "replaced features") else [])
        for name, options in OPTIONS.items()
    ],
)
def test_logits_give_the_training_losses(
    make_pretrain: Any, plain_config: Config, tiny_dataset: Dataset, options: dict[str, Any]
) -> None:
    size = 32
    task = make_pretrain(plain_config.override(options), LossConfig(icl=0, mlm=1, mtm=1), size)
    params, key = fresh(task), jax.random.key(3)
    values = np.array(tiny_dataset.valid.values[:size])
    pieces = jax.tree.map(jnp.asarray, tiny_dataset.pieces)
    _, expected = jax.jit(task.loss)(params, pieces, Batch(jnp.asarray(values), *jnp.ones((2, size))), key)

    hidden = recovery.hide(task.model, tiny_dataset.pieces, values, key)
    found = recovery.recover(task.model, params, hidden)
    truth = np.asarray(hidden.prompt.tokens)[found.row, found.position]
    assert found.tokens is not None
    losses = [cross_entropy(logits, target) for logits, target in zip(found.tokens, truth, strict=True)]
    assert np.mean(losses) == pytest.approx(float(expected["mlm"].value), rel=1e-5)
    assert len(losses) == int(np.asarray(hidden.text.where).sum()) > size / 2

    schema, ids, shown = task.model.schema, np.asarray(hidden.ids), np.asarray(hidden.shown.ids)
    if task.model.config.mtm.method == "rfd":
        signs = np.where(ids != shown, 1, -1)
        losses = [-log_sigmoid(x) for x in (signs * found.output).ravel()]
    else:
        losses = [
            -np.log(recovery.feature_probabilities(found.output, schema, r, f)[ids[r, f] - schema.fields[f].offset])
            for r, f in np.argwhere(np.asarray(hidden.fields)).tolist()
        ]
    assert np.mean(losses) == pytest.approx(float(expected["mtm"].value), rel=1e-5)


# Any folder, at any time.


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_that_goes_on(runs: Runs, tmp_path: Path) -> None:
    """Its lock is held, its last line is half written; nothing is changed, and nothing is waited for."""
    going = tmp_path / "run"
    shutil.copytree(runs.joint, going)
    (going / "result.json").unlink()
    with (going / "metrics.jsonl").open("a") as file:
        file.write('{"step": 91, "lo')
    before = snapshot(going)
    with filelock.FileLock(going / "run.lock"):
        page = inspect(str(going), rows=1)
    assert snapshot(going) == before
    assert re.search(r"not finished: step \d+ of 30, last logged \d+ s ago", page)
    assert entries(page, "valid")[0].startswith("auc ")
    assert "test " not in page
    assert re.search(r"predicted 0\.\d+", page)


def test_a_run_that_has_just_begun(tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path) -> None:
    encoder = bridge.encoder_config(tiny_config.text, tiny_dataset.schema)
    for origin in (Origin("pretrain"), Origin("finetune", "ctr")):
        folder = tmp_path / origin.stage
        Run(folder, origin, tiny_config, tiny_dataset.schema, encoder).start()
        page = inspect(str(folder), rows=2)
        assert "not finished: step 0 of " in page
        assert entries(page, "losses") == ["nothing logged yet"]
        assert entries(page, "saved") == ["no checkpoint yet"]
        assert len(entries(page, "prompt")) == 2
        assert ("[MASK]" in page) == (origin.stage == "pretrain")
        assert not re.search(r"predicted", page)


def test_a_damaged_checkpoint_is_reported_and_an_older_one_taken(runs: Runs, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(runs.pretrain, broken)
    (broken / "checkpoints" / "90" / "checksums.json").write_text("{")
    (broken / "damaged" / "75-0").mkdir(parents=True)
    page = inspect(str(broken), rows=1)
    (saved,) = entries(page, "saved")
    assert "75-0 set aside as damaged" in saved
    assert "checkpoints/90 is damaged" in saved.replace(" ", "").replace("isdamaged", " is damaged")
    assert "predicted" in page
    shutil.rmtree(broken / "checkpoints" / "60" / "params")
    page = inspect(str(broken), rows=1)
    assert "predicted" not in page
    assert "[MASK]" in page


def test_a_damaged_file_gives_one_sentence(runs: Runs, tiny_config: Config, tmp_path: Path) -> None:
    for name, content in (("config.json", "{"), ("run.json", "[]"), ("result.json", "x"), ("schema.json", "{}")):
        broken = tmp_path / name.partition(".")[0]
        shutil.copytree(runs.ctr, broken)
        (broken / name).write_text(content)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            inspect(str(broken))
    shutil.copytree(tiny_config.data.dir, tmp_path / "data")
    (tmp_path / "data" / "config.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"config\.json cannot be read .* prepare again"):
        inspect(str(tmp_path / "data"))
    (tmp_path / "data" / "vocabulary.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"vocabulary\.parquet cannot be read"):
        inspect(str(tmp_path / "data"))


def test_what_is_none_of_these(runs: Runs, tiny_config: Config, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "is not a prepared dataset .* give the folder of one"),
        (tmp_path / "none", "is not there; give the folder of a prepared dataset"),
        (Path(tiny_config.data.raw), "is not a folder; give"),
        (Path(tiny_config.data.dir).parent, "give one inside it, e.g. .*prepared"),
    ):
        with pytest.raises(InputError, match=words) as error:
            inspect(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="--rows -1 is negative"):
        inspect(tiny_config.data.dir, rows=-1)


def test_command(capsys: pytest.CaptureFixture[str], tiny_config: Config, tiny_dataset: Dataset) -> None:
    assert cli.run(["inspect", tiny_config.data.dir, "--rows", "1", "--split", "test"]) == 0
    assert capsys.readouterr().out == inspect(tiny_config.data.dir, 1, "test") + "\n"
    assert cli.run(["inspect", "/no/such/folder"]) == 2
    assert capsys.readouterr().err.startswith("alt-jax inspect: /no/such/folder is not there; give ")


def test_many_odd_fields_fit_a_screen_too(tiny_config: Config, tmp_path: Path) -> None:
    """Thirty fields of every kind, long and hostile strings: still a screen, and what a value is shows."""
    rows, rng = 120, np.random.default_rng(0)
    table: dict[str, Any] = {
        f"column {i} with a long name": [f"value {n} of {i}" for n in rng.integers(0, 9, rows)] for i in range(24)
    }
    table |= {
        "user": [f"u{n}" for n in rng.integers(0, 5, rows)],
        "item": [f"\x1b[31mred\x1b[0m\n{n}" for n in rng.integers(0, 7, rows)],
        "price": [f"{n}.5" for n in rng.integers(0, 50, rows)],
        "tags": ["|".join(f"t{n}" for n in rng.integers(0, 6, 3)) for _ in range(rows)],
        "review": [" ".join(["words"] * 30)] * rows,
        "past": [""] * rows,
        "time": list(range(rows)),
        "label": rng.integers(0, 2, rows),
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    kinds = {
        "price": {"kind": "numeric", "bins": 4},
        "tags": {"kind": "multi", "slots": 3},
        "review": {"kind": "text"},
        "past": {"kind": "sequence", "of": "item", "slots": 2},
    }
    names = ["price", *(name for name in table if name not in ("price", "time", "label"))]
    data = dataclasses.replace(
        tiny_config.data,
        raw=str(tmp_path / "rows.parquet"),
        dir=str(tmp_path / "prepared"),
        fields=tuple(FieldConfig(name, **kinds.get(name, {})) for name in names),
        user="user",
        item="item",
        linked=(),
    )
    text = dataclasses.replace(tiny_config.text, vocab_size=300, max_length=512)
    mask = dataclasses.replace(tiny_config.mask, rate=0.5)
    config = dataclasses.replace(tiny_config, data=data, text=text, mask=mask)
    dataset = prepare(config)
    encoder = bridge.encoder_config(config.text, dataset.schema)
    Run(tmp_path / "run", Origin("pretrain"), config, dataset.schema, encoder).start()
    for place in ("prepared", "run"):
        page = inspect(str(tmp_path / place))
        assert len(page.splitlines()) <= LINES
        assert max(map(len, page.splitlines())) <= COLUMNS
        assert page.replace("\n", "").isprintable()
        assert "more" in page
        assert len(entries(page, "prompt")) == 3
    assert re.search(r"price is “(-?[\d.]+|-inf) to (-?[\d.]+|inf)”", inspect(str(tmp_path / "run"), rows=12))
