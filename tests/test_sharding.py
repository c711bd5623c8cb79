"""Where parameters lie, and what devices tell each other because of it."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from alt_jax import bridge, sharding_rules
from alt_jax.config import Config, FinetuneConfig, MTMConfig, ShardingConfig, TextConfig
from alt_jax.data.batches import batch_at
from alt_jax.data.dataset import Dataset
from alt_jax.errors import InputError
from alt_jax.models import table
from alt_jax.models.alt import ALT
from alt_jax.models.heads import MLMHead
from alt_jax.optim import finetune_optimizer
from alt_jax.sharding import jit_init, layout, make_mesh, own_rows, place, replicate, replicated, split_rows
from alt_jax.tasks import Finetune
from alt_jax.train import initial_state, make_step

ROWS = 1 << 14  # of a table, far more than a batch asks for
B = 16
TEXT = TextConfig(vocab_size=120, hidden=64, layers=1, heads=2, intermediate=512, max_length=64)


def split(config: Config, **how: str) -> Config:
    return dataclasses.replace(config, sharding=ShardingConfig(**how))  # type: ignore[arg-type]


def names(tree: Any, found: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): place
        for (path, _), place in zip(leaves, jax.tree.leaves(found), strict=True)
    }


def test_rules_split_tables_by_rows_and_matrices_along_their_longest_axis(plain_config, tiny_dataset, make_pretrain):
    config = dataclasses.replace(split(plain_config, tables="split", text="split"), text=TEXT)
    config = dataclasses.replace(config, mtm=MTMConfig(method="sampled", dim=4))
    task, mesh = make_pretrain(config), make_mesh(jax.local_devices())
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    found = names(shapes, layout(mesh, shapes, sharding_rules.rules(config)))
    by_rows, by_columns = PartitionSpec("data"), PartitionSpec(None, "data")
    assert found["ctr/embedding/embedding"].spec == by_rows
    assert found["mtm/table"].spec == found["mtm/bias"].spec == by_rows
    assert found["text/encoder/layer/0/intermediate/dense/kernel"].spec == by_columns
    assert found["text/encoder/layer/0/output/dense/kernel"].spec == by_rows
    for small in ("text/encoder/layer/0/output/dense/bias", "align_ctr/first/kernel", "mlm/output/kernel"):
        assert found[small].spec == PartitionSpec(), small
    softmax = sharding_rules.rules(dataclasses.replace(config, mtm=MTMConfig(method="softmax")))
    assert names(shapes, layout(mesh, shapes, softmax))["mtm/table"].spec == PartitionSpec()
    assert sharding_rules.rules(plain_config) == ()


def test_no_number_depends_on_how_a_table_is_rounded_up(monkeypatch):
    """So that rows without an id, and a table that is split, change no run, but for the last bits of erf⁻¹."""
    for draw, error in ((jax.random.bits, 0), (jax.random.normal, 1e-6)):
        few, many = (draw(jax.random.key(0), (rows, 4)) for rows in (71, 256))
        np.testing.assert_allclose(few, many[:71], rtol=error)
    assert [table.table_rows(n) for n in (1, 256, 257)] == [256, 256, 512]


def test_parameters_are_made_where_they_lie(plain_config, make_pretrain):
    config = dataclasses.replace(split(plain_config, tables="split", text="split"), text=TEXT)
    task, mesh, rules = make_pretrain(config), make_mesh(jax.local_devices()), sharding_rules.rules(config)
    params = jit_init(mesh, task.init, 0, rules)
    whole = jax.jit(task.init)(jax.random.key(0))
    for mine, theirs, where in zip(*map(jax.tree.leaves, (params, whole, layout(mesh, whole, rules))), strict=True):
        assert mine.sharding == where
        assert np.asarray(mine) == pytest.approx(np.asarray(theirs), rel=1e-5, abs=1e-6)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    assert held < 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    again = place(mesh, jax.tree.map(np.asarray, params), rules)
    assert all(jax.tree.leaves(jax.tree.map(lambda one, other: one.sharding == other.sharding, params, again)))


@pytest.mark.parametrize(("count", "rows"), [(8, 16), (2, 6)])
def test_one_process_holds_the_whole_batch(count, rows):
    assert own_rows(make_mesh(jax.local_devices()[:count]), rows) == slice(0, rows)


def test_devices_that_do_not_divide_a_table_are_refused(plain_config):
    mesh = make_mesh(jax.local_devices()[:6])
    with pytest.raises(InputError, match="which 6 devices do not divide"):
        sharding_rules.check_rules(mesh, sharding_rules.rules(split(plain_config, tables="split")))
    sharding_rules.check_rules(mesh, sharding_rules.rules(split(plain_config, text="split")))


# --- the compiled step ---


def collectives(program: str) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the results of every kind of collective."""
    program = re.sub(r"/\*.*?\*/", "", program)  # every fifth element of a tuple is numbered
    found: dict[str, list[tuple[int, ...]]] = {}
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for match in re.finditer(rf"= (\([^=]*?\)|\S+) ({kinds})(-start)?\(", program):
        shapes = [tuple(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", match[1])]
        found.setdefault(match[2], []).extend(shapes)
    return found


class Stepped:
    """Some updates of click prediction on eight devices under some rules."""

    def __init__(self, config: Config, dataset: Dataset, strategy: Any, recipe: FinetuneConfig) -> None:
        encoder = bridge.encoder_config(config.text, dataset.schema)
        task, optimizer = Finetune(ALT(config, dataset.schema, encoder), strategy), finetune_optimizer(recipe)
        mesh, rules = make_mesh(jax.local_devices()), sharding_rules.rules(config)
        state = initial_state(mesh, jit_init(mesh, task.init, 0, rules), optimizer, rules)
        places = layout(mesh, state, rules)
        pieces = replicate(mesh, dataset.pieces)
        batches = [split_rows(mesh, batch_at(dataset.train, seed=0, step=i, batch_size=B)) for i in range(3)]
        self.losses = []
        with jax.set_mesh(mesh):
            step = make_step(task, optimizer, lazy_tables=recipe.tables != "adam")
            update = jax.jit(step, out_shardings=(places, replicated(mesh)))
            compiled = update.lower(state, pieces, batches[0], jax.random.key(0)).compile()
            for batch in batches:
                state, metrics = compiled(state, pieces, batch, jax.random.key(0))
                self.losses.append(float(metrics["loss"].value))
        assert all(jax.tree.leaves(jax.tree.map(lambda leaf, there: leaf.sharding == there, state, places)))
        self.state, self.program, self.memory = state, compiled.as_text(), compiled.memory_analysis()


@pytest.fixture
def large_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables XLA would rather gather whole, which is right but shows nothing."""
    monkeypatch.setattr(table, "ROWS_MULTIPLE", ROWS)


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("lazy_adam", marks=pytest.mark.slow), "lazy_adagrad"])
def test_tables_by_rows(optimizer: Any, plain_config: Config, tiny_dataset: Dataset, large_tables: None) -> None:
    """The same updates; each device has an eighth, of the optimiser's state as well; no table is ever gathered."""
    recipe = dataclasses.replace(plain_config.finetune.ctr, tables=optimizer)
    copied = Stepped(plain_config, tiny_dataset, "ctr", recipe)
    found = Stepped(split(plain_config, tables="split"), tiny_dataset, "ctr", recipe)
    assert found.losses == pytest.approx(copied.losses, rel=1e-5)
    for mine, theirs in zip(jax.tree.leaves(found.state), jax.tree.leaves(copied.state), strict=True):
        assert np.asarray(mine) == pytest.approx(np.asarray(theirs), rel=1e-3, abs=1e-5)
    tables = [leaf for leaf in jax.tree.leaves(found.state) if leaf.ndim and leaf.shape[0] == ROWS]
    assert len(tables) == {"adam": 6, "lazy_adam": 6, "lazy_adagrad": 4}[optimizer]
    assert {leaf.addressable_shards[0].data.shape[0] for leaf in tables} == {ROWS // 8}
    assert found.memory.argument_size_in_bytes < 0.2 * copied.memory.argument_size_in_bytes
    assert found.memory.temp_size_in_bytes < ROWS * 4 * plain_config.ctr.dim  # no whole table in passing either
    sent = collectives(found.program)
    assert sent
    assert max(math.prod(shape) for shapes in sent.values() for shape in shapes) < ROWS // 8


def test_the_mlm_head_in_shards(plain_config: Config) -> None:
    """Its matrices are gathered; the logits, which are larger, stay where their rows are."""
    head, mesh, rows, width, vocab = MLMHead(4096, 0.0), make_mesh(jax.local_devices()), 512, 64, 4096
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(size=(rows, width)), jnp.float32)
    params = {"mlm": head.init(jax.random.key(0), states, None, train=False)["params"]}

    def loss(params: Any, states: Any) -> jax.Array:
        return jnp.mean(head.apply({"params": params["mlm"]}, states, None, train=False) ** 2)

    expected = jax.grad(loss)(params, states)
    rules = sharding_rules.rules(split(plain_config, text="split"))
    places = layout(mesh, params, rules)
    assert places["mlm"]["output"]["kernel"].spec == PartitionSpec(None, "data")
    with jax.set_mesh(mesh):
        there = place(mesh, params, rules), split_rows(mesh, states)
        program = jax.jit(jax.grad(loss), out_shardings=places).lower(*there).compile()
        for mine, theirs in zip(*map(jax.tree.leaves, (program(*there), expected)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    sent = collectives(program.as_text())
    assert (width, vocab) in sent["all-gather"]
    assert max(math.prod(shape) for shapes in sent.values() for shape in shapes) == width * vocab


def test_a_text_tower_in_shards(plain_config: Config, tiny_dataset: Dataset) -> None:
    """FSDP: matrices are gathered where they are used; every device holds and updates its share."""
    config = dataclasses.replace(plain_config, text=dataclasses.replace(TEXT, dropout=0.0))
    recipe = config.finetune.plm
    copied = Stepped(config, tiny_dataset, "plm", recipe)
    found = Stepped(split(config, text="split"), tiny_dataset, "plm", recipe)
    assert found.losses == pytest.approx(copied.losses, rel=1e-4)
    inner = found.state.params["text"]["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    assert inner.addressable_shards[0].data.shape == (64, 512 // 8)
    assert found.memory.argument_size_in_bytes < 0.5 * copied.memory.argument_size_in_bytes
    gathered = collectives(found.program)["all-gather"]
    assert {(64, 512), (512, 64)} <= set(gathered)
    assert "all-gather" not in collectives(copied.program) or (64, 512) not in collectives(copied.program)["all-gather"]
    # The batch stays split: no product is over the rows of all devices.
    products = re.findall(r"f32\[([\d,]+)\]\S* (?:dot|custom-call)\(", found.program)
    rows = {int(dims.split(",")[0]) for dims in products}
    assert B * tiny_dataset.schema.text.max_length not in rows
