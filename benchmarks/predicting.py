"""`alt-jax predict` after its start-up: rows/s by part, and against the bare forward pass.

    python benchmarks/predicting.py DATASET --strategy ctr --rows 1000000
    python benchmarks/predicting.py DATASET --strategy plm --rows 20000

DATASET is a prepared folder; the model is of the sizes that it was prepared with, its weights are random. The raw rows
are rows of the training part, drawn with replacement and spelled out again as strings in a Parquet file, some of their
values replaced by ones that the dataset has not seen. `bare` is the jitted forward pass on value ids that lie on the
device, in the scorer's own batches; nothing is fetched before its end. What is compiled is compiled before it is timed;
`s the first time` says what that adds.
"""

import tempfile
import time
from pathlib import Path

import jax
import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alt_jax import bridge
from alt_jax.config import Config
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.sources import table
from alt_jax.evaluate import Probabilities
from alt_jax.models.alt import ALT
from alt_jax.scorer import Scorer
from alt_jax.sharding import make_mesh, replicate, split_rows
from alt_jax.tasks import Finetune


def raw_rows(dataset: Dataset, rows: int, unseen: float) -> pa.Table:
    """Strings, or lists of them, of drawn rows; a share of every column's values is new, a tenth of those distinct."""
    rng = np.random.default_rng(0)
    schema, strings = dataset.schema, np.array(dataset.vocabulary().value, object)
    drawn = np.asarray(dataset.train.values)[rng.integers(0, len(dataset.train.values), rows)]
    columns = {}
    for field, slots in zip(schema.fields, np.split(drawn, np.cumsum(schema.widths)[:-1], axis=1), strict=True):
        if slots.shape[1] == 1:
            column = strings[slots[:, 0]]
        else:
            column = np.array([field.separator.join(strings[row[row >= 0]]) for row in slots], object)
        new = np.flatnonzero(rng.random(rows) < unseen)
        number = rng.integers(0, max(1, len(new) // 10), len(new))
        column[new] = [f"{n}.25" if field.kind == "numeric" else f"new {field.column} {n}" for n in number]
        columns[field.column] = pa.array(column, pa.string())
    return pa.table(columns)


def timed(parts: dict[str, list[float]], name: str, work):
    """Notes the seconds of a call under a name; returns what it returns."""
    start = time.perf_counter()
    result = work()
    parts.setdefault(name, []).append(time.perf_counter() - start)
    return result


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--strategy", choices=("ctr", "plm", "joint"), default="ctr")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--unseen", type=float, default=0.01, help="share of every column's values")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a config value")
    arguments = parser.parse_args()
    dataset = Dataset.load(arguments.dataset)
    written = Config.from_json((arguments.dataset / "config.json").read_text(encoding="utf-8"), "config.json")
    config = written.override(dict(arguments.set))
    task = Finetune(ALT(config, dataset.schema, bridge.encoder_config(config.text, dataset.schema)), arguments.strategy)
    params = jax.device_get(jax.jit(task.init)(jax.random.key(0)))
    model = Scorer(task, params, Encoder.load(arguments.dataset))
    mesh = make_mesh()
    parts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "rows.parquet", Path(folder) / "scores.parquet"
        pq.write_table(raw_rows(dataset, arguments.rows, arguments.unseen), path)

        def read() -> pa.Table:
            return table.read(path, model.encoder.columns, encoded=True)

        def look_up(raw: pa.Table):
            return model.encoder.encode(raw, str(path), prompts=arguments.strategy != "ctr")

        def predict() -> pa.Table:
            raw = read()
            scores = pa.table({"score": pa.array(model.score(raw, str(path)))})
            pq.write_table(scores, output)
            return scores

        timed(parts, "first", predict)
        values, pieces = look_up(read())
        scorer = Probabilities(task, mesh, pieces)
        there = replicate(mesh, params)
        batches = [(split_rows(mesh, values[rows]), *size) for rows, *size in scorer.batches(values)]

        def bare() -> None:
            jax.block_until_ready([scorer.dispatch(there, *batch) for batch in batches])

        bare(), scorer(there, values)
        for _ in range(arguments.rounds):
            scores = timed(parts, "whole", predict)
            raw = timed(parts, "read", read)
            timed(parts, "look up", lambda raw=raw: look_up(raw))
            timed(parts, "score", lambda: scorer(there, values))
            timed(parts, "write", lambda scores=scores: pq.write_table(scores, output))
            timed(parts, "bare", bare)
    found = {name: float(np.median(taken)) for name, taken in parts.items()}
    lengths = [length for _, length, _ in batches]
    measure.show(
        "predict",
        {
            "strategy": arguments.strategy,
            "rows": arguments.rows,
            "lengths": {length: lengths.count(length) for length in sorted(set(lengths))},
            "s the first time": found["first"],
            **{f"s {name}": found[name] for name in ("whole", "read", "look up", "score", "write", "bare")},
            "rows/s whole": arguments.rows / found["whole"],
            "rows/s reading and looking up": arguments.rows / (found["read"] + found["look up"]),
            "rows/s bare": arguments.rows / found["bare"],
            "whole / bare": found["bare"] / found["whole"],
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
