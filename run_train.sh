#!/usr/bin/env bash
# Train. The first call installs all packages: ./run_train.sh --demo
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/setup.sh"
setup run
exec "$venv/bin/python" "$root/train.py" "$@"
