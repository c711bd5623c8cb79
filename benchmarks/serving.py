"""`alt-jax serve` under load: latency as a client in another process sees it, and answers a second.

    python benchmarks/serving.py runs/joint rows.parquet
    python benchmarks/serving.py runs/ctr rows.parquet --connections 1 8 32 --rows 1 50 --rate 200

The model is a finetuning run or an export, the table holds raw rows for it. Each load runs for `--seconds`, after one
second that does not count. Without `--rate`, every connection sends its next request when it has the answer to the last
(closed loop). With it, requests are due at random moments, so many a second in the mean, whatever the server does, and
their time counts from when they were due (open loop). Client and server share the machine.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


class Connection:
    """One HTTP connection that is kept, without a client library that would take more time than the server."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> "Connection":
        """Itself."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def ask(self, request: bytes) -> int:
        """The code of the answer, which is read to its end."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        await self._reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        return int(head[9:12])


def requests(table: Path, columns: list[str], rows: int, count: int = 200) -> list[bytes]:
    """Requests of drawn rows, ready to be sent."""
    raw, rng = pq.read_table(table, columns=columns), np.random.default_rng(0)
    found = []
    for _ in range(count):
        body = json.dumps({"rows": raw.take(rng.integers(0, len(raw), rows)).to_pylist()}).encode()
        head = (
            f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


async def closed(port: int, sent: list[bytes], connections: int, seconds: float) -> list[tuple[float, float, int]]:
    """When each request was due, how long its answer took, and its code."""
    found, end = [], time.perf_counter() + seconds

    async def one(number: int) -> None:
        connection = await Connection(port).open()
        while (now := time.perf_counter()) < end:
            number += connections
            code = await connection.ask(sent[number % len(sent)])
            found.append((now, time.perf_counter() - now, code))

    await asyncio.gather(*(one(number) for number in range(connections)))
    return found


async def opened(
    port: int, sent: list[bytes], connections: int, seconds: float, rate: float
) -> list[tuple[float, float, int]]:
    """The same for requests that are due at random moments; one that finds no connection free waits for it."""
    found: list[tuple[float, float, int]] = []
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(connections):
        free.put_nowait(await Connection(port).open())
    start, rng = time.perf_counter(), np.random.default_rng(1)
    due = start + np.cumsum(rng.exponential(1 / rate, int(seconds * rate)))

    async def one(number: int, moment: float) -> None:
        connection = await free.get()
        code = await connection.ask(sent[number % len(sent)])
        found.append((moment, time.perf_counter() - moment, code))
        free.put_nowait(connection)

    async with asyncio.TaskGroup() as tasks:
        for number, moment in enumerate(due.tolist()):
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            tasks.create_task(one(number, moment))
    return found


def line(what: str, connections: int, rows: int, found: list[tuple[float, float, int]]) -> dict[str, Any]:
    """One row of the table, without the first second."""
    moments, taken, codes = (np.array(column) for column in zip(*found, strict=True))
    counted = moments > moments.min() + 1
    span = (moments + taken)[counted].max() - moments[counted].min()
    good = int((codes[counted] == 200).sum())
    p50, p95, p99 = np.percentile(1000 * taken[counted], [50, 95, 99])
    errors = int(counted.sum()) - good
    print(
        f"| {what} | {connections} | {rows} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {good / span:,.0f} | "
        f"{rows * good / span:,.0f} | {errors} |",
        flush=True,
    )
    return {
        "load": what,
        "connections": connections,
        "rows": rows,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "requests_s": good / span,
        "rows_s": rows * good / span,
        "errors": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("table", type=Path, help="Parquet")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 50], help="of a request")
    parser.add_argument("--rate", type=float, nargs="*", default=[], help="requests a second, for open loops")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="options of alt-jax serve")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "alt_jax", "serve", str(arguments.model), "--port", "0", *arguments.serve]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        print(said := server.stdout.readline(), end="")
        port = int(re.search(r":(\d+),", said)[1])
        print(server.stdout.readline(), end="", flush=True)
        columns = [field["column"] for field in json.loads((arguments.model / "schema.json").read_text())["fields"]]
        print(f"{os.cpu_count()} cores, {os.getloadavg()[0]:.1f} processes that wanted them in the last minute\n")
        print("| load | connections | rows | p50 ms | p95 ms | p99 ms | requests/s | rows/s | errors |")
        print("|---|---|---|---|---|---|---|---|---|")
        figures = []
        for rows in arguments.rows:
            sent = requests(arguments.table, columns, rows)
            for connections in arguments.connections:
                found = asyncio.run(closed(port, sent, connections, 1 + arguments.seconds))
                figures.append(line("closed", connections, rows, found))
            for rate in arguments.rate:
                found = asyncio.run(opened(port, sent, 256, 1 + arguments.seconds, rate))
                figures.append(line(f"open, {rate:g}/s", 256, rows, found))
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    print(f"the server ended with {code}")


if __name__ == "__main__":
    main()
