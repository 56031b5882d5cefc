#!/usr/bin/env bash
# Install what the tests need and run the fast ones; arguments go to pytest: ./run_tests.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/setup.sh"
setup dev
cd "$root"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two processes test side by side, each with one thread
exec "$venv/bin/python" -m pytest "$@"
