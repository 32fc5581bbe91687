"""The types are right: a user's program that handles every outcome passes pyright's strict mode."""

import asyncio
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from evergrant import Evergrant

from tests.unit.client.scripted_evergrant import LINK, ScriptedEvergrant, consent_required, lease, problem
from tests.unit.client.user_program import outcome

PROGRAM = Path(__file__).with_name("user_program.py")
CLIENT = Path(__file__).parents[3] / "clients/python/src"


def checked(folder: Path, program: str) -> list[str]:
    """What pyright finds wrong in `program` under strict checking."""
    (folder / "program.py").write_text(program)
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(CLIENT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    arguments = ["--project", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run([sys.executable, "-m", "pyright", *arguments], capture_output=True, timeout=120)
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return [f"{it.get('rule')}: {it['message']}" for it in report["generalDiagnostics"]]


def test_it_passes_strict_checking(tmp_path: Path):
    assert checked(tmp_path, PROGRAM.read_text()) == []


def test_a_forgotten_outcome_is_found(tmp_path: Path):
    whole = PROGRAM.read_text()
    forgetful = whole.replace(
        '        case ConsentRequired(connect_url=url):\n            return f"send alice to {url}"\n', ""
    )
    assert forgetful != whole
    assert any("ConsentRequired" in it and "Never" in it for it in checked(tmp_path, forgetful))


async def test_it_runs(evergrant: ScriptedEvergrant):
    route = "POST /v1/lease"
    with Evergrant(evergrant.url, "key", cache_leases_for=timedelta(0)) as client:
        evergrant.script(route, lease())
        assert "until 2030" in await asyncio.to_thread(outcome, client)
        evergrant.script(route, consent_required())
        assert await asyncio.to_thread(outcome, client) == f"send alice to {LINK}"
        evergrant.script(route, problem(403, "Denied", "not_permitted"))
        assert await asyncio.to_thread(outcome, client) == "permit admin"
