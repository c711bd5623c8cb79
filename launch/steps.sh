# shellcheck shell=bash
# What the launch scripts share; sourced, not run. The comment at the top of a script is its usage.

dry_run=false
retries=3      # how often a command is started again after a failure
stopping=false # whether somebody asked this script to stop

say() { printf '%s\n' "${0##*/}: $*" >&2; }

refuse() {
  say "$*"
  exit 2
}

usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# The value of an option: value "$@", where the option is $1.
value() {
  if (($# < 2)) || [[ -z $2 || $2 == --* ]]; then refuse "$1 needs a value; ${0##*/} --help shows how."; fi
  printf '%s\n' "$2"
}

count() {
  local number
  number="$(value "$@")" || return
  [[ $number =~ ^[0-9]+$ ]] || refuse "$1 $number is not a whole number."
  printf '%s\n' "$((10#$number))"
}

need() { command -v "$1" >/dev/null 2>&1 || refuse "$1 was not found; $2"; }

# A command as one line that a shell reads back as the same words.
quoted() {
  local word line="" quote="'\\''"
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_@%+=:,./-]*) word=\'${word//\'/"$quote"}\' ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Runs a command; in a dry run, prints it.
run() {
  if $dry_run; then quoted "$@"; else "$@"; fi
}

pause() { sleep "${ALT_JAX_PAUSE:-10}"; }

# Runs a command and returns its exit code. SIGTERM and Ctrl-C reach it as SIGTERM, so that it saves before it stops.
supervised() {
  local child="" code signalled=false
  trap 'signalled=true; stopping=true; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' INT TERM
  "$@" &
  child=$!
  if $signalled; then kill -TERM "$child" 2>/dev/null || true; fi # it came before there was a child to pass it on to
  while :; do
    signalled=false code=0
    wait "$child" || code=$?
    if ! $signalled; then break; fi # a signal cuts `wait` short
  done
  trap - INT TERM
  return "$code"
}

# Runs a command, and again where it failed, $retries times at most. What starting again cannot help is not a failure:
# 0 done, 2 bad input, 75 stopped after saving, 126 and 127 no such command.
retried() {
  local code failures=0
  while :; do
    code=0
    supervised "$@" || code=$?
    case $code in 0 | 2 | 75 | 126 | 127) return "$code" ;; esac
    if $stopping || ((failures >= retries)); then
      say "exit code $code; not started again."
      return "$code"
    fi
    failures=$((failures + 1))
    say "exit code $code; starting it again ($failures of $retries)."
    pause
  done
}
