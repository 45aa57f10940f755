# Sourced by the other scripts: goes to the checkout, makes .venv when it is missing or pyproject.toml has changed since,
# and puts it first on PATH. Needs Python 3.11 or newer and pip.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/installed
if ! cmp -s pyproject.toml "$stamp"; then
    [ -x .venv/bin/python ] || "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv .venv
    # torch first and alone: whatever follows then finds the version that is there
    .venv/bin/python -m pip install --quiet "torch==${TORCH_VERSION:-2.13.0}"
    .venv/bin/python -m pip install --quiet -e '.[dev,data,import]'
    cp pyproject.toml "$stamp"
fi
PATH="$PWD/.venv/bin:$PATH"
export PATH
# One thread per process: the processes share the cores. Large malloc thresholds make decoding of images 2-3 times faster.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=67108864
