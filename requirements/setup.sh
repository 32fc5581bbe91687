#!/usr/bin/env bash
# Makes the virtual environment if there is none, then installs one lock file and the client.
#
#   bash requirements/setup.sh VENV LOCK [alone]
#
# `alone` leaves out the client, what builds it, and the bytecode.
# Every file that pip takes is checked against its hash; nothing is built from source but our own client.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
lock=$2
oldest=11  # Python 3.11

say() { printf '%s\n' "$*" >&2; }

suits() { "$1" -c "import sys; sys.exit(sys.version_info < (3, $oldest))" 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && suits "$name"; then
            command -v "$name"
            return
        fi
    done
    say "Evergrant needs Python 3.$oldest or newer, and none was found on PATH."
    say "  Debian, Ubuntu:  sudo apt install python3 python3-venv"
    say "  macOS:           brew install python3"
    say "Or name one:       make PYTHON=/path/to/python3 …"
    exit 1
}

make_venv() {
    local python version
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "==> $venv with Python $version ($python)"
    rm -rf "$venv"
    if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif command -v virtualenv >/dev/null; then
        virtualenv --quiet --python "$python" "$venv"
    else
        say "This Python comes without its venv module, and virtualenv isn't installed either."
        say "  Debian, Ubuntu:  sudo apt install python$version-venv"
        exit 1
    fi
}

# One line for every tenth package on its way, so that a slow download can be told from a hang.
progress() {
    local line total seen=0
    total=$(cat "$lock" requirements/build.txt | grep -c '^[a-zA-Z0-9]')
    while IFS= read -r line; do  # not awk: Debian's waits for 4 kB of input
        case $line in
            Collecting* | "Requirement already satisfied"*)
                seen=$((seen + 1))
                if ((seen % 10 == 0)); then say "    $seen of up to $total"; fi
                ;;
            "Installing collected packages"*) say "    unpacking" ;;
        esac
    done
}

if ! suits "$venv/bin/python"; then
    make_venv
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then  # made without pip, or cut short
    "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || make_venv
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

if [ "${3:-}" = alone ]; then
    say "==> packages of $lock, checked against their hashes"
    pip install --quiet --require-hashes --only-binary=:all: -r "$lock"
    exit
fi
say "==> packages of $lock, checked against their hashes"
pip install --require-hashes --only-binary=:all: --progress-bar off \
    -r "$lock" -r requirements/build.txt | progress
say "==> the client, and bytecode"
pip install --quiet --no-deps --no-build-isolation -e clients/python
# else three processes of the first `make dev` each do it, at the same time
"$venv/bin/python" -m compileall -q -j 2 evergrant_server workflows activities providers worker.py clients/python/src
say "==> ready"
