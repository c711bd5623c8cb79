"""What `alt-jax serve` lets a request ask for; apart from the server, so that `--help` needs no web framework."""

import math
from dataclasses import dataclass

from alt_jax.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how requests share the model.

    Attributes:
      max_rows: Of a request.
      max_bytes: Of a request's body.
      timeout: Seconds that a body may take to arrive, and then its scores to be there.
      max_batch: Rows that are scored together at most; a request is not divided.
      max_wait_ms: How long a row waits for others while the model is free, in milliseconds.
      max_queue: Rows that may wait; more are refused with 503.
    """

    max_rows: int = 1024
    max_bytes: int = 1 << 20
    timeout: float = 2.0
    max_batch: int = 256
    max_wait_ms: float = 2.0
    max_queue: int = 2048

    def __post_init__(self) -> None:
        """Raises InputError for what makes no sense."""
        for name in ("max_rows", "max_bytes", "timeout", "max_batch"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} must be above 0, and finite.")
        if not 0 <= self.max_wait_ms < 1000 * self.timeout:
            raise InputError(
                f"--max-wait-ms {self.max_wait_ms} must not be below 0, nor reach --timeout {self.timeout} s."
            )
        if self.max_queue < self.max_rows:
            raise InputError(f"--max-queue {self.max_queue} has no room for a request of --max-rows {self.max_rows}.")


def check_port(port: int) -> None:
    """Refuses a number that no port has.

    Raises:
      InputError: It is one.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port} is no port; give one from 0 to 65535.")
