"""How the tests compile: quickly, and each program once for all workers, all processes that they start, all runs."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

_FLAG = "jax_disable_most_optimizations"


def environment(devices: int, threads: int = 8) -> dict[str, str]:
    """Variables with which a process has so many devices, compiles as the tests do and keeps its programs with theirs.

    Compiling is all there is to wait for in tiny models. Without most of XLA's optimisations it takes half as long,
    and without its emitters of fused loops, for which XLA had a flag until JAX 0.11, a quarter.
    """
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        _FLAG.upper(): "true",
        "NPROC": str(threads),  # that XLA takes itself to have, by which it cuts sums; never fewer than devices
        "JAX_COMPILATION_CACHE_DIR": str(folder(threads)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def folder(threads: int = 8) -> Path:
    """Where compiled programs are kept; JAX's own keys tell its versions and flags apart, but not the processors."""
    kept = os.environ.get("ALT_JAX_TEST_PROGRAMS") or Path(__file__).parents[1] / ".cache" / "programs"
    return Path(kept).absolute() / hashlib.sha256(_processor().encode()).hexdigest()[:12] / str(threads)


def _processor() -> str:
    """What the machine can run: a program may use any instruction that there is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def in_one_context() -> None:
    """JAX makes an MLIR context, of a few milliseconds, for every program; here all programs of a process share one."""
    from jax._src.interpreters import mlir

    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


@contextlib.contextmanager
def optimised() -> Iterator[None]:
    """Compiles with XLA's optimisations meanwhile, for what they decide, such as how much memory a program takes.

    They change the last bits of a result, and what JAX keeps compiled does not know with which flag it was: programs
    of the other kind are dropped.
    """
    import jax

    jax.config.update(_FLAG, False)
    jax.clear_caches()
    try:
        yield
    finally:
        jax.config.update(_FLAG, True)
        jax.clear_caches()
