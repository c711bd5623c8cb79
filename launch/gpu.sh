#!/usr/bin/env bash
# Runs a command on all GPUs of this host, and starts it again while it exits 75 (stopped by a signal after saving):
#
#   ./launch/gpu.sh [--dry-run] [--retries N] alt-jax pretrain CONFIG --run-dir D ...
#
# Installs alt-jax with CUDA into .venv first, where that is still to do. One process drives all GPUs, so the command
# takes no --cluster; CUDA_VISIBLE_DEVICES leaves some out. After another failure the command is started again
# N times at most (3), after exit code 2 (its input is wrong) never. SIGTERM and Ctrl-C let it save, then end this.
#
#   --dry-run   print what would be run, and run nothing
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$root/launch/steps.sh"

while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=true && shift ;;
    --retries) retries="$(count "$@")"; shift 2 ;;
    --) shift && break ;;
    -*) refuse "there is no option $1; ${0##*/} --help shows all." ;;
    *) break ;;
  esac
done
(($#)) || refuse "give the command to run, e.g. ./launch/gpu.sh alt-jax pretrain configs/movielens_1m.py --run-dir runs/pretrain."

if ! $dry_run; then
  need nvidia-smi "install NVIDIA's driver, or run the command without this script."
  nvidia-smi -L >&2 || refuse "nvidia-smi -L found no GPU that works; its message is above."
fi
run "$root/launch/setup.sh" cuda

if [[ $1 == alt-jax ]]; then set -- "$root/.venv/bin/alt-jax" "${@:2}"; fi
# Without JAX_PLATFORMS it goes on with the CPU, slowly, where JAX cannot use the GPUs.
command=(env "JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}" "$@")
if $dry_run; then
  run "${command[@]}"
  exit
fi
while :; do
  code=0
  retried "${command[@]}" || code=$?
  if ((code != 75)) || $stopping; then exit "$code"; fi
  say "it stopped after saving; starting it again."
  pause
done
