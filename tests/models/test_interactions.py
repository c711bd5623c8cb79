"""Every CTR tower against its published equations and in every use; the registry; the options."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slow_towers
from jaxtyping import Array, Float

from alt_jax import bridge
from alt_jax.config import CTRConfig
from alt_jax.data.batches import batch_at
from alt_jax.errors import InputError
from alt_jax.metrics import auc
from alt_jax.models import interactions
from alt_jax.models.alt import ALT
from alt_jax.models.ctr import CTRLogit, CTRTower
from alt_jax.models.interactions import Interaction
from alt_jax.tasks import Finetune

CONFIG = CTRConfig(dim=3, init_std=0.5, hidden=(7, 4))
# Small sizes, so that the slow loops stay quick; every option of every tower appears.
OPTIONS: dict[str, tuple[tuple[str, int | str], ...]] = {
    "xdeepfm": (("maps", 5),),
    "dcn_mix": (("experts", 3), ("rank", 2)),
    "autoint": (("width", 4),),
    "autoint_plus": (("width", 4),),
    "afm": (("attention", 5),),
    "afn": (("neurons", 6),),
    "finalmlp": (("context", 5),),
    "masknet_parallel": (("width", 5),),
}
VARIANTS = [(name, OPTIONS.get(name, ())) for name in sorted(slow_towers.TOWERS)] + [
    ("dcnv2", (("structure", "stacked"),)),
    ("gdcn", (("structure", "stacked"),)),
    ("fibinet", (("bilinear", "all"),)),
    ("fibinet", (("bilinear", "each"),)),
]
NUM_IDS, FIELDS = 20, 4
IDS = np.random.default_rng(0).integers(0, NUM_IDS, (6, FIELDS)).astype(np.int32)


def random_like(tree, seed: int = 0):
    """Every parameter random, biases too, so that no term can be missing unnoticed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), tree)


class Click(nn.Module):
    """Tower and logit, as the strategy `ctr` has them."""

    config: CTRConfig
    num_ids: int = NUM_IDS

    def setup(self) -> None:
        self.tower, self.logit = CTRTower(self.config, self.num_ids), CTRLogit(self.config, self.num_ids)

    def __call__(self, ids, *, train: bool = False):
        h = self.tower(ids, train=train)
        return h, self.logit(ids, h)


def test_there_is_a_slow_twin_for_every_tower():
    assert set(slow_towers.TOWERS) == set(interactions.names())


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tower_is_the_published_equations(name, options):
    model = Click(dataclasses.replace(CONFIG, tower=name, options=options))
    params = random_like(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(IDS)))["params"], seed=3)
    h, logit = jax.jit(model.apply)({"params": params}, jnp.asarray(IDS))

    slow = slow_towers.TOWERS[name]
    if dict(options).get("structure") == "stacked":
        slow = getattr(slow_towers, f"{name}_stacked")
    table = np.asarray(params["tower"]["embedding"]["embedding"], np.float64)
    assert table.shape[1] == (1 if name == "lr" else CONFIG.dim)
    assert ("linear" in params["logit"]) == (name in slow_towers.FIRST_ORDER)
    for row in range(len(IDS)):
        expected = slow(table[IDS[row]], params["tower"].get("interaction", {}))
        assert np.asarray(h[row]) == pytest.approx(np.asarray(expected), rel=1e-4, abs=1e-5)
        share = slow_towers.READOUTS.get(name, slow_towers.linear)(np.asarray(expected), params["logit"]["readout"])
        if name in slow_towers.FIRST_ORDER:
            weights = np.asarray(params["logit"]["linear"]["embedding"], np.float64)
            share += sum(weights[i, 0] for i in IDS[row])
        assert float(logit[row]) == pytest.approx(float(share), rel=1e-4, abs=1e-4)


def test_dlrm_takes_numbers():
    config = dataclasses.replace(CONFIG, tower="dlrm")
    model, numbers = (
        CTRTower(config, NUM_IDS),
        np.random.default_rng(1).standard_normal((len(IDS), 2)).astype(np.float32),
    )
    inputs = jnp.asarray(IDS), jnp.asarray(numbers)
    params = random_like(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))["params"], seed=3)
    h = model.apply({"params": params}, *inputs, train=False)
    table = np.asarray(params["embedding"]["embedding"], np.float64)
    for row in range(len(IDS)):
        expected = slow_towers.dlrm_numbers(table[IDS[row]], numbers[row], params["interaction"])
        assert np.asarray(h[row]) == pytest.approx(np.asarray(expected), rel=1e-4, abs=1e-5)


# --- in use ---


# All; those in the default lane have a first-order part, none, or one of their own, and layers of every kind.
def by_lane(*quick: str) -> pytest.MarkDecorator:
    """All towers, of which these are in the default lane."""
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in interactions.names()}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=own) for name, own in marks.items()])


@pytest.fixture(scope="module")
def batch(tiny_dataset):
    return jax.tree.map(jnp.asarray, batch_at(tiny_dataset.train, seed=0, step=0, batch_size=8))


@pytest.mark.parametrize("name", interactions.names())
def test_tower_finetunes(name, plain_config, tiny_dataset, make_pretrain, batch):
    """Every parameter has a gradient."""
    check_gradients(name, "ctr", plain_config, tiny_dataset, make_pretrain, batch)


@by_lane("dcn_mix", "dlrm")
def test_tower_pretrains(name, plain_config, tiny_dataset, make_pretrain, batch):
    """With all three losses. Every parameter has a gradient.

    Those of the text tower, which is the same for all, are left out: they would be most of what is compiled.
    """
    check_gradients(name, "pretrain", plain_config, tiny_dataset, make_pretrain, batch)


@by_lane("autoint", "dcn_mix", "dlrm", "fwfm")
def test_tower_goes_with_the_text_tower(name, plain_config, tiny_dataset, make_pretrain, batch):
    """In the strategy `joint`."""
    check_gradients(name, "joint", plain_config, tiny_dataset, make_pretrain, batch)


def check_gradients(name, use, plain_config, tiny_dataset, make_pretrain, batch):
    ctr = dataclasses.replace(plain_config.ctr, tower=name, options=OPTIONS.get(name, ()), init_std=0.3)
    config = dataclasses.replace(plain_config, ctr=ctr)
    pieces = jax.tree.map(jnp.asarray, tiny_dataset.pieces)
    model = ALT(config, tiny_dataset.schema, bridge.encoder_config(config.text, tiny_dataset.schema))
    task = make_pretrain(config, batch_size=8) if use == "pretrain" else Finetune(model, use)
    params = random_like(jax.eval_shape(task.init, jax.random.key(0)), seed=4)

    def of_the_tower(ctr):
        return task.loss(params | {"ctr": ctr}, pieces, batch, jax.random.key(1))

    (loss, _), grads = jax.jit(jax.value_and_grad(of_the_tower, has_aux=True))(params["ctr"])
    assert jnp.isfinite(loss)
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.isfinite(gradient).all(), path
    assert optax.tree.norm(grads["embedding"]) > 0


def tastes(rows: int = 6000):
    """Clicks by the bias of two ids and by whether they match: LR can see the former only."""
    rng = np.random.default_rng(5)
    ids = np.stack([rng.integers(0, 12, rows), rng.integers(12, 24, rows), rng.integers(24, 30, rows)], axis=1)
    bias, likes = rng.standard_normal(30), 2 * rng.standard_normal((12, 12))
    logit = 1.5 * bias[ids[:, 0]] + 1.5 * bias[ids[:, 1]] + likes[ids[:, 0], ids[:, 1] - 12]
    return jnp.asarray(ids, jnp.int32), jnp.asarray(rng.random(rows) < 1 / (1 + np.exp(-logit)), jnp.float32)


@by_lane("dcn_mix", "dlrm", "finalmlp")
def test_tower_learns(name):
    """The best possible AUC is about 0.90, LR's about 0.80, and a tower that sees pairs has to come near the former."""
    ids, label = tastes()
    config = CTRConfig(tower=name, dim=8, init_std=0.1, hidden=(32, 16), options=OPTIONS.get(name, ()))
    model = Click(config, 30)
    params = jax.jit(model.init)(jax.random.key(0), ids[:2])
    optimizer = optax.adam(1e-2)

    def predict(params, ids):
        return model.apply(params, ids)[1]

    @jax.jit
    def train(params):
        def step(carry, rows):
            params, state = carry
            grads = jax.grad(
                lambda p: optax.losses.sigmoid_binary_cross_entropy(predict(p, ids[rows]), label[rows]).mean()
            )(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        rows = jax.random.randint(jax.random.key(2), (400, 256), 0, 5000)
        return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]

    scores = jax.jit(predict)(train(params), ids[5000:])
    assert auc(np.asarray(label[5000:], int), np.asarray(scores)) > (0.75 if name == "lr" else 0.85)


def test_no_embedding_of_afn_is_held_back_at_the_start():
    """At the default standard deviation, 1e-4, below which two thirds of all entries lie."""
    config = CTRConfig(tower="afn", dim=8, hidden=(16, 8))
    model, ids = Click(config, 30), jnp.asarray(np.arange(30).reshape(10, 3), jnp.int32)
    params = model.init(jax.random.key(0), ids)
    grads = jax.grad(lambda params: model.apply(params, ids)[1].sum())(params)
    (table,) = (leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if leaf.shape == (256, 8))
    assert np.mean(np.asarray(table[:30]) != 0) > 0.99


# --- the registry ---


def test_unknown_tower_names_the_nearest():
    with pytest.raises(InputError, match=r"Unknown CTR tower 'dcn_mx'; did you mean 'dcn_mix'\? Known: .*dcn_mix"):
        interactions.options("dcn_mx")
    with pytest.raises(InputError, match=r"Unknown CTR tower 'zzz'; Known: "):
        interactions.options("zzz")


def test_a_tower_is_one_registered_class(monkeypatch):
    monkeypatch.setattr(interactions, "_TOWERS", dict(interactions._TOWERS))

    @interactions.register("sum_pool")
    class SumPool(Interaction):
        """The sum over fields through one layer."""

        @nn.compact
        def __call__(self, embeddings: Float[Array, "B F D"], *, train: bool) -> Float[Array, "B C"]:
            return nn.Dense(self.config.hidden[-1], name="dense")(jnp.sum(embeddings, axis=1))

    assert "sum_pool" in interactions.names()
    config = dataclasses.replace(CONFIG, tower="sum_pool")
    h, variables = CTRTower(config, NUM_IDS).init_with_output(jax.random.key(0), jnp.asarray(IDS), train=False)
    p = variables["params"]
    pooled = np.asarray(p["embedding"]["embedding"])[IDS].sum(axis=1)
    assert np.asarray(h) == pytest.approx(pooled @ np.asarray(p["interaction"]["dense"]["kernel"]), abs=1e-6)
    with pytest.raises(ValueError, match="Two towers are called 'sum_pool'"):
        interactions.register("sum_pool")(SumPool)
    monkeypatch.undo()
    with pytest.raises(InputError, match="Unknown CTR tower 'sum_pool'"):
        interactions.options("sum_pool")


@pytest.mark.parametrize(
    ("tower", "options", "said"),
    [
        ("fm", {"heads": 2}, "the tower 'fm' has no option 'heads'; it has none."),
        ("autoint", {"head": 2}, "has no option 'head'; it has layers, heads, width."),
        ("autoint", {"heads": 0}, "heads of the tower 'autoint' cannot be 0: Input should be greater than 0."),
        ("autoint", {"heads": "two"}, "cannot be 'two'"),
        ("dcnv2", {"structure": "serial"}, "Input should be 'parallel' or 'stacked'"),
        (
            "finalmlp",
            {"heads": 3},
            "heads 3 of the tower 'finalmlp' does not divide the last of ctr.hidden, 4; change one.",
        ),
    ],
)
def test_option_that_cannot_be(tower, options, said):
    with pytest.raises(InputError) as refused:
        interactions.build(dataclasses.replace(CONFIG, tower=tower, options=options))
    assert said in str(refused.value)


def test_options_may_be_a_mapping_in_any_order():
    one = dataclasses.replace(CONFIG, options={"rank": 2, "experts": 3})
    assert one == dataclasses.replace(CONFIG, options=(("experts", 3), ("rank", 2)))
    assert interactions.build(dataclasses.replace(one, tower="dcn_mix")).rank == 2
