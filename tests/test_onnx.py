"""ONNX: every tower, as onnxruntime computes it, against the Flax tower; the operations one by one; what is refused."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from alt_jax.config import CTRConfig
from alt_jax.errors import InputError
from alt_jax.models import interactions
from alt_jax.models.ctr import CTRLogit, CTRTower
from alt_jax.onnx import IR, OPSET, translate

NUM_IDS, FIELDS = 20, 5
IDS = np.random.default_rng(0).integers(0, NUM_IDS, (7, FIELDS)).astype(np.int32)
# Small sizes, since tracing is all that takes time.
OPTIONS: dict[str, tuple[tuple[str, int], ...]] = {"dcn_mix": (("experts", 3), ("rank", 2)), "xdeepfm": (("maps", 5),)}
VARIANTS = [(name, OPTIONS.get(name, ())) for name in interactions.names()] + [
    ("dcnv2", (("structure", "stacked"),)),
    ("gdcn", (("structure", "stacked"),)),
    ("fibinet", (("bilinear", "all"),)),
    ("fibinet", (("bilinear", "each"),)),
]


def run(model: onnx.ModelProto, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["probability"], {"ids": ids})
    return found


def random_like(tree):
    """Every parameter random, biases too, so that no term can be missing unnoticed."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), tree)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_tower_scores_as_in_flax(name: str, options: tuple[tuple[str, int], ...]) -> None:
    config = CTRConfig(tower=name, dim=4, hidden=(7, 4), options=options)
    tower, logit = CTRTower(config, NUM_IDS), CTRLogit(config, NUM_IDS)

    def init():
        ids = jnp.asarray(IDS)
        h, own = tower.init_with_output(jax.random.key(0), ids, train=False)
        return {"tower": own["params"], "logit": logit.init(jax.random.key(0), ids, h)["params"]}

    params = random_like(jax.eval_shape(init))
    leaves, tree = jax.tree.flatten(params)
    names = [f"weight_{i:03d}" for i in range(len(leaves))]

    def score(weights, ids):
        params = jax.tree.unflatten(tree, [weights[name] for name in names])
        h = tower.apply({"params": params["tower"]}, ids, train=False)
        return jax.nn.sigmoid(logit.apply({"params": params["logit"]}, ids, h))

    weights = dict(zip(names, leaves, strict=True))
    model = translate(score, weights, FIELDS)
    expected = np.asarray(jax.jit(score)(weights, jnp.asarray(IDS)))
    assert np.ptp(expected) > 1e-3
    for rows in (7, 1):  # the batch is not fixed
        np.testing.assert_allclose(run(model, IDS[:rows]), expected[:rows], rtol=1e-5, atol=1e-6)
    assert (model.ir_version, model.opset_import[0].version) == (IR, OPSET)


def test_the_gather_that_leaves_a_table_gives_nan_and_the_clipped_one_its_end() -> None:
    """As JAX does."""
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    ids = np.array([[0], [5], [6], [-1], [-7]], np.int32)
    filled = translate(lambda weights, ids: jnp.take(weights["t"], ids[:, 0], axis=0), {"t": table}, 1)
    np.testing.assert_array_equal(run(filled, ids), jnp.take(table, ids[:, 0], axis=0))
    assert np.isnan(run(filled, ids)).any()
    clipped = translate(lambda weights, ids: jnp.take(weights["t"], ids[:, 0], axis=0, mode="clip"), {"t": table}, 1)
    np.testing.assert_array_equal(run(clipped, ids), jnp.take(table, ids[:, 0], axis=0, mode="clip"))


def cube(weights, ids):
    """[batch, 5, 4], numbers of both signs."""
    return jnp.take(weights["t"], ids, axis=0)


@jax.custom_vjp
def _doubled(x):
    return 2 * x


_doubled.defvjp(lambda x: (_doubled(x), None), lambda _, g: (2 * g,))


OPERATIONS: dict[str, Callable] = {
    "and_or_not": lambda x: jnp.where((x > 0) & ~(x > 1) | (x < -1), x, 0.0),
    "compare": lambda x: (x >= 0.5).astype(jnp.float32) + (x <= -0.5) + (x == x[:, :1]) + (x != x[:, :1]),
    "min": lambda x: jnp.min(jnp.minimum(x, 0.3), axis=2),
    "neg_sqrt": lambda x: -jnp.sqrt(jnp.abs(x)),
    "erf": lax.erf,
    "integer_pow": lambda x: x**3 + x**2,
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x) + 0.1),
    "slice": lambda x: lax.slice_in_dim(jnp.swapaxes(x, 0, 1), 0, 5, 2, axis=0)[1],
    "last": lambda x: x[:, -1, 1:3],
    "pairs": lambda x: x[:, np.array([0, 3, 2]), np.array([1, 1, 3])],
    "fields": lambda x: x[:, np.array([4, 0])],
    "squeeze": lambda x: jnp.squeeze(jnp.sum(x, axis=1, keepdims=True), 1),
    "stack": lambda x: jnp.stack([x[:, 0], x[:, 1]], axis=2),
    "split": lambda x: jnp.concatenate(jnp.split(x, [1, 3], axis=1)[::-1], axis=1),
    "batched_dot": lambda x: jnp.einsum("bfd,bgd->bfg", x, x),
    "broadcast_batch": lambda x: jnp.broadcast_to(jnp.arange(3.0)[None], (x.shape[0], 3)) + x[:, 0, :1],
    "remat": jax.checkpoint(lambda y: jnp.tanh(y) + 1.0),
    "custom_vjp": _doubled,
    "iota": lambda x: x * jnp.arange(4.0)[None, None, :],
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_jax(name: str) -> None:
    table = np.random.default_rng(1).standard_normal((NUM_IDS, 4)).astype(np.float32)
    model = translate(lambda weights, ids: OPERATIONS[name](cube(weights, ids)), {"t": table}, FIELDS)
    expected = np.asarray(OPERATIONS[name](cube({"t": table}, jnp.asarray(IDS))))
    np.testing.assert_allclose(run(model, IDS), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(model, IDS[:2]), expected[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("cumsum", lambda x: jnp.cumsum(x, axis=1)),
        ("broadcast_in_dim", lambda x: jnp.full((2 * x.shape[0],), jnp.sum(x))),
    ],
)
def test_what_has_no_translation_is_named(name: str, function: Callable) -> None:
    with pytest.raises(InputError, match=rf"The tower 'mine' uses JAX' operation '{name}'"):
        translate(lambda weights, ids: function(ids * weights["t"]), {"t": np.float32(1)}, FIELDS, "The tower 'mine'")
