#!/usr/bin/env bash
# Divides a study among several machines, which share the folder of its runs:
#
#   ./launch/sweep.sh slurm --tasks N [options of sbatch]        -- alt-jax ablate CONFIG --study S --run-dir D ...
#   ./launch/sweep.sh tpu   --tasks N --name NAME [options of tpu_queued.sh] -- alt-jax ablate ... --run-dir /mnt/D
#
# Each of N tasks runs the command with `--task I/N`. `slurm` submits one job array; `tpu` asks for N TPUs, NAME-0 to
# NAME-(N-1), waits for all of them and writes what they say to sweep-NAME-I.log. Started again, what is finished is not
# repeated. When all is done, `alt-jax ablate` without --task writes the table of the whole study.
#
#   --dry-run   print what would be run, and run nothing
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$root/launch/steps.sh"

place=${1:-}
case $place in
  -h | --help) usage && exit ;;
  slurm | tpu) shift ;;
  "") refuse "say where: slurm or tpu." ;;
  *) refuse "there is no '$place': slurm or tpu." ;;
esac
tasks=0 name="" options=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=true && shift ;;
    --tasks) tasks="$(count "$@")"; shift 2 ;;
    --name)
      if [[ $place == slurm ]]; then refuse "--name is for tpu; a Slurm job's is --job-name."; fi
      name="$(value "$@")"
      shift 2
      ;;
    --) break ;;
    *) options+=("$1") && shift ;;
  esac
done
(($#)) || refuse "put -- before the command, e.g. -- alt-jax ablate CONFIG --study losses --run-dir D."
shift
((tasks > 0)) || refuse "say among how many machines: --tasks N."
if [[ ${1:-} != alt-jax || ${2:-} != ablate ]]; then refuse "the command should be alt-jax ablate ..., not '${*:1:2}'."; fi
if [[ " $* " =~ \ --task[\ =] ]]; then refuse "leave --task out of the command: every machine gets its own."; fi

if [[ $place == slurm ]]; then
  $dry_run || need sbatch "this is for a machine that submits to Slurm."
  cd "$root"
  run sbatch --array="0-$((tasks - 1))" --nodes=1 ${options[@]+"${options[@]}"} launch/slurm.sbatch --tasks "$tasks" "$@"
  exit
fi

[[ -n $name ]] || refuse "give the TPUs a name: --name NAME."
workers=()
set -m # a process group for each, so that a signal reaches all that it started
for ((i = 0; i < tasks; i++)); do
  command=("$root/launch/tpu_queued.sh" --name "$name-$i" ${options[@]+"${options[@]}"} -- "$@" --task "$i/$tasks")
  if $dry_run; then
    run "${command[@]}"
  else
    "${command[@]}" >"sweep-$name-$i.log" 2>&1 </dev/null &
    workers+=("$!")
    say "$name-$i: sweep-$name-$i.log"
  fi
done
if $dry_run; then exit; fi

# shellcheck disable=SC2329  # the trap below calls it
stop() {
  local worker
  for worker in "${workers[@]}"; do kill -TERM -- "-$worker" 2>/dev/null || true; done
  say "stopped watching; the TPUs are left as they are, and cost (see the logs)."
  exit 143
}
trap stop INT TERM
worst=0
for i in "${!workers[@]}"; do
  code=0
  wait "${workers[$i]}" || code=$?
  say "$name-$i: exit code $code"
  if ((code > 0 && worst != 2)); then worst=$code; fi # bad input says most: all of them have the same
done
exit "$worst"
