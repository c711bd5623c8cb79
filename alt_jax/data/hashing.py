"""The hash of a string that is the same in every process, on every machine and in every version."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64


def hashes(strings: Sequence[str], seed: int = 0) -> UInt64[np.ndarray, " V"]:
    """BLAKE2b (RFC 7693) of each string in UTF-8: a digest of 8 bytes, read as a little-endian number.

    Args:
      strings: To be hashed.
      seed: The salt, 16 bytes, little-endian.
    """
    salt = seed.to_bytes(16, "little")
    digests = [hashlib.blake2b(string.encode(), digest_size=8, salt=salt).digest() for string in strings]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64, copy=False)
