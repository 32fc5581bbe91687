"""What importing parts of the client brings in."""

import subprocess
import sys

import evergrant
import pytest
from evergrant import temporal


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.splitlines()}


def test_workflow_code_brings_in_no_http_library():
    brought = imported_by("from evergrant.temporal import TokenInbox, request_token")
    assert "temporalio" in brought
    assert not brought & {"httpx2", "stamina", "cyclopts", "rich", "pydantic"}


def test_the_client_brings_in_neither_temporal_nor_the_server():
    brought = imported_by("import evergrant; evergrant.Evergrant; evergrant.AsyncEvergrant")
    assert "httpx2" in brought
    assert not brought & {"temporalio", "evergrant_server", "providers", "workflows"}


@pytest.mark.parametrize("module", [evergrant, temporal])
def test_every_public_name_is_there(module):
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = module.nothing
