"""The options of every command, with their help; `alt_jax.cli` reads them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alt_jax import console
from alt_jax.config import Config, Strategy
from alt_jax.serving.limits import Limits

# A config value that is true or false is given as such: a flag would be named after what the config file says.
Values = Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
Cluster = Annotated[
    str,
    tyro.conf.arg(
        help="The other hosts, on each of which the same command is started: none; auto, where JAX finds them (TPU "
        "pods, Slurm, Open MPI); or HOST:PORT,I/N: process I of N, from 0, the address that of process 0."
    ),
]
ClusterWait = Annotated[int, tyro.conf.arg(help="Seconds to wait for the other hosts.")]
Names = Literal["towers", "texts", "datasets", "protocols", "presets", "studies"]
LogFormat = Annotated[
    console.Format,
    tyro.conf.arg(
        help="What is said meanwhile: text, with a line of progress on a terminal; or json, one object a line for "
        "machines that collect logs, progress every ten seconds."
    ),
]
Where = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="data.dir",
        metavar="DIR",
        help="Folder or URL of the dataset of the run, if it is not where it was; of several runs, that of each.",
    ),
]


@dataclass(frozen=True)
class PrepareOptions:
    """Turns raw ratings or clicks into a prepared dataset.

    Example: alt-jax prepare configs/movielens_1m.py --data.raw ml-1m.zip
    """

    config: Values
    engine: Literal["local", "beam"] = "local"
    """This machine, or Apache Beam, for data larger than one machine; the dataset is the same. What follows `--` are
    Beam's own options: --engine beam -- --direct_num_workers 4 --direct_running_mode multi_processing"""
    runner: str = ""
    """Of Beam, e.g. FlinkRunner; empty: FnApiRunner, on this machine."""
    log_format: LogFormat = "text"


@dataclass(frozen=True)
class PretrainOptions:
    """Aligns the CTR tower and the text tower on the training part.

    Example: alt-jax pretrain configs/movielens_1m.py --run-dir runs/pretrain
    """

    config: Values
    run_dir: Path
    """Where the run is kept; started again with the same folder, a stopped run goes on."""
    init_from: str = "none"
    """Run folder of an earlier pretraining whose towers this one starts from, or none."""
    preset: str = ""
    """Values of a named preset (`alt-jax list presets`) in place of the config file's; other options override them."""
    cluster: Cluster = "none"
    cluster_wait: ClusterWait = 45
    log_format: LogFormat = "text"


@dataclass(frozen=True)
class FinetuneOptions:
    """Trains click prediction, stops on validation AUC and reads the test part once.

    Example: alt-jax finetune configs/demo.py --strategy joint --init-from runs/pre --run-dir runs/joint
    """

    config: Values
    strategy: Strategy
    """The CTR tower alone, the text tower alone, or both."""
    init_from: str
    """Run folder of a pretraining, or none: the baseline."""
    run_dir: Path
    """Where the run is kept; started again with the same folder, a stopped run goes on."""
    preset: str = ""
    """Values of a named preset (`alt-jax list presets`) in place of the config file's; other options override them."""
    cluster: Cluster = "none"
    cluster_wait: ClusterWait = 45
    log_format: LogFormat = "text"


@dataclass(frozen=True)
class EvaluateOptions:
    """Metrics of a finished finetuning run, or of the mean of several runs' probabilities.

    Example: alt-jax evaluate runs/joint --json
    """

    run_dir: tyro.conf.Positional[tuple[Path, ...]]
    split: Literal["train", "valid", "test"] = "test"
    json: bool = False
    """Print one JSON object."""
    cluster: Cluster = "none"
    cluster_wait: ClusterWait = 45
    data: Where = ()


@dataclass(frozen=True)
class PredictOptions:
    """Scores raw rows with a finetuning run or an export.

    A table with the columns that the model reads, the label aside.

    In that of a `sequence`: item ids, newest first, its separator between them.

    Example: alt-jax predict runs/joint rows.csv -o scores.parquet
    """

    model: tyro.conf.Positional[Path]
    rows: tyro.conf.Positional[Path]
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Parquet, or CSV by its name, with a column `score`."""
    data: Where = ()
    keep: str = ""
    """Columns of the rows that stand before the scores, e.g. user_id,item_id."""
    history: str = ""
    """A table like the one that the model was trained on (`dataset`: that very one): every row's history is made of the
    earlier rows of its user there."""


@dataclass(frozen=True)
class ExportOptions:
    """Writes a finetuning run as safetensors, StableHLO, ONNX, Hugging Face folder and model card.

    Example: alt-jax export runs/joint exported/joint
    """

    run_dir: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    data: Where = ()


@dataclass(frozen=True)
class ServeOptions:
    """Scores rows over HTTP with a finetuning run or an export, until SIGTERM or SIGINT.

    POST /score {"rows": [{column: value, …}, …]} gives {"scores": [0.42, …]}.

    GET /schema is the JSON Schema of a row, /healthz says whether all is compiled.

    GET /metrics is for Prometheus. It has neither TLS nor passwords.

    Example: alt-jax serve exported/joint --port 8000
    """

    model: tyro.conf.Positional[Path]
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """0: any that is free."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)
    data: Where = ()
    log_format: LogFormat = "text"


@dataclass(frozen=True)
class AblateOptions:
    """Runs every arm of a study with several seeds, and writes a table, JSON, CSV and a figure.

    Example: alt-jax ablate configs/movielens_100k.py --study losses --seeds 3 --run-dir runs/losses
    """

    config: Values
    study: str
    """A name from `alt-jax list studies`, or a JSON file {"arm": {"loss.mlm": 0}, …}; the first arm is the baseline."""
    run_dir: Path
    """Where everything is kept; started again, what is finished is not repeated."""
    seeds: int = 3
    """Finetunings of every arm."""
    pretrainings: int = 0
    """Pretrainings of every arm, each of which all its finetunings start from; 0: each finetuning has its own."""
    jobs: int = 1
    """Runs side by side, as processes."""
    task: str = "0/1"
    """i/N: only every N-th part of the study from the i-th on, for arrays of machines that share the folder."""
    arms: tuple[str, ...] = ()
    """Which arms; empty: all of the study."""
    strategies: tuple[Strategy, ...] = ()
    """Which finetuning strategies; empty: those of the study."""
    preset: str = ""
    """Values of a named preset (`alt-jax list presets`) in place of the config file's; other options and arms override
    them."""
    log_format: LogFormat = "text"


@dataclass(frozen=True)
class InspectOptions:
    """What is in a prepared dataset, a run or an export, on one screen.

    Some rows are shown too, with prompt, masks and predictions. A run may be going on there meanwhile.

    Example: alt-jax inspect runs/pretrain
    """

    folder: tyro.conf.Positional[str]
    """Of a prepared dataset (or its URL), a run or an export."""
    rows: int = 3
    """How many rows to show."""
    split: Literal["train", "valid", "test"] = "valid"
    """Whose first rows."""
    data: Where = ()


@dataclass(frozen=True)
class ReportOptions:
    """One HTML page about runs and studies, finished or not; it needs nothing else and works offline.

    Example: alt-jax report runs/pretrain runs/joint -o report.html
    """

    run_dir: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of pretrainings, of finetunings, and of studies."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",), metavar="PATH")] = None
    """The page; report.html in the first folder if none is given."""
    price: float | None = None
    """US dollars an hour of the machine that trained, from which follows what the runs cost."""
    data: Where = ()


@dataclass(frozen=True)
class ListOptions:
    """Names that configs may use, one a line.

    Example: alt-jax list towers
    """

    what: tyro.conf.Positional[Names]


@dataclass(frozen=True)
class DemoOptions:
    """The whole story on generated data, without a network: minutes on two cores.

    Example: alt-jax demo --dir demo
    """

    dir: Path = Path("demo")
    """Where data and runs are kept; started again, finished parts are not repeated."""
    seed: int = 0
