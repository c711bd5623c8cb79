#!/usr/bin/env bash
# Makes .venv in the repository root and installs alt-jax there, editable, with the extras given as arguments:
#
#   ./launch/setup.sh [EXTRA...]        e.g. ./launch/setup.sh dev wandb
#
# Takes the newest of python3.13, 3.12, 3.11 and python3 that runs; PYTHON=/path/to/python names another.
# Quick when nothing has changed, and safe to run again after it was killed.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"
venv=.venv
python=$venv/bin/python
constraints=launch/constraints-dev.txt
stamp=$venv/alt-jax-installed   # what the environment was made from, then one line for each installed extra
marker=$venv/alt-jax-unfinished # there while something is being installed

say() { printf '%s\n' "setup: $*" >&2; }

# Also refuses shims that stand for nothing, and distributions that ship Python without venv.
usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

minor_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    if usable "$PYTHON"; then
      printf '%s\n' "$PYTHON"
      return
    fi
    say "PYTHON=$PYTHON is not a Python 3.11 or newer with the venv module; correct it or unset it."
    return 2
  fi
  for candidate in python3.13 python3.12 python3.11 python3; do
    if usable "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  say "no Python 3.11 or newer with the venv module was found; install one (Debian, Ubuntu: python3 and" \
    "python3-venv) or name it with PYTHON=/path/to/python."
  return 2
}

# A changed dependency, a pinned tool, another Python or a moved folder makes an installation stale.
current_key() {
  local config=""
  if [[ -r $venv/pyvenv.cfg ]]; then
    config="$(grep '^version' "$venv/pyvenv.cfg" || true)"
  fi
  printf '%s | %s | %s\n' "$(cat pyproject.toml "$constraints" | cksum)" "$config" "$root"
}

has_extras() {
  local extra
  for extra in "$@"; do
    grep -qxF -- "$extra" "$stamp" || return 1
  done
}

for extra in "$@"; do
  if ! [[ $extra =~ ^[a-z]+$ ]] || ! grep -q "^$extra = \[" pyproject.toml; then
    say "there is no extra called '$extra'; pyproject.toml lists them under [project.optional-dependencies]."
    exit 2
  fi
done

# Two runs at once (demo and tests in two terminals) must not install into each other. Where there is no flock, or it
# does not work on this file system, they are simply not held apart.
if command -v flock >/dev/null 2>&1; then
  exec 9<"$root/launch/setup.sh"
  flock 9 || true
fi

if [[ -n "${PYTHON:-}" && -x $python ]]; then
  chosen="$(find_python)"
  if [[ "$(minor_version "$chosen")" != "$(minor_version "$python" 2>/dev/null || true)" ]]; then
    say "making $venv again for Python $(minor_version "$chosen")."
    rm -rf "$venv"
  fi
fi

if [[ ! -e $marker && -r $stamp && -x $python && "$(head -n 1 "$stamp")" == "$(current_key)" ]] && has_extras "$@"; then
  if "$python" -c '' 2>/dev/null; then
    exit 0
  fi
fi

# Killed installations leave packages that look whole but are not, so those are made again rather than mended.
if [[ -e $marker ]]; then
  say "an earlier installation was cut off; starting $venv again."
  rm -rf "$venv"
elif [[ -r $stamp && "$(head -n 1 "$stamp")" != *" | $root" ]]; then
  say "$venv was made in another folder; starting it again."
  rm -rf "$venv"
elif [[ -e $venv ]] && ! { usable "$python" && "$python" -c 'import pip' 2>/dev/null; }; then
  say "$venv has no working Python 3.11 or newer with pip; starting it again."
  rm -rf "$venv"
fi

if [[ ! -e $venv ]]; then
  chosen="$(find_python)"
  say "making $venv with Python $(minor_version "$chosen")."
  mkdir "$venv"
  touch "$marker"
  "$chosen" -m venv "$venv"
fi

# Extras of earlier runs stay installed; naming them again keeps them in step when a dependency changes.
extras="$({
  if [[ -r $stamp ]]; then tail -n +2 "$stamp"; fi
  if (($#)); then printf '%s\n' "$@"; fi
} | sort -u)"
target=.
if [[ -n "$extras" ]]; then
  target=".[$(paste -sd, - <<<"$extras")]"
fi

say "installing alt-jax${extras:+ with ${extras//$'\n'/, }} (a minute or a few the first time)."
trap 'exit 130' INT # pip turns Ctrl-C into an ordinary failure, which would take the marker away below
trap 'exit 143' TERM
touch "$marker"
# pip would compile every module, of which most are never imported.
if ! "$python" -m pip install --quiet --disable-pip-version-check --no-compile -c "$constraints" -e "$target"; then
  # pip undoes what it cannot finish, so an environment that worked before still does.
  if [[ -r $stamp ]]; then rm -f "$marker"; fi
  say "pip could not install alt-jax (its message is above); put that right and run this again."
  exit 1
fi
# What every command imports is compiled here, so that even the first one starts quickly.
PYTHONDONTWRITEBYTECODE='' "$python" -c 'import alt_jax.cli, alt_jax.stages, alt_jax.report.build'
{
  current_key
  if [[ -n "$extras" ]]; then printf '%s\n' "$extras"; fi
} >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$marker"
