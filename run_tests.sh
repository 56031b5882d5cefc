#!/usr/bin/env bash
# Install the test dependencies and run the fast tests. Arguments go to pytest: ./run_tests.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/setup.sh"
setup dev
cd "$root"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # pytest runs two processes, each with one thread
exec "$venv/bin/python" -m pytest "$@"
