"""What a prepared dataset holds, and whether something in it gives labels or the test part away."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from alt_jax import metrics
from alt_jax.data.dataset import Dataset
from alt_jax.data.protocols import PROTOCOLS, SPLITS, UNLABELLED
from alt_jax.evaluate import unseen
from alt_jax.schema import Schema

TOO_GOOD = 0.95  # AUC of one field alone above which it is suspected to know the label
REPEATED = 0.01  # share of test rows that training has as well above which they are suspected
_MOST = 10_000_000  # training rows that are looked at


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
      question: What was asked, and how it is decided.
      answer: What was found.
      suspected: Whether that is a leak, by this check.
    """

    question: str
    answer: str
    suspected: bool


def look(dataset: Dataset) -> tuple[list[Finding], dict[str, float]]:
    """Runs all checks.

    Returns:
      Findings, and the validation AUC of every field alone; NaN where validation holds one class only.

    Raises:
      InputError: A file of the dataset is not as it was prepared.
    """
    alone = field_aucs(dataset)
    return [
        *_shared(dataset),
        _repeated(dataset),
        _too_good(alone),
        *_overlap(dataset),
        *_protocol(dataset.schema),
    ], alone


def field_aucs(dataset: Dataset) -> dict[str, float]:
    """Validation AUC of each field alone: a row's score is the mean label of the training rows that have its value.

    A value's mean is taken as if it had been seen once more with the mean label of all; a row of several values has the
    mean of theirs, and one without any the mean of all.
    """
    train, valid = dataset.train, dataset.valid
    labels = np.asarray(train.labels[:_MOST])
    values, label = np.asarray(train.values[:_MOST])[labels != UNLABELLED], labels[labels != UNLABELLED].astype(float)
    ask, truth, prior = np.asarray(valid.values[:]), np.asarray(valid.labels[:]), label.mean()
    found, first, number = {}, 0, len(dataset.pieces.feature)
    for field in dataset.schema.fields:
        own = values[:, first : first + field.slots]
        there, labels = own >= 0, np.broadcast_to(label[:, None], own.shape)
        rows = np.bincount(own[there], minlength=number)
        mean = (np.bincount(own[there], labels[there], number) + prior) / (rows + 1)
        asked = ask[:, first : first + field.slots]
        real = asked >= 0
        total = np.where(real, mean[asked], 0).sum(axis=1)
        score = np.where(real.any(axis=1), total / np.maximum(real.sum(axis=1), 1), prior)
        found[field.name] = metrics.auc(truth, score)
        first += field.slots
    return found


def _shared(dataset: Dataset) -> list[Finding]:
    """Whether one row of the raw table is in two splits."""
    numbers = {name: np.asarray(dataset.split(name).rows[:_MOST]) for name in SPLITS}
    common = {
        f"{one} and {other}": len(np.intersect1d(numbers[one], numbers[other]))
        for n, one in enumerate(SPLITS)
        for other in SPLITS[n + 1 :]
    }
    found = ", ".join(f"{count:,} in {where}" for where, count in common.items() if count)
    return [
        Finding(
            f"Is a row of the raw table in two splits? By row numbers{_limit(dataset)}; suspected if any is.",
            found or "no",
            bool(found),
        )
    ]


def _repeated(dataset: Dataset) -> Finding:
    """Whether the test part repeats what training has seen."""
    train, test = dataset.train, dataset.test
    seen, asked = row_hashes(np.asarray(train.values[:_MOST])), row_hashes(np.asarray(test.values[:]))
    again = np.isin(asked, seen)
    label = np.uint64(0x9E3779B97F4A7C15)
    with_label = np.isin(
        asked + label * np.asarray(test.labels[:], np.uint64),
        seen + label * np.asarray(train.labels[:_MOST], np.uint64),
    )
    share = float(again.mean())
    return Finding(
        "Does the test part repeat rows of training, equal in every field? By a 64-bit hash of their values"
        f"{_limit(dataset)}; suspected above {REPEATED:.0%} of the test rows.",
        f"{int(again.sum()):,} of {len(again):,} test rows ({share:.2%}), {int(with_label.sum()):,} of them with the "
        "same label as well",
        share > REPEATED,
    )


def row_hashes(values: Int[np.ndarray, "N S"]) -> UInt64[np.ndarray, " N"]:
    """A 64-bit hash of every row: of different rows equal with a chance of about 2⁻⁶⁴ a pair."""
    state = np.zeros(len(values), np.uint64)
    for slot in range(values.shape[1]):
        state = (state ^ values[:, slot].astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(31)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(29)
    return state


def _too_good(alone: dict[str, float]) -> Finding:
    """Whether a field knows the label."""
    suspects = {name: auc for name, auc in alone.items() if auc > TOO_GOOD}
    defined = {name: auc for name, auc in alone.items() if not np.isnan(auc)}
    best = max(defined, key=lambda name: defined[name], default=None)
    answer = (
        "undefined (validation holds one class)" if best is None else f"no; the best is {best} with {alone[best]:.4f}"
    )
    if suspects:
        answer = ", ".join(f"{name} with {auc:.4f}" for name, auc in suspects.items())
    return Finding(
        "Does one field alone give the label away? By the validation AUC of the mean label that a value has in "
        f"training; suspected above {TOO_GOOD}.",
        answer,
        bool(suspects),
    )


def _overlap(dataset: Dataset) -> list[Finding]:
    """Test rows whose user and item training has seen, which a cold-start protocol must not have."""
    found = []
    protocol = PROTOCOLS.get(dataset.schema.protocol)
    for what in dataset.schema.entities:
        share = float(1 - unseen(dataset, "test", what).mean())
        cold = protocol is not None and protocol.order == f"{what}s"
        found.append(
            Finding(
                f"Has training seen the {what}s of the test part? Suspected where the protocol keeps new {what}s for "
                "it.",
                f"in {share:.1%} of the test rows",
                cold and share > 0,
            )
        )
    return found


def _protocol(schema: Schema) -> list[Finding]:
    """What the protocol itself lets through."""
    protocol = PROTOCOLS.get(schema.protocol)
    time = protocol is not None and protocol.order == "time"
    found = [
        Finding(
            "Does training come before validation and test in time? By the protocol; not suspected, since published "
            "protocols differ in it.",
            "yes"
            if time
            else "no: the order is not that of time, so that training may know what came after a test row",
            False,
        )
    ]
    if protocol is not None and protocol.aggregates == "all_time":
        answer = "yes: the protocol keeps averages and counts as published"
        found.append(
            Finding("Are there statistics taken over all rows, those of the test part included?", answer, True)
        )
    return found


def _limit(dataset: Dataset) -> str:
    rows = dataset.schema.splits["train"].rows
    return f" of the first {_MOST:,} training rows" if rows > _MOST else ""
