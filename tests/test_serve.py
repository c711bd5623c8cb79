"""`alt-jax serve`: the scores of `alt-jax predict`, whatever shares a batch; and an answer to whatever is sent."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import compiling
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scorers import COLUMNS, every_kind, random_export, random_scorer

from alt_jax import cli
from alt_jax.config import Config
from alt_jax.errors import InputError
from alt_jax.scorer import Scorer, predict
from alt_jax.serving.app import Service
from alt_jax.serving.limits import Limits
from alt_jax.serving.rows import loads

JSON = {"Content-Type": "application/json"}
ROW = {
    "_user": 3,
    "model_age": 30.5,
    "item": "i1",
    "json": "The red house, 0?",
    "the genre": ["drama", "war?"],
    "liked": "i2|i3",
    "query": "q1",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return every_kind(tmp_path_factory.mktemp("kinds"))


class Server:
    """A service in an event loop of its own, without a network."""

    def __init__(self, scorer: Scorer, **limits: Any) -> None:
        self.runner = asyncio.Runner()
        self.runner.run(self._enter(scorer, Limits(**limits)))

    async def _enter(self, scorer: Scorer, limits: Limits) -> None:
        self.service = Service(scorer, limits)
        self._lifespan = self.service._lifespan(self.service.app)
        await self._lifespan.__aenter__()
        transport = httpx.ASGITransport(self.service.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)

    async def ready(self) -> None:
        while self.service.state != "ready":
            await asyncio.sleep(0.01)

    def post(self, content: Any, headers: dict[str, str] | None = None, path: str = "/score") -> httpx.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.runner.run(self.client.post(path, content=body, headers=JSON if headers is None else headers))

    def get(self, path: str) -> httpx.Response:
        return self.runner.run(self.client.get(path))

    def metric(self, name: str) -> float:
        text = self.get("/metrics").text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    def close(self) -> None:
        self.runner.run(self._lifespan.__aexit__(None, None, None))
        self.runner.close()


@contextlib.contextmanager
def started(scorer: Scorer, **limits: Any) -> Iterator[Server]:
    server = Server(scorer, **{"max_batch": 8, "max_rows": 20, "max_queue": 64, "timeout": 30.0, **limits})
    try:
        server.runner.run(server.ready())
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(config: Config) -> Iterator[Server]:
    with started(random_scorer(config, "ctr")) as server:
        yield server


# The same scores.


@pytest.mark.parametrize("strategy", ["ctr", "plm", "joint"])
def test_scores_are_those_of_predict(config, tmp_path, monkeypatch, strategy):
    scorer = random_scorer(config, strategy)
    monkeypatch.setattr(Scorer, "load", lambda folder, data: scorer)
    raw = pq.read_table(config.data.raw).slice(0, 17).drop_columns(["label", "time"])
    raw = raw.append_column("liked", pa.array([["", "i1", "i2|i3|i4|i5", "i1|new"][n % 4] for n in range(17)]))
    for name, values in (("json", [f"new {n}" for n in range(17)]), ("query", [None, *range(16)])):
        raw = raw.set_column(raw.column_names.index(name), name, pa.array(values))
    scores = {}
    for suffix, write in ((".parquet", pq.write_table), (".csv", pyarrow.csv.write_csv)):
        write(raw, tmp_path / f"rows{suffix}")
        predict(tmp_path, tmp_path / f"rows{suffix}", tmp_path / "scores.parquet")
        scores[suffix] = np.asarray(pq.read_table(tmp_path / "scores.parquet")["score"])
    assert np.ptp(scores[".csv"]) > 0.02
    as_text = pyarrow.csv.read_csv(
        tmp_path / "rows.csv",
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(raw.column_names, pa.string())),
    )
    as_lists = raw.to_pylist()
    for row in as_lists:
        row["the genre"] = row["the genre"].split("|")
        row["liked"] = row["liked"].split("|") if row["liked"] else None
    with started(scorer) as server:
        for rows, expected in (
            (raw.to_pylist(), scores[".parquet"]),
            (as_lists, scores[".parquet"]),
            (as_text.to_pylist(), scores[".csv"]),
        ):
            answer = server.post({"rows": rows})
            assert answer.status_code == 200, answer.text
            np.testing.assert_allclose(answer.json()["scores"], expected, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["ctr", "joint"])
def test_requests_that_share_batches_have_the_scores_that_they_have_alone(config, strategy):
    requests = [
        [{**ROW, "_user": n, "json": f"film {'and ' * n}", "model_age": n + k} for k in range(1 + n % 4)]
        for n in range(24)
    ]
    with started(random_scorer(config, strategy), max_wait_ms=200) as server:

        async def together() -> list[Any]:
            bad = [server.client.post("/score", json={"rows": [{**ROW, "model_age": "old"}]}) for _ in range(5)]
            good = [server.client.post("/score", json={"rows": rows}) for rows in requests]
            answers = await asyncio.gather(*bad, *good)
            assert [answer.status_code for answer in answers] == [422] * 5 + [200] * 24
            return [answer.json()["scores"] for answer in answers[5:]]

        found = server.runner.run(together())
        batches = server.metric("alt_jax_batch_rows_count")
        assert batches <= 12  # 60 rows, at most 8 at a time
        assert server.metric("alt_jax_batch_rows_sum") == server.metric("alt_jax_rows_total") == 60
    with started(random_scorer(config, strategy), max_wait_ms=0) as server:
        alone = [server.post({"rows": rows}).json()["scores"] for rows in requests]
        assert server.metric("alt_jax_batch_rows_count") == 24
    for mine, theirs in zip(found, alone, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert len({score for scores in alone for score in scores}) > 8


def test_schema_names_every_column(server):
    schema = server.get("/schema").json()
    assert set(schema["properties"]) == set(COLUMNS)
    assert set(schema["required"]) == set(COLUMNS) - {"json"}  # a text, which `ctr` does not read
    assert "3, 3.0" in schema["properties"]["_user"]["description"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["model_age"]["type"] == ["number", "string", "null"]
    assert schema["properties"]["liked"]["anyOf"][0]["type"] == "array"


# What is refused.


def sent(**changes: Any) -> dict[str, Any]:
    return {"rows": [{**ROW, **changes}]}


def body(**spelled: str) -> bytes:
    """A request with some values spelled out in JSON."""
    values = {**{name: json.dumps(value) for name, value in ROW.items()}, **spelled}
    return (
        '{"rows": [{' + ", ".join(f"{json.dumps(name)}: {value}" for name, value in values.items()) + "}]}"
    ).encode()


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", 400, "The body is not JSON: Expecting value, at character 0."),
        (b"{", 400, "The body is not JSON"),
        (b"\xff", 400, "The body is not UTF-8."),
        (b"[" * 100_000, 400, "The body is nested too deeply."),
        (b'{"rows": ' * 50_000, 400, "The body is nested too deeply."),
        (b'{"rows": [], "rows": []}', 400, "an object has the key 'rows' twice"),
        (body(query='"a", "query": "b"'), 400, "an object has the key 'query' twice"),
        (body(model_age="NaN"), 400, "NaN is no JSON"),
        (body(model_age="-Infinity"), 400, "-Infinity is no JSON"),
        (body(item="1" * 5000), 400, "The body cannot be read"),
        (body(item='"\\ud800"'), 400, "half of a surrogate pair"),
        (b'{"rows": [{"\\uDFFF": 1}]}', 400, "half of a surrogate pair"),
        ([], 422, "The body should be an object."),
        (3, 422, "The body should be an object."),
        ({}, 422, "The body has no 'rows'"),
        ({"rows": None}, 422, "rows should be a list."),
        ({"rows": ["x"]}, 422, "rows[0] should be an object."),
        ({"rows": [ROW, {}]}, 422, "rows[1] has no '_user'; give it, as null if it is not known."),
        ({"rows": [], "row": 1}, 422, "The body has an unknown key 'row'; did you mean 'rows'?"),
        (sent(quarry=1), 422, "rows[0] has an unknown key 'quarry'; did you mean 'query'?"),
        (sent(f1=1), 422, "rows[0] has an unknown key 'f1'"),
        (sent(**{"x" * 100_000: 1}), 422, "rows[0] has an unknown key 'xxx"),
        (sent(_user=[1]), 422, "rows[0]._user should be a string, a number, true, false or null."),
        (sent(item={"a": 1}), 422, "rows[0].item should be a string, a number, true, false or null."),
        (sent(liked=[["i1"]]), 422, "rows[0].liked should be a string"),
        (sent(model_age="old"), 422, "rows[0].model_age should be a finite number or null."),
        (sent(model_age="inf"), 422, "rows[0].model_age should be a finite number or null."),
        (sent(model_age=True), 422, "rows[0].model_age should be a finite number or null."),
        (sent(model_age=1e300), 422, "rows[0].model_age is too large a number."),
        (body(item="1e999"), 422, "rows[0].item is a number too large for any float."),
        (sent(item=2**64), 422, "rows[0].item is an integer of more than 64 bits; give it as a string."),
        ({"rows": [ROW] * 21}, 413, "21 rows are more than the 20 that a request may have."),
    ],
)
def test_what_is_refused_is_said_in_one_sentence(server, content, code, said):
    answer = server.post(content)
    assert answer.status_code == code, answer.text
    assert said in answer.json()["detail"]
    assert answer.json().keys() == {"detail"}
    assert len(answer.json()["detail"]) < 400
    assert "\n" not in answer.json()["detail"]
    assert server.post({"rows": [ROW]}).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {name: None for name in ROW},
        {name: "" for name in ROW},
        {name: 0 for name in ROW},
        {"_user": True, "item": -0.0, "the genre": [], "liked": [None, 3, False], "query": 2**64 - 1},
        {"json": "\0 \u202e \U0001f600 e\u0301 [MASK] </s>", "model_age": " 1e3 ", "the genre": "|||||"},
        {"json": "long " * 20_000, "liked": ["i1"] * 10_000},
    ],
    ids=["null", "empty", "zero", "kinds", "characters", "long"],
)
def test_odd_values_score(server, changes):
    (score,) = server.post({"rows": [{**ROW, **changes}]}).json()["scores"]
    assert 0 < score < 1


def test_other_requests(server):
    assert server.post({"rows": []}).json() == {"scores": []}
    assert server.post({"rows": [ROW]}, {"Content-Type": "application/json; charset=utf-8"}).status_code == 200
    for headers in ({}, {"Content-Type": "text/csv"}, {**JSON, "Content-Encoding": "gzip"}):
        answer = server.post({"rows": [ROW]}, headers)
        assert (answer.status_code, answer.json().keys()) == (415, {"detail"})
    wrong = server.get("/score")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()) == (405, "POST", {"detail": "Method Not Allowed"})
    assert server.post({}, path="/healthz").status_code == 405
    for path in ("/", "/score/", "/docs", "/%ff"):
        assert server.post({"rows": [ROW]}, path=path).status_code == 404
    assert server.post(b"{}", {**JSON, "Content-Length": "x"}).status_code == 400
    assert server.get("/healthz").json() == {"status": "ready"}
    assert server.metric('alt_jax_requests_total{code="405",path="/score"}') >= 1
    assert server.metric('alt_jax_requests_total{code="404",path="other"}') >= 4


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([2**70, 10**400, "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(COLUMNS), inner, max_size=4)
    ),
    max_leaves=12,
)
_row = st.fixed_dictionaries({name: st.just(value) | _json for name, value in ROW.items()}) | _json
_valid = json.dumps({"rows": [ROW]}).encode()


def _mutated(edits: list[tuple[int, int]]) -> bytes:
    text = bytearray(_valid)
    for at, byte in edits:
        text[at % len(text)] = byte
    return bytes(text)


_bodies = (
    st.binary(max_size=64)
    | st.builds(_mutated, st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), min_size=1, max_size=3))
    | st.builds(lambda cut: _valid[:cut], st.integers(0, len(_valid)))
    | st.builds(lambda rows: json.dumps({"rows": rows}).encode(), st.lists(_row, max_size=3))
    | st.builds(lambda value: json.dumps(value).encode(), _json)
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_bodies)
@example(b"\xef\xbb\xbf{}")
@example(b'{"rows":[{"_user":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}]}")
def test_any_body_has_an_answer(server, content):
    answer = server.post(content)
    assert answer.status_code in (200, 400, 413, 422), (content, answer.text)
    found = answer.json()
    if answer.status_code == 200:
        assert len(found["scores"]) == len(json.loads(content)["rows"])
        assert all(0 <= score <= 1 for score in found["scores"])
    else:
        assert found.keys() == {"detail"}


def test_many_keys_take_no_longer_than_their_number():
    """A search for the one that is there twice, and for names like an unknown one, must not be quadratic."""
    keys = [f'"{n}": 0' for n in range(100_000)]
    began = time.perf_counter()
    with pytest.raises(Exception, match="twice"):
        loads(("{" + ", ".join([*keys, '"99999": 1']) + "}").encode())
    assert time.perf_counter() - began < 2


# Limits of size and time.


class Slow:
    """A scorer that scores when it is told to."""

    def __init__(self, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.scored, inner = threading.Event(), 0, scorer.score_spelled

        def score(columns):
            assert self.go.wait(60)
            self.scored += len(columns[0].codes)
            return inner(columns)

        monkeypatch.setattr(scorer, "score_spelled", score)


def test_a_full_queue_refuses_and_what_is_late_is_left_out(config, monkeypatch):
    scorer = random_scorer(config, "ctr")
    slow = Slow(scorer, monkeypatch)
    with started(scorer, max_queue=20, timeout=0.5, max_wait_ms=0) as server:

        async def act() -> None:
            def post(rows: int) -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(server.client.post("/score", json={"rows": [ROW] * rows}))

            first = post(1)
            await asyncio.sleep(0.1)  # it is being scored
            waiting = [post(8), post(12)]
            await asyncio.sleep(0.05)
            full = await post(1)
            assert (full.status_code, full.headers["retry-after"]) == (503, "1")
            assert full.json() == {"detail": "Too many rows are waiting; try again later."}
            for late in (await first, *[await task for task in waiting]):
                assert late.status_code == 504
                assert late.json() == {"detail": "The scores were not there after 0.5 seconds."}
            slow.go.set()
            assert (await post(2)).status_code == 200

        server.runner.run(act())
        assert slow.scored == 3  # not what nobody waited for


def test_an_error_of_ours_is_said_to_be_one_and_the_next_request_is_scored(config, monkeypatch):
    scorer = random_scorer(config, "ctr")
    with started(scorer) as server, monkeypatch.context() as broken:
        broken.setattr(scorer, "score_spelled", lambda columns: 1 / 0)
        transport = httpx.ASGITransport(server.service.app, raise_app_exceptions=False)
        server.client = httpx.AsyncClient(transport=transport, base_url="http://test")
        answer = server.post({"rows": [ROW]})
        assert (answer.status_code, answer.json().keys()) == (500, {"detail"})
        broken.undo()
        assert server.post({"rows": [ROW]}).status_code == 200
        assert server.metric('alt_jax_requests_total{code="500",path="/score"}') == 1


def test_a_row_without_a_score_is_named(server, monkeypatch):
    """Numbers that are finite may be too large for what is computed of them."""
    monkeypatch.setattr(server.service._scorer, "score_spelled", lambda _: np.array([0.5, np.nan]))
    answer = server.post({"rows": [ROW, ROW]})
    assert (answer.status_code, answer.json()) == (422, {"detail": "The model has no score for rows[1]."})


def test_it_is_not_healthy_before_it_is_ready_nor_when_it_stops(config, monkeypatch):
    scorer = random_scorer(config, "ctr")
    go, compile_ = threading.Event(), scorer.compile
    monkeypatch.setattr(scorer, "compile", lambda *program: (go.wait(60), compile_(*program)))
    server = Server(scorer, max_batch=8, max_rows=8)
    try:
        for answer in (server.get("/healthz"), server.post({"rows": [ROW]})):
            assert answer.status_code == 503
            assert "starting" in answer.text
        go.set()
        server.runner.run(server.ready())
        assert server.get("/healthz").status_code == 200
        server.service.stop()
        assert server.get("/healthz").json() == {"status": "stopping"}
        assert server.get("/healthz").status_code == 503
        assert server.post({"rows": [ROW]}).status_code == 200  # it had come
    finally:
        go.set()
        server.close()


def test_a_warm_up_that_fails_is_not_kept_quiet(config, monkeypatch):
    scorer = random_scorer(config, "ctr")
    monkeypatch.setattr(scorer, "compile", lambda *_: 1 / 0)
    server, said = Server(scorer), []
    server.service._on_failure = lambda: said.append(server.service.failed)
    server.close()
    assert isinstance(server.service.failed, ZeroDivisionError)
    assert said == [server.service.failed]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_rows": 0}, "--max-rows 0 must be above 0"),
        ({"timeout": float("nan")}, "--timeout nan must be above 0"),
        ({"timeout": float("inf")}, "--timeout inf must be above 0, and finite"),
        ({"max_wait_ms": -1.0}, "--max-wait-ms -1.0 must not be below 0"),
        ({"max_wait_ms": 2000.0}, "--max-wait-ms 2000.0 must not be below 0, nor reach --timeout 2.0 s"),
        ({"max_queue": 5}, "--max-queue 5 has no room for a request of --max-rows 1024"),
    ],
)
def test_limits_that_make_no_sense(limits, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Limits(**limits)


# The process.


@pytest.fixture(scope="module")
def process(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`alt-jax serve` of an export, with a queue that waits half a second for more."""
    folder = random_export(config, "ctr", tmp_path_factory.mktemp("exported") / "ctr")
    command = [sys.executable, "-m", "alt_jax", "serve", str(folder), "--port", "0", "--timeout", "1"]
    options = ["--max-wait-ms", "500", "--max-batch", "64", "--max-rows", "64", "--max-bytes", "10000"]
    environment = os.environ | compiling.environment(devices=1)
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        said = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+), loaded in [\d.]+ s; compiling", said)[1])
        assert "ready: 3 programs in" in process.stdout.readline()
        yield process, port
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(port: int, content: bytes, headers: dict[str, str] = JSON) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/score", content, headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_the_process_answers_until_it_is_told_to_stop_and_then_what_it_was_asked(process, config):
    running, port = process
    content = json.dumps({"rows": [ROW]}).encode()
    (expected,) = random_scorer(config, "ctr").score([ROW | {"the genre": "drama|war?"}])
    code, found = ask(port, content)
    assert (code, found["scores"]) == (200, [pytest.approx(expected, abs=1e-6)])

    # A body that is too large, said in advance and in chunks; one that does not come; and no HTTP at all.
    assert ask(port, b" " * 3_000_000)[0] == 413
    chunks = (b" " * 50_000 for _ in range(20))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/score", chunks, JSON, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    for raw, code in ((head, b"408"), (b"nonsense\r\n\r\n", b"400"), (head.replace(b"100", b"-1"), b"400")):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(raw)
            assert plain.recv(1000).startswith(b"HTTP/1.1 " + code)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as gone:
        gone.sendall(head)  # and hangs up
    assert ask(port, content)[0] == 200

    with ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(ask, port, content) for _ in range(12)]
        time.sleep(0.25)
        assert not any(each.done() for each in waiting)
        running.send_signal(signal.SIGTERM)
        assert [each.result()[0] for each in waiting] == [200] * 12
    assert running.wait(30) == 0
    assert running.stdout.read() == "stopped; every request that had come was answered\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("asked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_second_interrupt_waits_for_nothing(config, tmp_path, asked):
    """Neither for what is compiled nor for what was asked, which is answered all the same."""
    folder = random_export(config, "ctr", tmp_path / "ctr")
    command = [sys.executable, "-m", "alt_jax", "serve", str(folder), "--port", "0", "--max-batch", "8"]
    options = ["--max-rows", "8", "--timeout", "20", "--max-wait-ms", "15000"]
    environment = os.environ | compiling.environment(devices=1) | {"PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True, env=environment) as process,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(process.kill)
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        assert ask(port, b"")[0] in (503, 400)  # its handlers are there; it compiles, or is quick
        connection = ending.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)))
        if asked:
            assert "ready" in process.stdout.readline()
            connection.request("POST", "/score", json.dumps({"rows": [ROW]}).encode(), JSON)
            time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(1.0 if asked else 0.05)  # two at once would be one
        process.send_signal(signal.SIGINT)
        if asked:
            assert connection.getresponse().status == 503
        out, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - began < 12  # of the 15 that a batch would wait
    assert "Traceback" not in said
    assert "Exception" not in said
    if asked:  # else the first may have been enough by then
        assert out.splitlines()[-1] == "stopped; no request was waited for"


def test_what_keeps_it_from_starting(config, tmp_path, capsys, monkeypatch):
    def said(*arguments: object) -> str:
        assert cli.run(["serve", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    folder = random_export(config, "ctr", tmp_path / "exported")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be listened on (Address already in use)" in said(folder, "--port", port)
    assert "--port 70000 is no port" in said(tmp_path, "--port", 70000)
    assert "--host no.such.invalid --port 0 cannot be listened on" in said(
        folder, "--host", "no.such.invalid", "--port", 0
    )
    assert "is not a run folder" in said(tmp_path, "--port", 0)
    assert "--max-batch 0 must be above 0" in said(tmp_path, "--max-batch", 0)
    monkeypatch.delitem(sys.modules, "alt_jax.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "serve needs uvicorn; install it with pip install 'alt-jax[serve]'." in said(folder)
