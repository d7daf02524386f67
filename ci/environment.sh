# Sourced by the scripts beside it: makes a virtual environment and installs this package into it.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# find_python: prints an interpreter of at least 3.11
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python of version 3.11 or later is on PATH; set PYTHON to one"
}

# make_environment FOLDER WHAT...: a virtual environment with the requirements WHAT
make_environment() {
    local folder=$1
    shift
    if [ ! -x "$folder/bin/python" ]; then
        "$(find_python)" -m venv "$folder" ||
            die "python -m venv failed (on Debian: apt-get install python3-venv)"
    fi
    "$folder/bin/python" -m pip install --quiet "$@" || die "pip could not install: $*"
}
