"""The JSON Schema for editors accepts the catalogue and rejects mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import DOCS
from providers.definition.registry import CATALOG
from tests.unit.providers.definition.test_schema import MINIMAL

CHECK = Path(sys.executable).parent / "check-jsonschema"
SCHEMA = DOCS / "reference" / "provider.schema.json"
MISTAKES = ("acess_token: x", "pkce: plain", "auth_modes: [password]", "response: {expires: x}", "version: 0")


def checked(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [CHECK, "--schemafile", SCHEMA, *files]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_json_schema_accepts_the_catalogue() -> None:
    told = checked(*sorted(CATALOG.glob("*.yaml")))
    assert told.returncode == 0, told.stdout


def test_json_schema_rejects_mistakes(tmp_path: Path) -> None:
    files = []
    for number, line in enumerate(MISTAKES):
        kept = [kept for kept in MINIMAL.splitlines() if kept.split(":")[0] != line.split(":")[0]]
        files.append(tmp_path / f"mistake{number}.yaml")
        files[-1].write_text("\n".join([*kept, line]))
    told = checked(*files)
    assert told.returncode == 1
    for file in files:
        if file.name not in told.stdout:
            pytest.fail(f"{file.name} was taken: {told.stdout}")
