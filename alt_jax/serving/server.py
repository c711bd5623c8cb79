"""The process of `alt-jax serve`: socket, signals, exit."""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from alt_jax import console
from alt_jax.errors import InputError
from alt_jax.scorer import Scorer
from alt_jax.serving.app import Service
from alt_jax.serving.limits import Limits, check_port


def serve(folder: Path, host: str, port: int, limits: Limits, data: Sequence[str] = ()) -> None:
    """Serves a model's scores until SIGTERM or SIGINT; then answers what it has been asked, and returns.

    Args:
      folder: A finetuning run or an export.
      host: Address to listen on.
      port: To listen on; 0 for any that is free.
      limits: See there.
      data: Where the run's dataset is, if not where it was.

    Raises:
      InputError: The model cannot be used, or the address cannot be listened on.
    """
    with _listen(host, port) as listening:  # before the model is loaded, which takes longer
        began = time.perf_counter()
        scorer = Scorer.load(folder, data=data)
        service = Service(scorer, limits, failed=lambda: server.handle_exit(signal.SIGTERM, None))
        config = uvicorn.Config(
            service.app,
            http="h11",  # whether httptools is there or not, requests are read in the same way
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,  # seconds; above the 60 of most load balancers, or they find connections closed
            timeout_graceful_shutdown=int(2 * limits.timeout) + 5,
        )
        server = _Server(config, service.stop)
        where, seconds = _url(listening), time.perf_counter() - began
        console.log(
            f"serving {folder} ({scorer.task.strategy}) on {where}, loaded in {seconds:.1f} s; compiling",
            model=str(folder),
            url=where,
        )
        server.run(sockets=[listening])
    if service.failed is not None:
        raise service.failed
    waited = "every request that had come was answered"
    console.log(f"stopped; {'no request was waited for' if server.force_exit else waited}")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Has the server stop, at the second SIGINT without waiting for requests.

        Not uvicorn's own, which raises the signal again in the end, so that the process would not exit with 0.
        """
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.should_exit = True
        self._stop()


def _url(listening: socket.socket) -> str:
    address, port = listening.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    check_port(port)
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise InputError(f"--host {host} --port {port} cannot be listened on ({reason}); give others.") from None
