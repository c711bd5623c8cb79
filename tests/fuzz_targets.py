"""Every file that alt-jax reads, as a target for fuzzing: valid bytes, and what reads them.

`tests/test_fuzz.py` and `benchmarks/fuzz.py` share it. A target puts the bytes in the place of one file among others
that are valid and reads them as the commands do. It returns, or raises what the command line turns into one sentence.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import safetensors.numpy
from flax import traverse_util

sys.path += [str(Path(__file__).parent / "data"), str(Path(__file__).parent / "goldens")]

import bookcrossing_files
import goodreads_files
import movielens_files
import tiny_towers

from alt_jax import ablate, bridge, export, stages, studies
from alt_jax.checkpoint import Checkpoints, load_params
from alt_jax.cli import _STORAGE
from alt_jax.config import Config, CTRConfig, DataConfig, FieldConfig, TextConfig
from alt_jax.data import fields, protocols, sources
from alt_jax.data.dataset import Dataset, Encoder
from alt_jax.data.prepare import prepare
from alt_jax.data.prepared_config import check_prepared
from alt_jax.data.sources import table
from alt_jax.data.sources.raw import RawData, as_text
from alt_jax.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from alt_jax.errors import InputError
from alt_jax.models import huggingface
from alt_jax.models.text import text_tower
from alt_jax.run import Origin, Run


class Target(NamedTuple):
    """What may be given to a reader.

    Attributes:
      seeds: Valid files.
      read: Reads one, valid or not.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[bytes], None]


def refused(target: Target, data: bytes) -> bool:
    """Reads; whether the reader refused, in the way that the command line turns into exit code 2.

    Raises:
      Exception: Whatever else the reader raises, which is what fuzzing looks for.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            target.read(data)
    except InputError as error:
        message = str(error)
        assert message.strip(), "a sentence is empty"
        assert len(message) < 5000, "a sentence is as long as what it is about"
        return True
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        return True
    return False


# --- The targets ---

_FIELDS = (
    FieldConfig("user", "User"),
    FieldConfig("item", "Item"),
    FieldConfig("price", "Price", kind="numeric", bins=4),
    FieldConfig("tags", "Tags", kind="multi", slots=3),
    FieldConfig("headline", "Headline", kind="text"),
    FieldConfig("agent", "Agent", hash_buckets=5),
)


def made(folder: Path) -> dict[str, Target]:
    """All targets, by name. They write into `folder`."""
    rows = _rows()
    pq.write_table(rows, folder / "rows.parquet")
    config = _config(folder, "rows.parquet")
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = prepare(config)
    return {
        **_tables(folder, rows),
        **_movielens(folder),
        **_bookcrossing(folder),
        **_goodreads(folder),
        **_prepared(folder, config, rows),
        **_studies(folder, config),
        **_runs(folder, config, dataset),
        **_models(folder, dataset),
    }


def _rows() -> pa.Table:
    rng = np.random.default_rng(0)
    count = 60
    tags = ("red", "blue", "green", "old")
    return pa.table(
        {
            "user": [f"u{n}" for n in rng.integers(0, 8, count)],
            "item": rng.integers(0, 6, count),
            "price": rng.normal(size=count).round(2),
            "tags": [[tags[i] for i in rng.permutation(4)[: n % 4]] for n in range(count)],
            "headline": [f"News {n} of day {n % 7}" for n in range(count)],
            "agent": [None if n % 9 == 0 else f"Mozilla/{n}" for n in range(count)],
            "label": (np.arange(count) % 3 == 0).astype(np.int64),
            "time": pa.array(rng.permutation(count) * 1_000_000, pa.timestamp("us")),
        }
    )


def _config(folder: Path, raw: str) -> Config:
    data = DataConfig(
        raw=str(folder / raw),
        dir=str(folder / "prepared"),
        fields=_FIELDS,
        positive_above=0.5,
        timestamp="time",
        user="user",
        item="item",
        linked=(("user", "agent"),),
    )
    text = TextConfig(vocab_size=90, hidden=8, layers=1, heads=2, intermediate=8, max_length=64)
    return Config(data=data, text=text, ctr=CTRConfig(tower="lr", dim=2))


def _read_rows(data: DataConfig) -> None:
    """What `prepare` does with raw data before it writes anything."""
    raw = sources.load(data)
    _spell(raw)
    protocols.apply(protocols.get(data.protocol), raw, data.positive_above)


def _spell(raw: RawData) -> None:
    for field in raw.fields:
        spelled = fields.spell(raw.table[field.column], field, raw.origin)
        if field.kind == "numeric":
            fields.parse_numbers(spelled.strings, field.column, raw.origin)
    for column in (raw.user, raw.item):
        if column is not None:
            as_text(raw.table[column], column, raw.origin)


def _tables(folder: Path, rows: pa.Table) -> dict[str, Target]:
    def reader(name: str) -> Callable[[bytes], None]:
        config = _config(folder, f"fuzzed/{name}").data

        def read(data: bytes) -> None:
            _put(Path(config.raw), data)
            _read_rows(dataclasses.replace(config, protocol="time"))
            part = table.read(Path(config.raw), [field.column for field in _FIELDS], encoded=True)
            for field in _FIELDS:
                fields.spell(part[field.column], field, name)

        return read

    joined = rows.set_column(3, "tags", [["|".join(tags) for tags in rows["tags"].to_pylist()]])
    csv = io.BytesIO()
    pyarrow.csv.write_csv(joined, csv)
    tsv = csv.getvalue().replace(b",", b"\t")
    small = rows.slice(0, 20)
    parquet = tuple(
        _parquet(part, **options)
        for part, options in (
            (small, {"compression": "none"}),
            (small, {"compression": "snappy", "use_dictionary": False, "data_page_version": "2.0"}),
            (rows, {"compression": "zstd", "row_group_size": 20}),
            (small, {"compression": "gzip", "write_page_index": True}),
        )
    )
    return {
        "table.csv": Target((csv.getvalue(),), reader("rows.csv")),
        "table.tsv": Target((tsv,), reader("rows.tsv")),
        "table.parquet": Target(parquet, reader("fuzzed.parquet")),
    }


def _parquet(rows: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, **options)
    return buffer.getvalue()


def _among(folder: Path, files: dict[str, bytes], name: str, config: DataConfig) -> Callable[[bytes], None]:
    """Reads a source's folder with one file replaced."""

    def read(data: bytes) -> None:
        for other, content in files.items():
            _put(folder / other, content if other != name else data)
        _read_rows(config)

    return read


def _original(folder: Path, source: str, files: dict[str, bytes], zipped: bytes | None) -> dict[str, Target]:
    """A target for every file of an original, and one for its zip."""
    config = DataConfig(source=source, raw=str(folder / source))
    found = {
        f"{source}/{name}": Target((content,), _among(folder / source, files, name, config))
        for name, content in files.items()
    }
    if zipped is not None:
        path = folder / f"{source}.zip"

        def read(data: bytes) -> None:
            _put(path, data)
            _read_rows(dataclasses.replace(config, raw=str(path)))

        found[f"{source}.zip"] = Target((zipped,), read)
    return found


def _movielens(folder: Path) -> dict[str, Target]:
    found: dict[str, Target] = {}
    for source in movielens_files.FOLDERS:
        raw = movielens_files.make_raw(source)
        zipped = raw.zip(folder / "made.zip").read_bytes()
        found |= _original(folder, source, raw.files, zipped)
    return found


def _bookcrossing(folder: Path) -> dict[str, Target]:
    raw = bookcrossing_files.make_raw()
    return _original(folder, "bookcrossing", raw.files, raw.zip(folder / "made.zip").read_bytes())


def _goodreads(folder: Path) -> dict[str, Target]:
    raw = goodreads_files.make_raw()
    files = {name: _zipped(name, text.encode()) for name, text in raw.text.items()}
    found = _original(folder, "goodreads", files, None)
    for name, text in raw.text.items():
        if name.endswith(".gz"):  # what is inside is fuzzed as well, since few changes leave a gzip file whole
            read = found[f"goodreads/{name}"].read
            found[f"goodreads/{name.removesuffix('.gz')}"] = Target(
                (text.encode(),), lambda data, name=name, read=read: read(_zipped(name, data))
            )
    return found


def _zipped(name: str, content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0) if name.endswith(".gz") else content


def _prepared(folder: Path, config: Config, rows: pa.Table) -> dict[str, Target]:
    """The files of a prepared dataset; hashes of shards in its schema are made to fit, so that they hide nothing."""
    origin = Path(config.data.dir)
    files = {path.relative_to(origin).as_posix(): path.read_bytes() for path in origin.rglob("*") if path.is_file()}
    copy = folder / "fuzzed" / "prepared"
    changed = config.override({"data.dir": str(copy)})
    unseen = rows.slice(0, 3).set_column(0, "user", [["u1", "somebody new", "Größe"]])

    def read_among(name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            for other, content in files.items():
                _put(copy / other, data if other == name else content)
            if name.endswith(".npy"):
                split, part = name.split("/")
                schema = json.loads(files["schema.json"])
                schema["splits"][split]["shards"][0]["sha256"][part.split("-")[0]] = hashlib.sha256(data).hexdigest()
                _put(copy / "schema.json", json.dumps(schema).encode())
            dataset = Dataset.load(copy)
            check_prepared(changed)
            for split in (dataset.train, dataset.valid, dataset.test):
                split.open()
            dataset.feature_counts()
            dataset.prompt_tokens()
            assert dataset.schema.fingerprint
            assert dataset.schema.groups
            assert dataset.schema.field_of_slot
            bridge.encoder_config(config.text, dataset.schema)
            encoder = Encoder.load(copy)
            encoder.encode(unseen)

        return read

    # The rows of the validation part stand for those of the others.
    wanted = [name for name in files if not name.startswith(("train/", "test/"))]
    return {f"prepared/{name}": Target((files[name],), read_among(name)) for name in wanted}


def _studies(folder: Path, config: Config) -> dict[str, Target]:
    seed = {
        "base": {},
        "no mlm": {"loss.mlm": 0, "strategies": ["ctr", "plm"]},
        "scratch": {"pretrain": False, "finetune.ctr.l2": 0.1, "data.min_count": 2},
        "paper": {"preset": "paper", "mask.unit": "group"},
    }
    path = folder / "study.json"

    def read(data: bytes) -> None:
        _put(path, data)
        ablate.plan(config, studies.get(str(path)), 1, folder / "study")

    study = studies.Study((studies.Arm("base", pretrain=False),), ("ctr",))
    scores = {"test": {"auc": 0.5, "logloss": 0.7}, "valid": {"auc": 0.5}}

    def read_result(data: bytes) -> None:
        _put(folder / "study" / "ctr" / "base" / "seed-0" / "result.json", data)
        ablate.table(study, 1, folder / "study")

    def read_config(data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return
        Config.from_json(text, "config.json")

    return {
        "study/result.json": Target((json.dumps(scores).encode(),), read_result),
        "study.json": Target((json.dumps(seed).encode(),), read),
        "config.json": Target((config.to_json().encode(), Config().to_json().encode()), read_config),
    }


def _runs(folder: Path, config: Config, dataset: Dataset) -> dict[str, Target]:
    place = folder / "run"
    encoder = bridge.encoder_config(config.text, dataset.schema)
    run = Run(place, Origin("finetune", "joint"), config, dataset.schema, encoder).start()
    result = {"best_step": 3, "valid": {"auc": 0.5, "gauc": None, "rows": 4}, "test": {"auc": 0.5, "rows": 4}}
    metrics = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 7))
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    files |= {"result.json": json.dumps(result).encode(), "metrics.jsonl": metrics.encode()}

    def read_among(name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            for other, content in files.items():
                _put(place / other, data if other == name else content)
            found = Run.load(place)
            found.rewind(3)
            if (result := found.result()) is not None and found.origin.strategy is not None:
                stages.format_report(result["test"], "test")

        return read

    task = stages.finetune_task(run)
    shapes = traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0)), sep="/")
    params = safetensors.numpy.save({name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()})

    def read_params(data: bytes) -> None:
        _put(folder / export.PARAMS, data)
        export.read_params(folder / export.PARAMS, task)

    return {
        **{f"run/{name}": Target((content,), read_among(name)) for name, content in files.items()},
        export.PARAMS: Target((params,), read_params),
        **_checkpoint(folder / "checkpointed"),
    }


def _checkpoint(folder: Path) -> dict[str, Target]:
    """What Orbax wrote; checksums are made to fit, so that they hide nothing."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"w": np.arange(6.0)}, {"m": np.zeros(3)}, {"step": 1}, 0.5)
    step = folder / "checkpoints" / "1"
    sums = step / "checksums.json"
    whole = {name: (step / name).read_bytes() for name in json.loads(sums.read_text())}

    def read_sums(data: bytes) -> None:
        _put(sums, data)
        load_params(folder)

    def read_item(name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            hashes = {other: hashlib.sha256(content).hexdigest() for other, content in whole.items()}
            _put(sums, json.dumps(hashes | {name: hashlib.sha256(data).hexdigest()}).encode())
            _put(step / name, data)
            try:
                load_params(folder)
            finally:
                _put(step / name, whole[name])

        return read

    item = "params/_METADATA"
    return {
        "checkpoint/checksums.json": Target((sums.read_bytes(),), read_sums),
        f"checkpoint/{item}": Target((whole[item],), read_item(item)),
    }


def _models(folder: Path, dataset: Dataset) -> dict[str, Target]:
    """A Hugging Face folder: config, weights, index, tokenizer."""
    tokenizer = Encoder.load(dataset.folder).tokenizer
    encoder = bridge.encoder_config(_config(folder, "rows.parquet").text, dataset.schema)
    tree = jax.eval_shape(
        text_tower(encoder).init, jax.random.key(0), np.zeros((1, 1), np.int32), np.ones((1, 1), bool)
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), tree["params"])
    place = folder / "model"
    huggingface.save(place, encoder, params, tokenizer)
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    weights = files[huggingface._WEIGHTS]
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    files["vocab.txt"] = "".join(token + "\n" for token in vocabulary).encode()

    def read_weights(name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            for other in (huggingface._CONFIG, huggingface._WEIGHTS, huggingface._INDEX):
                (place / other).unlink(missing_ok=True)
            _put(place / huggingface._CONFIG, files[huggingface._CONFIG])
            _put(place / ("shard.safetensors" if name == huggingface._INDEX else huggingface._WEIGHTS), weights)
            _put(place / name, data)
            huggingface.load_weights(place, huggingface.load_config(place))

        return read

    def read_tokenizer(name: str, others: tuple[str, ...]) -> Callable[[bytes], None]:
        alone = folder / "tokenizers" / name.replace(".", "_")

        def read(data: bytes) -> None:
            for other in others:
                _put(alone / other, files[other])
            _put(alone / name, data)
            found = load_tokenizer(str(alone))
            tokenizer_fingerprint(found)

        return read

    def read_config(data: bytes) -> None:
        _put(place / huggingface._CONFIG, data)
        text_tower(huggingface.load_config(place))

    configs = tuple(json.dumps(values).encode() for values in tiny_towers.CONFIGS.values())
    index = {"metadata": {}, "weight_map": dict.fromkeys(safetensors.numpy.load(weights), "shard.safetensors")}
    fast, slow = ("tokenizer_config.json", "tokenizer.json"), ("tokenizer_config.json", "vocab.txt")
    return {
        "model/families/config.json": Target(configs, read_config),
        "model/config.json": Target((files["config.json"],), read_weights("config.json")),
        "model/model.safetensors": Target((weights,), read_weights(huggingface._WEIGHTS)),
        "model/model.safetensors.index.json": Target((json.dumps(index).encode(),), read_weights(huggingface._INDEX)),
        "tokenizer/tokenizer.json": Target((files["tokenizer.json"],), read_tokenizer("tokenizer.json", fast)),
        "tokenizer/tokenizer_config.json": Target(
            (files["tokenizer_config.json"],), read_tokenizer("tokenizer_config.json", fast)
        ),
        "tokenizer/vocab.txt": Target((files["vocab.txt"],), read_tokenizer("vocab.txt", slow)),
    }


def _put(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# --- The mutations ---

# What often goes wrong, in a text or in a header.
_WORDS = (
    *(b"", b"\0", b"\xff", b"\n", b"\r\n", b'"', b"\\", b";", b"::", b"|", b"\t", b",", b"-1", b"0", b"NaN", b"1e999"),
    *(b"9" * 30, b"9" * 5000, b"null", b"{}", b"[]", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"../", b"\xc2\xb2"),
    *(
        number.to_bytes(size, "little")
        for size in (1, 2, 4, 8)
        for number in (0, 1, 2 ** (8 * size - 1), 256**size - 1)
    ),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**18, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x"),
    *("x" * 3000, "\ud800", "\0", "../x", [], {}, [[]], [None], {"": None}, [1, "a"], {"step": "x"}, [0] * 50),
)


def mutated(seeds: tuple[bytes, ...], rng: random.Random) -> bytes:
    """A seed with one to six changes of its bytes, or, where it is JSON, of its structure."""
    data = rng.choice(seeds)
    structure = rng.random() < 0.6
    for _ in range(rng.randint(1, 6)):
        changed = _json_mutated(data, rng) if structure else None
        if changed is None:
            changed = _bytes_mutated(data, rng.choice(seeds), rng)
        data = changed
    return data


def _bytes_mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    low, high = sorted(rng.randint(0, len(data)) for _ in range(2))
    at = rng.randint(0, len(other))
    near = min(high, low + rng.randint(0, 8))
    kind = rng.randrange(7)
    if kind == 0 and data:  # a flipped bit
        low = min(low, len(data) - 1)
        return data[:low] + bytes([data[low] ^ (1 << rng.randrange(8))]) + data[low + 1 :]
    if kind == 1:  # cut short
        return data[:high]
    if kind == 2:  # a part left out
        return data[:low] + data[near:]
    if kind == 3:  # a part twice
        return data[:high] + data[low:high] + data[high:]
    if kind == 4:  # spliced
        return data[:low] + other[at:]
    word = rng.choice(_WORDS)
    return data[:low] + word + data[low + (len(word) if kind == 5 else 0) :]


def _json_mutated(data: bytes, rng: random.Random) -> bytes | None:
    """JSON with another value, or with a key too few, too many or twice; None if it is no JSON."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    head, body, tail = b"", data, b""
    start = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and start <= len(data):  # the header of a safetensors file
        body, tail = data[8:start], data[start:]
    elif len(lines) > 1 and lines[0].startswith(b"{") and lines[0].endswith(b"}"):  # one object a line
        head, body, tail = b"".join(line + b"\n" for line in lines[:at]), lines[at], b"\n" + b"\n".join(lines[at + 1 :])
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return None
    places = list(_places(tree))
    if not places:
        return None
    inside, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(["x", "__class__", "version", "auto_map"])] = rng.choice(_VALUES)
    elif kind == 2:
        other, name = rng.choice(places)
        inside[key] = json.loads(json.dumps(other[name]))  # a value from elsewhere
    else:
        inside[key] = rng.choice(_VALUES)
    with _long_numbers():
        text = json.dumps(tree)
    if kind == 5:  # a key twice, or nested deeply
        text = text.replace("{", '{"x": 1, "x": ' + "[" * 3000 + "]" * 3000 + ", ", 1) if rng.random() < 0.3 else text
        text = text.replace(": ", ': 1, "twice": ', 1)
    changed = text.encode("utf-8", "surrogatepass")
    if start <= len(data) and data[8:9] == b"{":
        size = rng.choice([len(changed)] * 8 + [0, 1, 2**31, 2**60, 2**64 - 1])
        head = size.to_bytes(8, "little")
    return head + changed + tail


@contextlib.contextmanager
def _long_numbers() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree of JSON, as what holds it and its key."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def bomb(name: str, size: int) -> bytes:
    """A zip file of a few kB whose only member holds so many zeros."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as out,
    ):
        for _ in range(size >> 20):
            out.write(bytes(1 << 20))
    return buffer.getvalue()
