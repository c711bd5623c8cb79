#!/usr/bin/env bash
# Runs a command on this machine so that it outlives the connection that started it, and follows what it writes:
#
#   ./launch/attach.sh COMMAND ...     start it, or attach to it where it is running already; its exit code
#   ./launch/attach.sh --stop          SIGTERM to what is running, which lets it save, and wait for its end
#
# tpu_vm.sh calls it on every worker: a connection that breaks, and that gcloud makes again, must not start a second
# training beside the first. One command at a time; another one is refused (exit code 69). Everything it writes is in
# ~/.alt-jax/log. `alt-jax` is that of .venv beside this folder, whose root is where the command runs.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$root/launch/steps.sh"
state=$HOME/.alt-jax # lock (held while it runs) · command · pid · code · log
mkdir -p "$state"

running() { ! flock --nonblock "$state/lock" true; }

case ${1:-} in
  -h | --help) usage && exit ;;
  "") refuse "give the command to run." ;;
  --stop)
    running || refuse "nothing is running here."
    kill -TERM "$(cat "$state/pid")"
    flock "$state/lock" true
    exit ;;
esac

# What the background part does, holding the lock: `supervised` passes SIGTERM on to the command.
work() {
  local code=0
  cd "$root"
  if [[ $1 == alt-jax ]]; then set -- "$root/.venv/bin/alt-jax" "${@:2}"; fi
  supervised "$@" || code=$?
  printf '%s\n' "$code" >"$state/code"
}

touch "$state/lock" "$state/log"
exec 9<>"$state/lock"
if flock --nonblock 9; then
  rm -f "$state/code"
  quoted "$@" >"$state/command"
  : >"$state/log"
  set -m # a process group of its own: what ends the connection does not reach it
  work "$@" >>"$state/log" 2>&1 </dev/null &
  printf '%s\n' "$!" >"$state/pid"
  set +m
elif [[ "$(cat "$state/command")" != "$(quoted "$@")" ]]; then
  say "another command is running here: $(cat "$state/command"); ./launch/attach.sh --stop stops it."
  exit 69 # not 2: the command itself may be right
else
  say "it is running already; following it."
fi
exec 9>&-

tail --lines=+1 --follow --sleep-interval=0.2 --pid="$(cat "$state/pid")" "$state/log"
flock "$state/lock" true
[[ -r $state/code ]] || { say "it was killed; ~/.alt-jax/log is what it wrote." && exit 137; }
exit "$(cat "$state/code")"
