"""A server of another major version gives one clear error, whatever it answered."""

import tomllib
from pathlib import Path

import pytest
from evergrant import ProtocolError
from evergrant.replies import SERVER_MAJOR

from evergrant_server.api.app import VERSION
from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, lease, problem

ROUTE = "POST /v1/lease"
PROJECT = Path(__file__).parents[3] / "clients/python/pyproject.toml"


def saying(version: str, answer: ScriptedResponse) -> ScriptedResponse:
    return ScriptedResponse(answer.status, answer.body, {"evergrant-version": version}, answer.content_type)


@pytest.mark.parametrize(
    "answer", [lease(), ScriptedResponse(200, {"grant": "new shape"}), problem(409, "NewKind", "new_code")]
)
async def test_another_major_version(caller: Caller, evergrant: ScriptedEvergrant, answer: ScriptedResponse):
    evergrant.script(ROUTE, saying("7.2.0", answer))
    with pytest.raises(ProtocolError) as refused:
        await caller.call("lease", "crm", "alice")
    assert refused.value.code == "version_mismatch"
    assert "7.2.0" in refused.value.detail
    assert "evergrant==7.*" in refused.value.repair
    assert len(evergrant.seen) == 1


@pytest.mark.parametrize("version", [VERSION, f"{SERVER_MAJOR}.99.0", "unreadable", ""])
async def test_the_same_major_version_and_an_unreadable_one(
    caller: Caller, evergrant: ScriptedEvergrant, version: str
):
    evergrant.script(ROUTE, saying(version, lease()))
    assert (await caller.call("lease", "crm", "alice")).generation == 7


def test_client_and_server_have_one_major_version():
    ours = tomllib.loads(PROJECT.read_text())["project"]["version"]
    assert {VERSION.partition(".")[0], ours.partition(".")[0]} == {str(SERVER_MAJOR)}
