"""The package's imports and types, as a user's program sees them."""

import json
import subprocess
import sys
from pathlib import Path

import evergrant as package
import pytest
from evergrant import temporal

PROGRAM = Path(__file__).with_name("user_program.py")
CLIENT = Path(__file__).parents[3] / "clients/python/src"


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.splitlines()}


def test_workflow_code_imports_no_http_library():
    imported = imported_by("from evergrant.temporal import TokenInbox, request_token")
    assert "temporalio" in imported
    assert not imported & {"httpx2", "stamina", "cyclopts", "rich", "pydantic"}


def test_the_client_imports_neither_temporal_nor_the_server():
    imported = imported_by("import evergrant; evergrant.Evergrant; evergrant.AsyncEvergrant")
    assert "httpx2" in imported
    assert not imported & {"temporalio", "evergrant_server", "providers", "workflows"}


@pytest.mark.parametrize("module", [package, temporal])
def test_every_public_name_can_be_imported(module):
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = module.nothing


@pytest.fixture(scope="module")
def strict_errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Pyright's errors under strict checking, for the program and for one that forgets an outcome."""
    folder = tmp_path_factory.mktemp("programs")
    whole = PROGRAM.read_text()
    handler = '        case ConsentRequired(connect_url=url):\n            return f"send alice to {url}"\n'
    assert handler in whole
    (folder / "whole.py").write_text(whole)
    (folder / "forgetful.py").write_text(whole.replace(handler, ""))
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(CLIENT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    arguments = ["--project", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run([sys.executable, "-m", "pyright", *arguments], capture_output=True, timeout=120)
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 2
    errors: dict[str, list[str]] = {"whole": [], "forgetful": []}
    for found in report["generalDiagnostics"]:
        errors[Path(found["file"]).stem].append(f"{found.get('rule')}: {found['message']}")
    return errors


def test_a_program_that_handles_every_outcome_passes_strict_checking(strict_errors: dict[str, list[str]]):
    assert strict_errors["whole"] == []


def test_strict_checking_finds_an_unhandled_outcome(strict_errors: dict[str, list[str]]):
    assert any("ConsentRequired" in error and "Never" in error for error in strict_errors["forgetful"])
