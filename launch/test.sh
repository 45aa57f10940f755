#!/usr/bin/env bash
# The tests, on a fresh machine: environment, then pytest with the given arguments.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest -q "$@"
