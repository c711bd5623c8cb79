"""The HTTP interface of a scorer, as an ASGI app.

| | |
|---|---|
| `POST /score` | `{"rows": [{"user_id": "u1", …}, …]}` → `{"scores": [0.42, …]}`, in order |
| `GET /schema` | the JSON Schema of a row |
| `GET /healthz` | 200 once every program is compiled; 503 before that, and while the server stops |
| `GET /metrics` | for Prometheus |

What is refused has the answer `{"detail": "one sentence"}`: 400, 413, 415, 422 where the request is wrong, 408 where
its body comes too slowly, 503 where the queue is full, 504 where the scores did not come in time.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alt_jax import console
from alt_jax.scorer import Scorer
from alt_jax.serving.batcher import Batcher, Full
from alt_jax.serving.limits import Limits
from alt_jax.serving.rows import RowModel

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_PATHS = ("/score", "/schema", "/healthz", "/metrics")
# What is left of a body that is refused is read and thrown away for so many seconds: a client that is still sending
# when the connection closes would hear of a broken connection instead of the reason.
_LINGER = 1.0


class Service:
    """A scorer behind a queue, and the app that gives access to it.

    Attributes:
      app: The ASGI app; its lifespan compiles the programs and starts the queue.
      failed: What the warm-up failed with, if it did.
    """

    def __init__(self, scorer: Scorer, limits: Limits, failed: Callable[[], None] = lambda: None) -> None:
        """Makes the app.

        Args:
          scorer: Scores.
          limits: See there.
          failed: Called if the warm-up fails.
        """
        self._compiled = self._stopping = False
        self.failed: BaseException | None = None
        self._scorer, self._limits, self._on_failure = scorer, limits, failed
        self._model = RowModel(scorer.encoder.schema, scorer.columns)
        self._schema = self._model.json_schema()
        self._metrics = _Metrics(lambda: self._batcher.rows)
        self._batcher = Batcher(
            self._score,
            max_batch=limits.max_batch,
            max_wait=limits.max_wait_ms / 1000,
            max_queue=limits.max_queue,
            observe=self._metrics.batch,
        )
        routes = [
            Route("/score", self._post_score, methods=["POST"]),
            Route("/schema", self._get_schema),
            Route("/healthz", self._get_healthz),
            Route("/metrics", self._get_metrics),
        ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            middleware=[Middleware(_Counted, metrics=self._metrics)],
            exception_handlers={HTTPException: _refused, 500: _broken},
        )
        self.app.router.redirect_slashes = False

    @property
    def state(self) -> Literal["starting", "ready", "stopping"]:
        """Of the service: it compiles, it scores, or it scores what is still to be answered."""
        if self._stopping:
            return "stopping"
        return "ready" if self._compiled else "starting"

    def stop(self) -> None:
        """Says from now on that it stops, so that nobody sends more."""
        self._stopping = True

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        queue, warm_up = asyncio.create_task(self._batcher.run()), asyncio.create_task(self._warm_up())
        warm_up.add_done_callback(self._warmed)
        try:
            yield
        except asyncio.CancelledError:  # a second Ctrl-C, which cancels everything else as well
            return
        self.stop()
        await asyncio.wait([warm_up])
        self._batcher.close()
        await queue

    async def _warm_up(self) -> None:
        began = time.perf_counter()
        programs = self._scorer.programs(max(self._limits.max_batch, self._limits.max_rows))
        for program in programs:
            if self._stopping:
                return
            await self._batcher.in_thread(self._scorer.compile, *program)
        seconds = time.perf_counter() - began
        console.log(
            f"ready: {len(programs)} programs in {seconds:.1f} s", programs=len(programs), seconds=round(seconds, 1)
        )
        self._compiled = True

    def _warmed(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by a second Ctrl-C
            return
        self.failed = task.exception()
        if self.failed is not None:
            self._on_failure()

    def _score(self, rows: Sequence[Any]) -> np.ndarray:
        return self._scorer.score_spelled(self._model.spell(rows))

    async def _post_score(self, request: Request) -> Response:
        try:
            return await self._scores(request)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            raise HTTPException(503, "The server was stopped.", {"Retry-After": "1"}) from None

    async def _scores(self, request: Request) -> Response:
        if not self._compiled:
            raise HTTPException(503, f"The server is {self.state}.", {"Retry-After": "1"})
        _check_headers(request)
        body = await self._body(request)
        rows = self._model.read(body, self._limits.max_rows)
        if not rows:
            return _json({"scores": []})
        try:
            scores = await self._batcher.submit(rows, self._limits.timeout)
        except Full:
            raise HTTPException(503, "Too many rows are waiting; try again later.", {"Retry-After": "1"}) from None
        except TimeoutError:
            raise HTTPException(504, f"The scores were not there after {self._limits.timeout:g} seconds.") from None
        for number, score in enumerate(scores):
            if not 0 <= score <= 1:  # NaN, of numbers far from all that the model was trained on
                raise HTTPException(422, f"The model has no score for rows[{number}].")
        self._metrics.rows.inc(len(rows))
        return _json({"scores": scores})

    async def _body(self, request: Request) -> bytes:
        declared, limit = request.headers.get("content-length", "0"), self._limits.max_bytes
        if not (declared.isascii() and declared.isdigit()):
            raise HTTPException(400, "Content-Length is no number.")
        parts: list[bytes] = []
        size = int(declared[:20])
        try:
            async with asyncio.timeout(self._limits.timeout):
                if size <= limit:
                    size = 0
                    async for part in request.stream():
                        parts.append(part)
                        size += len(part)
                        if size > limit:
                            break
        except TimeoutError:
            said = f"The body was not there after {self._limits.timeout:g} seconds."
            raise HTTPException(408, said, {"Connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "The body ended early.") from None
        if size > limit:
            with contextlib.suppress(TimeoutError, ClientDisconnect):
                async with asyncio.timeout(_LINGER):
                    async for _ in request.stream():
                        pass
            raise HTTPException(413, f"The body is larger than {limit:,} bytes.", {"Connection": "close"})
        return b"".join(parts)

    async def _get_schema(self, _: Request) -> Response:
        return _json(self._schema)

    async def _get_healthz(self, _: Request) -> Response:
        return _json({"status": self.state}, 200 if self.state == "ready" else 503)

    async def _get_metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Metrics:
    """What Prometheus may ask for, in a registry of its own."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("alt_jax_requests", "Requests", ["path", "code"], registry=registry)
        self.rows = Counter("alt_jax_rows", "Rows scored and answered", registry=registry)
        self.seconds = Histogram(
            "alt_jax_request_seconds", "Time of POST /score, whatever its answer", buckets=_SECONDS, registry=registry
        )
        sizes = [4**power for power in range(8)]
        self._batch_rows = Histogram("alt_jax_batch_rows", "Rows of a batch", buckets=sizes, registry=registry)
        self._batch_seconds = Histogram(
            "alt_jax_batch_seconds", "Time that a batch took in the scoring thread", buckets=_SECONDS, registry=registry
        )
        Gauge("alt_jax_queue_rows", "Rows that wait", registry=registry).set_function(waiting)
        ProcessCollector(registry=registry)

    def batch(self, rows: int, seconds: float) -> None:
        """Notes a batch."""
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)


class _Counted:
    """Counts answers by path and code, and times scores."""

    def __init__(self, app: ASGIApp, metrics: _Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, code = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.requests.labels(path, code).inc()
            if path == "/score":
                self._metrics.seconds.observe(time.perf_counter() - began)


def _check_headers(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "The body should be JSON; send Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "The body should not be compressed.")


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII, since a name that a message repeats may be no text.
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"detail": error.detail}, error.status_code, dict(error.headers or {}))


async def _broken(_: Request, __: Exception) -> Response:
    return _json({"detail": "The server has failed at this request; its log says how."}, 500)
