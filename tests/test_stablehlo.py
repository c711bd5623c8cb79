"""The serving function: every strategy and kind of field, in a process without alt_jax; what the file holds."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fresh_process import without_alt_jax

from alt_jax import bridge, onnx, stablehlo
from alt_jax.config import Config, CTRConfig, DataConfig, FieldConfig, PLMConfig, Strategy, TextConfig
from alt_jax.data.dataset import Encoder
from alt_jax.data.prepare import prepare
from alt_jax.data.prompt import kept_and_whole
from alt_jax.errors import InputError
from alt_jax.evaluate import Probabilities
from alt_jax.models.alt import ALT
from alt_jax.sharding import make_mesh, replicate
from alt_jax.tasks import Finetune, Params

FIELDS = (
    FieldConfig("user", "User"),
    FieldConfig("age", "Age", kind="numeric", bins=4),
    FieldConfig("item", "Item"),
    FieldConfig("title", "Title", kind="text"),
    FieldConfig("genre", "Genre", kind="multi", slots=2),
    FieldConfig("liked", "Liked before", kind="sequence", of="item", spelled="title", slots=3),
)
CASES = ("ctr", "plm", "two", "joint")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Fields of every kind; one title is much longer than the others."""
    folder, rng, n = tmp_path_factory.mktemp("kinds"), np.random.default_rng(4), 200
    item = rng.integers(0, 9, n)
    table = pa.table(
        {
            "user": [f"u{u}" for u in rng.integers(0, 12, n)],
            "age": [None if a == 3 else 20.5 + a for a in rng.integers(0, 12, n)],
            "item": [f"i{i}" for i in item],
            "title": ["the old house, " * (6 if i == 8 else 1) + str(i) for i in item],
            "genre": [("drama", "drama|war", "war|drama")[i % 3] for i in item],
            "time": rng.integers(0, 150, n),
            "label": rng.integers(0, 2, n),
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    data = DataConfig(
        raw=str(folder / "rows.parquet"),
        dir=str(folder / "prepared"),
        fields=FIELDS,
        user="user",
        item="item",
        timestamp="time",
    )
    text = TextConfig(vocab_size=150, hidden=16, layers=1, heads=2, intermediate=16, max_length=80)
    ctr = CTRConfig(tower="dlrm", dim=4, hidden=(8, 4), init_std=0.5, history="din")
    made = Config(data=data, text=text, ctr=ctr)
    prepare(made)
    return made


@pytest.fixture(scope="module")
def encoder(config: Config) -> Encoder:
    return Encoder.load(config.data.dir)


@pytest.fixture(scope="module")
def values(encoder: Encoder) -> np.ndarray:
    """Any values together, lists of any length; the first row has the longest of each field."""
    schema, rng, columns, base = encoder.schema, np.random.default_rng(5), [], 0
    lengths = np.asarray(encoder.pieces.length)
    for strings, slots in zip(encoder.values, schema.widths, strict=True):
        ids = rng.integers(base, base + len(strings), (37, slots)).astype(np.int32)
        held = rng.integers(1, slots + 1, 37)
        ids[np.arange(slots)[None, :] >= held[:, None]] = -1
        ids[0] = base + np.argmax(lengths[base : base + len(strings)])
        columns.append(ids)
        base += len(strings)
    return np.concatenate(columns, axis=1)


def random_model(config: Config, encoder: Encoder, case: str) -> tuple[Finetune, Params]:
    """A task with every parameter random."""
    strategy: Strategy = "plm" if case == "two" else case
    plm = PLMConfig(towers="two" if case == "two" else "one")
    config = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, plm=plm))
    task = Finetune(ALT(config, encoder.schema, bridge.encoder_config(config.text, encoder.schema)), strategy)
    rng = np.random.default_rng(6)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return task, jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def test_longest_prompt_is_that_of_the_longest_values(encoder: Encoder, values: np.ndarray) -> None:
    text = encoder.schema.text
    roomy = dataclasses.replace(text, max_length=200)
    for one, cut in ((encoder.schema, True), (dataclasses.replace(encoder.schema, text=roomy), False)):
        pieces, longest = dataclasses.replace(encoder, schema=one).serving_pieces()
        lengths, whole = kept_and_whole(pieces, values, one.widths)
        assert lengths.max() == lengths[0] == longest
        assert ((lengths < whole).any(), len(pieces.limit)) == (cut, 3 if cut else 0)
        assert longest >= text.length  # rows of the dataset do not have the longest values all at once


def test_scores_in_another_process_are_those_of_the_scorer(
    tmp_path: Path, config: Config, encoder: Encoder, values: np.ndarray
) -> None:
    """All cases in one process; and the CTR tower in ONNX, with its numbers and its attention to the history."""
    pieces, longest = encoder.serving_pieces()
    mesh, expected = make_mesh(), {}
    for case in CASES:
        task, params = random_model(config, encoder, case)
        expected[case] = Probabilities(task, mesh, encoder.pieces)(replicate(mesh, params), values)
        assert np.ptp(expected[case]) > 1e-3
        program = stablehlo.serialize(task, params, pieces, longest)
        for folder in (Path(stablehlo.__file__).parents[1], Path(jax.__file__).parent, Path.home()):
            assert str(folder).encode() not in program
        assert not re.search(rb"\w\.py\b", program)
        (tmp_path / case).write_bytes(program)
        if case == "ctr":
            model = onnx.ctr_model(task, params, pieces)
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            (found,) = session.run(["probability"], {"ids": values})
            np.testing.assert_allclose(found, expected[case], rtol=0, atol=1e-5)
            assert {"ctr/embedding/embedding", "value/number"} <= {each.name for each in model.graph.initializer}
    np.save(tmp_path / "values.npy", values)
    code = f"""
from pathlib import Path

import numpy as np
from jax import export

values, found = np.load("values.npy"), dict()
for case in {CASES}:
    score = export.deserialize(Path(case).read_bytes())
    assert score.platforms == ("cpu", "cuda", "tpu")
    found[case] = np.asarray(score.call(values))
    np.testing.assert_allclose(score.call(values[:1]), found[case][:1], rtol=0, atol=1e-6)
np.savez("found.npz", **found)
"""
    without_alt_jax(code, tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        for case in CASES:
            assert found[case].dtype == np.float32
            np.testing.assert_allclose(found[case], expected[case], rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", ["ctr", "joint"])
def test_unseen_values_have_an_id_a_field(
    config: Config, encoder: Encoder, values: np.ndarray, strategy: Strategy
) -> None:
    """V + f scores as a new value of field f does; where a text tower reads it, as one that is spelled as nothing."""
    task, params = random_model(config, encoder, strategy)
    pieces, longest = encoder.serving_pieces()
    first, base = np.cumsum([0, *encoder.schema.widths]), np.cumsum([0, *map(len, encoder.values)])
    rows = np.arange(len(FIELDS))
    asked = np.full((len(FIELDS), first[-1]), -1, np.int32)
    asked[:, first[:-1]] = values[1, first[:-1]]
    asked[rows, first[:-1]] = base[-1] + rows
    columns, compared = {}, []
    for f, field in enumerate(FIELDS):
        column = [encoder.values[f][values[1, first[f]] - base[f]]] * len(FIELDS)
        column[f] = "" if strategy == "joint" or field.kind == "numeric" else "never seen"
        columns[field.column] = column
        compared.append(field.kind == "numeric" or column[f] not in encoder.values[f])
    assert sum(compared) >= len(FIELDS) - 1  # an empty history is a value that the dataset knows
    by_name, extended = encoder.encode(pa.table(columns))
    mesh = make_mesh()
    expected = Probabilities(task, mesh, extended)(replicate(mesh, params), by_name)
    program = jax.export.deserialize(stablehlo.serialize(task, params, pieces, longest))
    np.testing.assert_allclose(np.asarray(program.call(asked))[compared], expected[compared], rtol=0, atol=1e-5)


def test_file_holds_what_the_strategy_reads(config: Config, encoder: Encoder) -> None:
    task, params = random_model(config, encoder, "ctr")
    pieces, longest = encoder.serving_pieces()
    many = pieces._replace(tokens=np.arange(1 << 20, dtype=np.int32))
    program = stablehlo.serialize(task, params, many, longest)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert held < len(program) < held + 100_000


def test_what_no_file_can_hold_is_refused(config: Config, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    task, params = random_model(config, encoder, "ctr")
    pieces, longest = encoder.serving_pieces()
    monkeypatch.setattr(stablehlo, "MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"constants would take .* GiB"):
        stablehlo.serialize(task, params, pieces, longest)
    with pytest.raises(InputError, match=r"constants would take .* GiB"):
        onnx.ctr_model(task, params, pieces)
