#!/usr/bin/env bash
# A Cloud TPU VM, or a slice of several, from nothing to a finished run:
#
#   ./launch/tpu_vm.sh create  --name NAME [--type v5litepod-8] [--version v2-alpha-tpuv5-lite] [--spot]
#   ./launch/tpu_vm.sh install --name NAME [--mount COMMAND]      this code and jax[tpu], on all workers
#   ./launch/tpu_vm.sh send    --name NAME data/PREPARED          a file or folder of here, to all workers
#   ./launch/tpu_vm.sh run     --name NAME [--worker I] alt-jax pretrain CONFIG --run-dir runs/D ...
#   ./launch/tpu_vm.sh stop    --name NAME                        lets what runs save, and waits for its end
#   ./launch/tpu_vm.sh fetch   --name NAME runs/D                 a file or folder of the first worker's, to here
#   ./launch/tpu_vm.sh delete  --name NAME
#   ./launch/tpu_vm.sh all     --name NAME [options of create and install] [--send PATH] alt-jax pretrain ...
#
# `all` does one after the other, and fetches the folder after --run-dir. Where a step fails, the VM stays, and costs.
# A path that is sent or fetched is relative, and the same on both sides: in the root of the repository here, in
# ~/alt-jax there, which is also where commands run. A command outlives a connection that breaks or is ended with Ctrl-C;
# the same `run` attaches to it again. Its exit code is that of `run`: 75 if it was stopped after saving.
#
#   --zone Z --project P   gcloud's own settings count otherwise (gcloud config set compute/zone Z)
#   --mount COMMAND        run on every worker at the end of install, e.g. to mount storage that all of them see
#   --spot                 cheaper, and may be taken away at any time: rather use tpu_queued.sh
#   --worker I             run on that worker alone (all): e.g. `alt-jax prepare` into storage that all of them see
#   --dry-run              print what would be run, and run nothing
#
# A slice of several hosts (v5litepod-16 and larger) needs `--cluster auto` in the command, and --run-dir and --data.dir
# on storage that all of them see.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$root/launch/steps.sh"

name="" type=v5litepod-8 version=v2-alpha-tpuv5-lite zone="" project="" mount="" sent="" worker=all spot=false
action=${1:-}
case $action in
  -h | --help) usage && exit ;;
  create | install | send | run | stop | fetch | delete | all) shift ;;
  "") refuse "say what to do: create, install, send, run, stop, fetch, delete or all." ;;
  *) refuse "there is no '$action': create, install, send, run, stop, fetch, delete or all." ;;
esac
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=true && shift ;;
    --spot) spot=true && shift ;;
    --name) name="$(value "$@")"; shift 2 ;;
    --type) type="$(value "$@")"; shift 2 ;;
    --version) version="$(value "$@")"; shift 2 ;;
    --zone) zone="$(value "$@")"; shift 2 ;;
    --project) project="$(value "$@")"; shift 2 ;;
    --mount) mount="$(value "$@")"; shift 2 ;;
    --send) sent="$(value "$@")"; shift 2 ;;
    --worker) worker="$(count "$@")"; shift 2 ;;
    --) shift && break ;;
    -*) refuse "there is no option $1; ${0##*/} --help shows all." ;;
    *) break ;;
  esac
done

[[ -n $name ]] || refuse "give the TPU VM a name: --name NAME."
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  refuse "--name '$name' should be small letters, digits and hyphens, and begin with a letter."
relative() {
  [[ -n $1 ]] || refuse "say what to $action: a path in the root of the repository, e.g. runs/pretrain."
  case /$1/ in //* | */../* | */-*) refuse "$1 should be a path in the root of the repository, e.g. runs/pretrain." ;; esac
  printf '%s\n' "${1%/}"
}
case $action in
  run | all) (($#)) || refuse "give the command to run after the options, e.g. alt-jax pretrain CONFIG --run-dir runs/D." ;;
  send | fetch)
    path="$(relative "${1:-}")"
    (($# == 1)) || refuse "$action takes one path, not $#."
    if [[ $action == send ]]; then sent=$path; fi
    ;;
  *) (($# == 0)) || refuse "$action takes no '$1'." ;;
esac
if [[ -n $sent ]]; then
  sent="$(relative "$sent")"
  [[ -e $root/$sent ]] || refuse "$sent does not exist in $root."
fi
$dry_run || need gcloud "install the Google Cloud CLI."

tpu() { # VERB ARGUMENTS...
  run gcloud compute tpus tpu-vm "$@" ${zone:+--zone="$zone"} ${project:+--project="$project"}
}

on_workers() { # WHICH COMMAND: one string, for the shell there. A dead host is noticed after two minutes.
  tpu ssh "$name" --worker="$1" --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 --command="$2"
}

create() {
  local arguments=("$name" --accelerator-type="$type" --version="$version")
  if $spot; then arguments+=(--spot); fi
  tpu create "${arguments[@]}"
}

# shellcheck disable=SC2016  # a script for the workers; the images' own Python may be older than 3.11, so uv brings one
remote_install='mkdir -p ~/.alt-jax && exec 9>>~/.alt-jax/lock
if ! flock --nonblock 9; then echo "a command is running: its installation stays" >&2; exit 0; fi
set -e
mkdir -p ~/alt-jax && cd ~/alt-jax
rm -rf alt_jax configs launch
tar -xzf ~/alt-jax.tar.gz
export PATH="$HOME/.local/bin:$HOME/.alt-jax/uv/bin:$PATH"
command -v uv >/dev/null || python3 -m pip install --quiet --target ~/.alt-jax/uv --no-deps --require-hashes \
  --only-binary=:all: -r launch/uv.txt
uv python install 3.12
PYTHON="$(uv python find 3.12)" ./launch/setup.sh tpu'

install() {
  local folder="${XDG_CACHE_HOME:-$HOME/.cache}/alt-jax/launch"
  run mkdir -p "$folder"
  run tar -czf "$folder/$name.tar.gz" --exclude=__pycache__ -C "$root" \
    alt_jax configs launch pyproject.toml README.md LICENSE
  tpu scp "$folder/$name.tar.gz" "$name:alt-jax.tar.gz" --worker=all
  on_workers all "$remote_install"
  if [[ -n $mount ]]; then on_workers all "$mount"; fi
}

send() { # PATH
  local parent
  parent="$(dirname "$1")"
  on_workers all "mkdir -p $(quoted "alt-jax/$parent")"
  tpu scp --recurse "$root/$1" "$name:alt-jax/$parent/" --worker=all
}

fetch() { # PATH
  run mkdir -p "$root/$(dirname "$1")"
  tpu scp --recurse "$name:alt-jax/$1" "$root/$(dirname "$1")/" --worker=0
}

# Without JAX_PLATFORMS it goes on with the CPU, slowly, where JAX cannot use the TPU.
attach() { on_workers "$worker" "JAX_PLATFORMS=tpu,cpu alt-jax/launch/attach.sh $(quoted "$@")"; }

delete() { tpu delete "$name" --quiet; }

run_dir() { # of a command
  while (($#)); do
    case $1 in
      --run-dir=*) printf '%s\n' "${1#*=}" && return ;;
      --run-dir) printf '%s\n' "${2:-}" && return ;;
    esac
    shift
  done
}

case $action in
  create | install | delete) "$action" ;;
  send | fetch) "$action" "$path" ;;
  stop) on_workers all "alt-jax/launch/attach.sh --stop" ;;
  run) attach "$@" ;;
  all)
    folder="$(run_dir "$@")"
    if [[ -n $folder && $folder != /* ]]; then folder="$(relative "$folder")"; else folder=""; fi
    create
    left="$name exists and costs; go on with the steps that are missing, then ./launch/tpu_vm.sh delete --name $name."
    trap 'say "$left"' EXIT
    install
    if [[ -n $sent ]]; then send "$sent"; fi
    attach "$@"
    if [[ -n $folder ]]; then fetch "$folder"; fi
    delete
    trap - EXIT
    ;;
esac
