"""Whatever a file holds, its reader takes it or says in one sentence why not, and never asks for more than is there."""

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz_targets
import numpy as np
import pytest
from fuzz_targets import Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alt_jax import cli
from alt_jax.config import load_config
from alt_jax.data.shards import array_of
from alt_jax.errors import InputError

# A reader that hangs, or reads byte by byte, takes far longer; the slowest, a text tower's, takes a second at first.
_DEADLINE_MS = 20_000


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return fuzz_targets.made(tmp_path_factory.mktemp("fuzz"))


def test_every_seed_is_read(targets: dict[str, Target]) -> None:
    """Else nothing behind what refuses it would be tested."""
    for name, target in targets.items():
        for seed in target.seeds:
            assert not fuzz_targets.refused(target, seed), name


@pytest.mark.parametrize("examples", [25, pytest.param(250, marks=pytest.mark.slow)])  # of each target
@pytest.mark.parametrize("part", range(3))
def test_a_changed_file_is_read_or_refused(targets: dict[str, Target], part: int, examples: int) -> None:
    names = sorted(targets)[part::3]

    @settings(
        max_examples=examples * len(names),
        derandomize=True,
        database=None,
        deadline=_DEADLINE_MS,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(names), st.integers(0, 2**64 - 1))
    def check(name: str, seed: int) -> None:
        target = targets[name]
        with warnings.catch_warnings():  # NumPy's, of a header in the spelling of Python 2
            warnings.filterwarnings("ignore", message="Reading `.npy` or `.npz` file required additional")
            fuzz_targets.refused(target, fuzz_targets.mutated(target.seeds, random.Random(seed)))

    check()


# --- Config files, which are code ---


@pytest.mark.parametrize(
    "text",
    [
        "def get_config(:",
        "raise ValueError('two\\nlines')",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('what a message')",
        "raise MemoryError",
        "def get_config(): return get_config()",
        "def get_config(): return 1 / 0",
        "def get_config(): raise KeyError(3)",
        "def get_config(): return {}",
        "get_config = 3",
        "\0",
        "'\udce9'",
        "import not_there_at_all",
        "from alt_jax.config import Config\ndef get_config(): return Config(seed='x' * 100_000)",
        "assert False",
        "",
    ],
)
def test_a_config_file_that_fails_is_one_sentence(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "experiment.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"experiment\.py") as refused:
        load_config(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert cli.run(["pretrain", str(path), "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- Headers that lie ---

# A process whose memory is bounded while it reads. Each line names a target, a folder of lies, how many more bytes of
# address space the reader may take than the process has by then, and whether some of the files may be no lies.
_BOUNDED = """
import json, resource, sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import fuzz_targets

targets = fuzz_targets.made(Path({folder!r}))
_, hard = resource.getrlimit(resource.RLIMIT_AS)
for line in sys.stdin:
    name, lies, room, some = json.loads(line)
    target = targets[name]
    assert not fuzz_targets.refused(target, target.seeds[0])
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, hard))
    wrong = []
    for path in sorted(Path(lies).iterdir()):
        try:
            if not fuzz_targets.refused(target, path.read_bytes()) and not some:
                wrong.append(f"{{path.name}} is taken for a valid file")
        except Exception as error:
            wrong.append(f"{{path.name}}: {{error!r}}")
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    print(json.dumps(wrong), flush=True)
"""


Bounded = Callable[..., None]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bounded]:
    """`bounded(name, lies)` reads lies in that process; each has to be refused, unless only `some` of them are lies."""
    tests, folder = str(Path(__file__).parent), str(tmp_path_factory.mktemp("bounded"))
    code, pipe = _BOUNDED.format(tests=tests, folder=folder), subprocess.PIPE
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:

        def read(name: str, lies: dict[str, bytes], room: int = 400 << 20, some: bool = False) -> None:
            place = tmp_path_factory.mktemp("lies")
            for lie, content in lies.items():
                (place / lie).write_bytes(content)
            watch = threading.Timer(300, process.kill)
            watch.start()
            process.stdin.write(json.dumps([name, str(place), room, some]) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
            watch.cancel()
            assert said == "[]\n", said or process.stderr.read()[-2000:]

        yield read
        process.stdin.close()
        assert process.wait(60) == 0


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i4', 'fortran_order': False, 'shape': (10000000000000,), }",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<i4', 'fortran_order': True, 'shape': (1, 1), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': ('<i4',), 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 99999999999999999999999), }",
        "{[]: 1}",
        "-" * 5000 + "1",
        "(" * 5000,
        "__import__('os').getcwd()",
    ],
)
def test_an_array_is_no_larger_than_its_file(header: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        array_of(npy(header, bytes(4)))


def test_an_array_is_read_as_numpy_reads_it() -> None:
    for array in (np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 4), np.int32), np.array([1.5], np.float32)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        np.testing.assert_array_equal(array_of(buffer.getvalue()), np.load(io.BytesIO(buffer.getvalue())))


def test_zip_and_gzip_files_cannot_be_bombs(bounded: Bounded, targets: dict[str, Target]) -> None:
    """A zip says how much it holds, and no more is ever unpacked; of a gzip file no line is longer than a bound."""
    whole = targets["movielens_1m.zip"].seeds[0]
    said = bytearray(whole)
    at = said.rindex(b"PK\x01\x02")  # the directory's entry of the last file, movies.dat
    said[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    target = targets["movielens_1m.zip"]
    with pytest.raises(InputError, match=r"says that movies\.dat has 4,294,967,294 bytes, which no original has"):
        target.read(bytes(said))
    endless = gzip.compress(bytes(1 << 20), 9) * 600  # 600 MB without an end of a line
    again = gzip.compress(targets["goodreads/goodreads_book_works.json"].seeds[0].split(b"\n")[0] + b"\n") * 70_000
    lies = {"endless": endless, "again": again}
    with pytest.raises(InputError, match=r"line 1: longer than 16,777,216 bytes"):
        targets["goodreads/goodreads_book_works.json.gz"].read(endless)
    bounded("goodreads/goodreads_book_works.json.gz", lies)


def test_a_compressed_archive_of_arrays_is_refused_before_it_is_unpacked(bounded: Bounded) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("tokens", "start", "length", "maskable", "feature", "number"):
            with archive.open(f"{name}.npy", "w") as out:
                out.write(npy("{'descr': '<i4', 'fortran_order': False, 'shape': (500000000,), }"))
                for _ in range(100 if name == "tokens" else 0):
                    out.write(bytes(5 << 20))
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name in ("tokens", "start", "length", "maskable", "feature", "number"):
            archive.writestr(f"{name}.npy", npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2000000000,), }"))
    bounded("prepared/pieces.npz", {"bomb": buffer.getvalue(), "shape": stored.getvalue()})


def test_weights_are_no_larger_than_their_file(bounded: Bounded, targets: dict[str, Target]) -> None:
    whole = targets["model/model.safetensors"].seeds[0]
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")

    def with_header(**changed: object) -> bytes:
        text = json.dumps(header | {name: header[name] | changed}).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    begin, end = header[name]["data_offsets"]
    lies = {
        "length": (2**60).to_bytes(8, "little") + whole[8:],
        "longer": (size + 10**9).to_bytes(8, "little") + whole[8:],
        "shape": with_header(shape=[2**40, 2**20]),
        "offsets": with_header(data_offsets=[begin, 2**50]),
        "overlap": with_header(data_offsets=[begin + 4, end + 4]),
        "backwards": with_header(data_offsets=[end, begin]),
        "type": with_header(dtype="F64"),
        "unknown": with_header(dtype="F1"),
        "twice": with_header().replace(b'"shape"', b'"shape": [1], "shape"', 1),
    }
    bounded("model/model.safetensors", lies)


def test_a_model_is_no_larger_than_its_config_can_say(bounded: Bounded, targets: dict[str, Target]) -> None:
    config = json.loads(targets["model/config.json"].seeds[0])
    lies = {
        f"{key}_{value}": json.dumps(config | {key: value}).encode()
        for key in ("vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size", "max_position_embeddings")
        for value in (2**31 - 2, 10**18)
    }
    bounded("model/config.json", lies)


def test_a_schema_cannot_ask_for_memory(bounded: Bounded, targets: dict[str, Target]) -> None:
    text = targets["prepared/schema.json"].seeds[0].decode()
    lies = {}
    for key in ("slots", "size", "offset", "vocab_size", "max_length", "length", "rows"):
        for value in (10**9, 2**31 - 1, 10**15):
            at = text.index(f'"{key}": ') + len(key) + 4
            end = min(text.index(mark, at) for mark in (",", "\n"))
            lies[f"{key}_{value}"] = (text[:at] + str(value) + text[end:]).encode()
    bounded("prepared/schema.json", lies)


def test_a_parquet_file_that_lies_about_its_rows_takes_no_memory(bounded: Bounded, targets: dict[str, Target]) -> None:
    """The counts stand in its footer, as varints of Thrift's compact protocol, of which one is replaced at a time."""
    whole = targets["table.parquet"].seeds[0]
    size = int.from_bytes(whole[-8:-4], "little")
    body, footer = whole[: -8 - size], whole[-8 - size : -8]
    many = b"\x80\x80\x80\x80\x40"  # 2^33, as a zigzag varint
    rows = bytes([2 * 20])  # the 20 rows that there are
    lies = {}
    for number, at in enumerate(at for at in range(len(footer)) if footer[at : at + 1] == rows):
        changed = footer[:at] + many + footer[at + 1 :]
        lies[f"{number}"] = body + changed + len(changed).to_bytes(4, "little") + b"PAR1"
    assert len(lies) > 8
    bounded("table.parquet", lies, room=1 << 30, some=True)
