#!/usr/bin/env bash
# Installs alt-jax into .venv where that is still to do, then runs `alt-jax demo` with the arguments given here.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
"$root/launch/setup.sh"
exec "$root/.venv/bin/alt-jax" demo "$@"
