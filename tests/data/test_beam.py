"""The Beam engine against that of one machine: the same files, byte for byte, and the same sentences."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from goodreads_files import make_raw
from test_rows import contents
from tiny_runs import config_file

pytest.importorskip("apache_beam")

from alt_jax import cli
from alt_jax.config import Config, DataConfig, FieldConfig, TextConfig
from alt_jax.data import beam, prepare, workers
from alt_jax.errors import InputError

ROWS = 230
FIELDS = (
    FieldConfig("user"),
    FieldConfig("item", max_ids=9),
    FieldConfig("session", hash_buckets=13),
    FieldConfig("price", kind="numeric", bins=4),
    FieldConfig("tags", kind="multi", slots=3, hash_buckets=5),
    FieldConfig("words", kind="multi", slots=4, max_ids=2),
    FieldConfig("story", kind="text"),
    FieldConfig("before", kind="sequence", of="item", spelled="story", slots=2, outcome="any"),
)
BEFORE = FieldConfig("ever", kind="sequence", of="item", slots=3, past="all", outcome="negative")
TWO_PROCESSES = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


def clicks() -> pa.Table:
    """A click log of all kinds of columns, with nulls and ties, in no order of time; ratings of 1 to 5."""
    rng = np.random.default_rng(3)
    items = np.minimum(rng.geometric(0.08, ROWS), 30)
    lists = [sorted({f"w{w}" for w in rng.integers(0, 4, n)}) for n in rng.integers(0, 4, ROWS)]
    return pa.table(
        {
            "user": rng.integers(0, 17, ROWS),
            "item": [f"i{n}" for n in items],
            "session": [None if n == 3 else f"s{n}" for n in rng.integers(0, 90, ROWS)],
            "price": pa.array([None if n == 7 else n / 4 for n in rng.integers(0, 30, ROWS)]),
            "tags": ["|".join(f"t{t}" for t in rng.integers(0, 9, rng.integers(0, 5))) for _ in range(ROWS)],
            "words": pa.array(lists, pa.list_(pa.string())),
            "story": [f"once, in {2000 - n}" for n in items],
            "when": rng.integers(0, 60, ROWS),
            "label": rng.integers(1, 6, ROWS).astype(float),
        }
    )


def write_parts(table: pa.Table, folder: Path) -> Path:
    """As Parquet in three parts of several row groups, one of which has floats, and a gap, for the others' integers."""
    folder.mkdir()
    for number, (low, high) in enumerate(((0, 80), (80, 81), (81, ROWS))):
        part = table.slice(low, high - low)
        if number == 1:
            part = part.set_column(0, "user", pa.array([None], pa.float64()))
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=33)
    return folder


def config(raw: Path, folder: Path, protocol: str = "random", **changes: object) -> Config:
    values = {"fields": FIELDS, "user": "user", "item": "item", "timestamp": "when", "shard_rows": 50, "min_count": 2}
    values["positive_above"] = 3.0
    data = DataConfig(raw=str(raw), dir=str(folder), protocol=protocol, **{**values, **changes})
    return Config(data=data, text=TextConfig(vocab_size=200, max_length=128))


def with_beam(config: Config, *arguments: str) -> None:
    prepare.prepare(config, beam.engine("", arguments))


def check_same(raw: Path, folder: Path, *arguments: str, **changes: object) -> None:
    prepare.prepare(config(raw, folder / "one", **changes))
    with_beam(config(raw, folder / "many", **changes), *arguments)
    assert contents(folder / "many") == contents(folder / "one")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts and chunks of what has few rows."""
    monkeypatch.setattr(beam, "_PART", 100)
    monkeypatch.setattr(beam, "_CHUNK", 70)


@pytest.mark.parametrize("protocol", ["random", pytest.param("cold_items", marks=pytest.mark.slow), "cold_users"])
def test_parquet_in_parts(tmp_path: Path, protocol: str):
    fields = FIELDS if protocol != "cold_users" else FIELDS[:-1]  # whose histories have no user out of training
    check_same(write_parts(clicks(), tmp_path / "parts"), tmp_path, protocol=protocol, fields=fields)


@pytest.mark.parametrize(
    "protocol", ["time", *(pytest.param(name, marks=pytest.mark.slow) for name in ("time_drop3", "time_skip5"))]
)
def test_histories_of_all_splits(tmp_path: Path, protocol: str):
    check_same(write_parts(clicks(), tmp_path / "parts"), tmp_path, protocol=protocol, fields=(*FIELDS, BEFORE))


def test_rows_without_a_label(tmp_path: Path):
    raw = write_parts(clicks(), tmp_path / "parts")
    more = clicks().drop_columns(["label"]).slice(5, 90)
    late = pa.table({**more.slice(0, 1).to_pydict(), "item": ["only here"], "when": [99]}).cast(more.schema)
    pq.write_table(pa.concat_tables([more, late]), tmp_path / "more.parquet", row_group_size=40)
    check_same(raw, tmp_path, protocol="time", fields=(*FIELDS, BEFORE), unlabelled=str(tmp_path / "more.parquet"))


def test_a_table_that_is_no_parquet_is_cut_into_chunks(tmp_path: Path):
    table = clicks().drop_columns(["words"])
    pa.csv.write_csv(table, tmp_path / "rows.csv")
    fields = tuple(field for field in FIELDS if field.column != "words")
    check_same(tmp_path / "rows.csv", tmp_path, fields=fields, protocol="time")


def test_averages_are_taken_again_before_rows_are_cut(tmp_path: Path):
    raw = make_raw().folder(tmp_path / "goodreads")
    changes = {"source": "goodreads", "fields": (), "user": None, "item": None, "timestamp": None, "min_count": 1}
    check_same(raw, tmp_path, protocol="random_drop0", **changes)


@pytest.mark.slow
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which share nothing with this one but the folder."""
    check_same(write_parts(clicks(), tmp_path / "parts"), tmp_path, *TWO_PROCESSES)
    assert {entry.name for entry in tmp_path.iterdir()} == {"parts", "one", "many"}


@pytest.mark.parametrize("shared", ["{}/shared", "memory://shared/"])
def test_what_is_shared_lies_where_beam_keeps_its_own(tmp_path: Path, shared: str, monkeypatch: pytest.MonkeyPatch):
    shared = shared.format(tmp_path)
    if "://" in shared:  # such workers need not see the raw files
        monkeypatch.setattr(workers, "read_group", None)
    check_same(write_parts(clicks(), tmp_path / "parts"), tmp_path, "--temp_location", shared, protocol="time")
    files, root = fsspec.url_to_fs(shared)
    assert not files.find(root)


def damaged(folder: Path) -> None:
    """The last row group cannot be read."""
    path = folder / "part-2.parquet"
    content = bytearray(path.read_bytes())
    at = pq.ParquetFile(path).metadata.row_group(4).column(1).data_page_offset
    content[at : at + 40] = bytes(40)
    path.write_bytes(content)


def of_another_type(folder: Path) -> None:
    path = folder / "part-2.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "user", pa.array([[f"u{n}"] for n in range(len(table))])), path)


def structs(folder: Path) -> None:
    for path in folder.iterdir():
        table = pq.read_table(path)
        pq.write_table(table.set_column(1, "item", pa.array([{"id": "i"}] * len(table))), path)


def no_number(folder: Path) -> None:
    for path in folder.iterdir():
        table = pq.read_table(path)
        price = ["cheap" if path.name == "part-1.parquet" else "1"] * len(table)
        pq.write_table(table.set_column(3, "price", pa.array(price)), path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged, "part-2.parquet cannot be read as Parquet"),
        (of_another_type, "Column 'user' holds lists in .*part-2.parquet and single values in"),
        (structs, "Column 'item' of .*parts holds struct<id: string>, which has no plain spelling"),
        (no_number, "Numeric field 'price' of .*parts holds 'cheap', which is not a finite number"),
    ],
)
def test_a_worker_says_what_one_machine_says(tmp_path: Path, damage: Callable[[Path], None], said: str):
    folder = write_parts(clicks(), tmp_path / "parts")
    damage(folder)
    with pytest.raises(InputError, match=said) as one:
        prepare.prepare(config(folder, tmp_path / "out"))
    with pytest.raises(InputError, match=said) as many:
        with_beam(config(folder, tmp_path / "out"))
    assert str(many.value) == str(one.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"parts"}


def test_what_breaks_off_leaves_the_dataset_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = write_parts(clicks(), tmp_path / "parts")
    with_beam(config(parts, tmp_path / "out"))
    before = contents(tmp_path / "out")
    monkeypatch.setattr(workers, "write_shard", lambda element, job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        with_beam(config(parts, tmp_path / "out", "cold_items"), "--temp_location", str(tmp_path / "shared"))
    assert contents(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ZeroDivisionError):
        with_beam(config(parts, tmp_path / "out"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"parts", "shared"}
    assert not list((tmp_path / "shared").iterdir())


def test_workers_that_write_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "store", lambda element, kind, job: None)
    with pytest.raises(InputError, match=r"FnApiRunner's workers left nothing in .*; name a folder or URL"):
        with_beam(config(write_parts(clicks(), tmp_path / "parts"), tmp_path / "out"))


def test_a_lost_or_doubled_row_is_noticed():
    piece = np.arange(3), np.array([5, 6, 7])
    assert [a.tolist() for a in workers._in_order([(np.array([3]), np.array([8])), piece], 4)] == [[5, 6, 7, 8]]
    for pieces in ([piece], [piece, piece]):
        with pytest.raises(RuntimeError, match="rows came for a shard of 4"):
            workers._in_order(pieces, 4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "bem"], "engine"),
        (["--runner", "FlinkRunner"], "--runner is for --engine beam; add that."),
        (["--", "--direct_num_workers", "2"], "--direct_num_workers is for --engine beam; add that."),
        (
            ["--engine", "beam", "--runner", "FlinkRuner"],
            "FlinkRuner cannot be used: Unexpected pipeline runner",
        ),
        (
            ["--engine", "beam", "--", "--direct_num_workers", "two"],
            "FnApiRunner refuses its options: argument --direct_num_workers: invalid int value: 'two'; correct",
        ),
        (
            ["--engine", "beam", "--runner", "DataflowRunner", "--", "--project", "project", "--temp_location", "/tmp"],
            "DataflowRunner refuses its options: Invalid GCS path (/tmp), given for the option: temp_location; ",
        ),
        (["--engine", "beam", "--", "--temp_location", "/proc/none"], "cannot be written"),
        (["--engine", "beam", "--", "--direct_num_workres", "2"], "FnApiRunner has no option --direct_num_workres"),
        (["--engine", "beam", "--", "--runner", "FlinkRunner"], "--runner FlinkRunner belongs to alt-jax"),
    ],
)
def test_refused(tmp_path: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str], flags: list[str], said: str):
    arguments = ["prepare", config_file(tmp_path, tiny_config), "--data.dir", str(tmp_path / "out"), *flags]
    assert cli.run(arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, tiny_config: Config, tiny_dataset: object):
    arguments = ["prepare", config_file(tmp_path, tiny_config), "--data.dir", str(tmp_path / "out"), "--engine", "beam"]
    assert cli.run([*arguments, "--", "--direct_num_workers", "1"]) == 0
    assert contents(tmp_path / "out") == contents(Path(tiny_config.data.dir))


def test_without_beam_the_extra_is_named(
    tmp_path: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "alt_jax.data.beam")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert cli.run(["prepare", config_file(tmp_path, tiny_config), "--engine", "beam"]) == 2
    said = "alt-jax prepare: --engine beam needs Apache Beam; install it with pip install 'alt-jax[beam]'.\n"
    assert capsys.readouterr().err == said


def test_rows_find_their_shards():
    job = workers.Job("", (), "", None, pa.schema([]), sizes=(7, 1, 4), shard_rows=3, parts=1)
    assert [name for name, *_ in job.shards] == ["train"] * 3 + ["valid"] + ["test"] * 2
    assert [size for *_, size in job.shards] == [3, 3, 1, 1, 3, 1]
    destination = np.random.default_rng(0).permutation(np.r_[np.arange(12), workers.NOWHERE, workers.PAST])
    found = {}
    for shard, chosen, position in job.by_shard(destination):
        found |= {(shard, p): d for p, d in zip(position.tolist(), destination[chosen].tolist(), strict=True)}
    expected = [(shard, p) for shard, (*_, size) in enumerate(job.shards) for p in range(size)]
    assert found == {place: d for d, place in enumerate(expected)}
    assert dataclasses.replace(job, sizes=(1, 1, 1)).shards[2] == ("test", 0, 1, 1)
