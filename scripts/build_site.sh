#!/usr/bin/env bash
# Build the documentation site into build/site. A warning of mkdocs, such as a broken link, is an error.
# The packages of the extra `docs` go into an environment of their own, because lorafit itself is not needed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
env=build/site-env
packages="$(sed -n 's/^docs = \[\(.*\)\].*/\1/p' pyproject.toml | tr -d '",')"
if [ "$(cat "$env/.packages" 2>/dev/null)" != "$packages" ]; then
  find_python
  "$python" -m venv --clear "$env"
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check $packages
  printf '%s' "$packages" >"$env/.packages"
fi
exec "$env/bin/python" -m mkdocs build --strict "$@"
