"""The clients' calls for integrations and a tenant's own providers, and the commands for them."""

import asyncio
import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from evergrant import BadRequest
from evergrant.administration import Finding, Integration
from evergrant.cli import main

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, problem

SECRET = "canary-client-secret"
MEMBERS = {"provider": "gitlab", "client_id": "c-1", "client_secret": SECRET}


def an_integration(**changes: Any) -> dict[str, Any]:
    return {
        "id": "int_1",
        "name": "crm",
        "provider": "gitlab",
        "client_id": "c-1",
        "state": "ready",
        "problem": None,
        "redirect_uri": "https://e/oauth/callback/int_1",
        "previous_secret_until": None,
        "secret_refused_at": None,
        "a_later_member": True,
        **changes,
    }


def a_version(**changes: Any) -> dict[str, Any]:
    return {
        "name": "acme-crm",
        "version": 1,
        "state": "waiting",
        "share": 0,
        "findings": [{"check": "hosts", "level": "warning", "detail": "a new host"}],
        "good": 0,
        "bad": 0,
        "proposed_by": "app:ops",
        "decided_by": None,
        "reason": None,
        **changes,
    }


async def test_an_integration_is_put_read_and_deleted(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("PUT /v1/integrations/crm", ScriptedResponse(201, an_integration()))
    evergrant.script("GET /v1/integrations/crm", ScriptedResponse(200, an_integration()))
    evergrant.script(
        "GET /v1/integrations", ScriptedResponse(200, {"items": [an_integration()], "next_cursor": None})
    )
    evergrant.script("DELETE /v1/integrations/crm", ScriptedResponse(204, ""))
    made = await caller.call("put_integration", "crm", **MEMBERS)
    assert isinstance(made, Integration)
    assert made.members["a_later_member"] is True
    assert evergrant.seen[0].body == MEMBERS
    assert (await caller.call("integration", "crm")).redirect_uri.endswith("/int_1")
    assert [it.name for it in await caller.list("integrations")] == ["crm"]
    assert await caller.call("delete_integration", "crm") is None


async def test_a_rotation_and_its_way_back(caller: Caller, evergrant: ScriptedEvergrant):
    until = "2030-01-01T00:00:00Z"
    answers = [
        ScriptedResponse(200, an_integration(previous_secret_until=until)),
        ScriptedResponse(200, an_integration()),
    ]
    evergrant.script("POST /v1/integrations/crm/rotate-secret", *answers)
    rotated = await caller.call("rotate_client_secret", "crm", SECRET, overlap=timedelta(hours=1))
    assert rotated.previous_secret_until is not None
    assert evergrant.seen[0].body == {"client_secret": SECRET, "overlap_s": 3600}
    assert "idempotency-key" in evergrant.seen[0].headers
    await caller.call("roll_client_secret_back", "crm")
    assert evergrant.seen[1].body == {"roll_back": True}


async def test_a_provider_is_proposed_and_decided(caller: Caller, evergrant: ScriptedEvergrant):
    at = "/v1/providers/acme-crm"
    evergrant.script("POST /v1/providers", ScriptedResponse(201, a_version(state="checking")))
    evergrant.script(
        f"GET {at}/versions", ScriptedResponse(200, {"items": [a_version()], "next_cursor": None})
    )
    evergrant.script(f"POST {at}/approve", ScriptedResponse(200, a_version(decided_by="app:admin")))
    evergrant.script(f"POST {at}/reject", problem(400, "BadRequest", "invalid_request", field="version"))
    evergrant.script(f"POST {at}/roll-back", ScriptedResponse(200, a_version(state="staged", share=0.05)))
    proposed = await caller.call("propose_provider", {"name": "acme-crm"}, rollout={"stage_s": 60})
    assert proposed.state == "checking"
    assert evergrant.seen[0].body == {"definition": {"name": "acme-crm"}, "rollout": {"stage_s": 60}}
    (found,) = await caller.list("provider_versions", "acme-crm")
    assert found.findings == (Finding("hosts", "warning", "a new host"),)
    assert (await caller.call("approve_provider", "acme-crm", 1)).decided_by == "app:admin"
    with pytest.raises(BadRequest):
        await caller.call("reject_provider", "acme-crm", 1, "no")
    assert (await caller.call("roll_provider_back", "acme-crm", 1, "tickets")).share == 0.05
    assert evergrant.seen[-1].body == {"version": 1, "reason": "tickets"}


@pytest.fixture
def run(evergrant: ScriptedEvergrant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("EVERGRANT_URL", evergrant.url)
    monkeypatch.setenv("EVERGRANT_API_KEY", "evg_key_canary")

    async def run(*arguments: str) -> tuple[int, str, str]:
        def command() -> int:
            with pytest.raises(SystemExit) as ended:
                main([*arguments])
            return int(ended.value.code or 0)

        status = await asyncio.to_thread(command)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


async def test_a_secret_comes_from_a_file_or_the_standard_input_alone(
    evergrant: ScriptedEvergrant, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    evergrant.script("PUT /v1/integrations/crm", ScriptedResponse(201, an_integration()))
    evergrant.script("POST /v1/integrations/crm/rotate-secret", ScriptedResponse(200, an_integration()))
    put = ("integrations", "put", "crm", "--provider", "gitlab", "--client-id", "c-1", "--param", "a=b=c")
    status, out, _ = await run(*put, "--client-secret-file", str(file), "--scope", "read", "-o", "json")
    assert (status, json.loads(out)["redirect_uri"]) == (0, "https://e/oauth/callback/int_1")
    assert evergrant.seen[0].body == {**MEMBERS, "params": {"a": "b=c"}, "default_scopes": ["read"]}
    monkeypatch.setattr("sys.stdin", io.StringIO(SECRET))
    rotate = ("integrations", "rotate-secret", "crm", "--client-secret-file", "-", "--overlap", "60")
    assert (await run(*rotate))[0] == 0
    assert evergrant.seen[1].body == {"client_secret": SECRET, "overlap_s": 60}


async def test_a_definition_comes_from_a_file(evergrant: ScriptedEvergrant, run: Any, tmp_path: Path):
    file = tmp_path / "acme.json"
    file.write_text('{"name": "acme-crm"}')
    evergrant.script("POST /v1/providers", ScriptedResponse(201, a_version(state="checking")))
    evergrant.script("POST /v1/providers/acme-crm/approve", ScriptedResponse(200, a_version(approved=True)))
    status, out, _ = await run("providers", "propose", str(file))
    assert status == 0
    assert "hosts: warning: a new host" in out
    assert (await run("providers", "approve", "acme-crm", "1"))[0] == 0


async def test_without_a_word_providers_lists_the_catalogue(evergrant: ScriptedEvergrant, run: Any):
    evergrant.script("GET /v1/providers", ScriptedResponse(200, {"items": [], "next_cursor": None}))
    assert (await run("providers", "-o", "json"))[0] == 0
    assert (await run("providers", "ls", "-o", "json"))[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("providers", "propose", "/nowhere/acme.json"),
        ("providers", "propose", "pyproject.toml"),
        ("integrations", "put", "crm", "--provider", "gitlab", "--client-id", "c", "--param", "a"),
        ("integrations", "rotate-secret", "crm", "--client-secret-file", "/nowhere/secret"),
    ],
)
async def test_what_can_not_be_read_is_said_in_one_line(run: Any, arguments: tuple[str, ...]):
    status, out, err = await run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("evergrant: ")
    assert "Traceback" not in err
