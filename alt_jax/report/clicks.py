"""What a finished finetuning says about the test part, row by row."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from alt_jax import metrics, sharding_rules
from alt_jax.data.dataset import Dataset
from alt_jax.data.prompt import Pieces, feature_ids
from alt_jax.evaluate import Probabilities
from alt_jax.report import measures
from alt_jax.report.measures import Bin, Calibration, Curve
from alt_jax.sharding import make_mesh, place
from alt_jax.stages import Trained
from alt_jax.tasks import Finetune, Params, row_numbers, row_prompts, text_length

_MOST = 16_384  # validation rows that mixtures are tried on
_GATED = 1024  # rows whose own α is looked at
# Wide enough for what a free α was seen to become.
_ALPHAS = np.linspace(-0.5, 1.5, 81)


@dataclass(frozen=True)
class Fused:
    """How a joint run mixes its two logits, α · logit_c + (1 − α) · logit_t.

    Attributes:
      kind: Of the fusion.
      alpha: α; of `gated` its mean over validation rows.
      spread: Of `gated`, the 5 % and 95 % quantiles of α.
      rows: Validation rows that `mixtures` was computed on.
      mixtures: Their AUC over α, were it the same for all rows.
      mixed: Their AUC as the model mixes.
    """

    kind: str
    alpha: float
    spread: tuple[float, float] | None
    rows: int
    mixtures: Curve
    mixed: float


@dataclass(frozen=True)
class Clicks:
    """The test part of a finetuning.

    Attributes:
      auc: On all rows; NaN where there is one class only.
      rows: How many.
      roc: The curve, or None where there is one class only.
      calibration: In 15 bins.
      frequency: AUC by how often training saw the `user` and the `item`.
      fused: Of a joint run.
    """

    auc: float
    rows: int
    roc: Curve | None
    calibration: Calibration
    frequency: dict[str, list[Bin]]
    fused: Fused | None


def look(trained: Trained, dataset: Dataset) -> Clicks:
    """Scores the test part, and of a joint run some validation rows with each of its towers.

    Raises:
      InputError: A file of the dataset is not as it was prepared, or the devices do not fit the run.
    """
    mesh, rules = make_mesh(), sharding_rules.rules(trained.run.config)
    sharding_rules.check_rules(mesh, rules)
    params = place(mesh, trained.params, rules)
    rows, schema = dataset.test, dataset.schema
    label = np.asarray(rows.labels)
    probability = Probabilities(trained.task, mesh, dataset.pieces)(params, rows.values)
    counts = dataset.vocabulary().count
    return Clicks(
        metrics.auc(label, probability),
        len(label),
        measures.roc(label, probability),
        measures.calibration(label, probability),
        {
            what: measures.by_frequency(label, probability, counts[np.asarray(rows.values[:, schema.slot(field)])])
            for what, field in schema.entities.items()
        },
        _fused(trained, dataset, params, mesh) if trained.task.strategy == "joint" else None,
    )


def _fused(trained: Trained, dataset: Dataset, params: Params, mesh: jax.sharding.Mesh) -> Fused:
    """α, and what other α would have come to on validation rows, of which nothing is chosen here."""
    model, rows = trained.task.model, dataset.valid
    some = np.linspace(0, len(rows.labels) - 1, min(_MOST, len(rows.labels))).astype(int)
    values, label = np.asarray(rows.values[some]), np.asarray(rows.labels[some])
    ctr, text, both = (
        _logits(Probabilities(Finetune(model, strategy), mesh, dataset.pieces)(params, values))
        for strategy in ("ctr", "plm", "joint")
    )
    kind = trained.run.config.finetune.joint.fusion
    alpha, spread = 0.5, None
    learned = trained.params.get("fusion", {})
    if kind == "free":
        alpha = float(learned["alpha"])
    elif kind == "sigmoid":
        alpha = float(expit(learned["logit"]))
    elif kind == "gated":
        own = _gates(trained, dataset, values[:_GATED])
        alpha, spread = float(own.mean()), (float(np.quantile(own, 0.05)), float(np.quantile(own, 0.95)))
    mixtures = measures.mixtures(label, ctr, text, _ALPHAS)
    return Fused(kind, alpha, spread, len(some), mixtures, metrics.auc(label, both))


def _logits(probability: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    p = np.clip(probability, 1e-15, 1 - 1e-15)  # beyond that a float64 has no logit to tell
    return np.log(p) - np.log1p(-p)


def _gates(trained: Trained, dataset: Dataset, values: Int[np.ndarray, "N S"]) -> Float[np.ndarray, " N"]:
    """α of every row, as the gate itself gives it."""
    model, length = trained.task.model, text_length(trained.run.schema.text.length)

    @jax.jit
    def gate(params: Params, pieces: Pieces, values: jax.Array) -> jax.Array:
        prompt = row_prompts(model, pieces, values, length)
        inputs = feature_ids(pieces, values), prompt.tokens, prompt.mask, row_numbers(model, pieces, values)
        _, seen = model.apply(
            {"params": params},
            "joint",
            *inputs,
            method="score",
            capture_intermediates=lambda module, _: module.path == ("fusion", "gate"),  # towers have gates, too
            mutable=["intermediates"],
        )
        (logit,) = jax.tree.leaves(seen)
        return jax.nn.sigmoid(logit[:, 0])

    return np.asarray(gate(trained.params, dataset.pieces, values), np.float64)
