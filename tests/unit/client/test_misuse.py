"""A program that uses the client wrongly is told what to write; no frame of another library hides it."""

import asyncio
import socket
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from evergrant import AsyncEvergrant, BadRequest, Evergrant, Unreachable
from evergrant.temporal import request_token
from evergrant.webhooks import verify
from temporalio.exceptions import ApplicationError

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, consent_required, lease, problem

WRONG: Any = 5  # of a type that no checker would accept


async def test_a_number_is_no_time(caller: Caller, evergrant: ScriptedEvergrant):
    with pytest.raises(TypeError, match=r"timedelta\(seconds=5\)"):
        await caller.call("lease", "crm", "alice", min_ttl=WRONG)
    with pytest.raises(TypeError, match=r"timedelta\(seconds=5\)"):
        Evergrant(evergrant.url, "evg_canary", deadline=WRONG)
    assert evergrant.requests == []


async def test_one_text_is_no_list_of_scopes(caller: Caller, evergrant: ScriptedEvergrant):
    with pytest.raises(TypeError, match=r"\('repo', 'gist',\)"):
        await caller.call("lease", "crm", "alice", scopes="repo gist")
    assert evergrant.requests == []


async def test_a_client_of_another_event_loop_says_so(evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", lease())
    client = AsyncEvergrant(evergrant.url, "evg_canary", cache_leases_for=timedelta(0))
    await client.lease("crm", "alice")
    with pytest.raises(BadRequest, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(client.lease("crm", "bob")))
    await client.aclose()


async def test_a_workflow_that_names_no_connection_fails_with_the_form():
    with pytest.raises(ApplicationError, match='give tenant and id, such as \\("default", "con_') as refused:
        await request_token("crm", app="report")
    assert refused.value.non_retryable


def test_a_parsed_body_is_no_payload():
    headers = {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,x"}
    with pytest.raises(TypeError, match="before any parser"):
        verify(WRONG, headers, "whsec_MTIz")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"APP_ID": "app_1"}, "Set EVERGRANT_PRIVATE_KEY_FILE or"),
        ({"PRIVATE_KEY_FILE": "k"}, "EVERGRANT_PRIVATE_KEY_FILE is set, and EVERGRANT_APP_ID isn't"),
    ],
)
def test_half_an_identity_says_which_half_is_missing(
    env: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in env.items():
        monkeypatch.setenv(f"EVERGRANT_{name}", value)
    with pytest.raises(BadRequest, match=said):
        Evergrant("http://127.0.0.1:1")


def test_a_closed_client_says_so(evergrant: ScriptedEvergrant):
    with Evergrant(evergrant.url, "evg_canary") as client:
        pass
    with pytest.raises(BadRequest, match="client_closed"):
        client.lease("crm", "alice")


async def test_the_token_of_a_missing_consent_says_what_to_do(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", consent_required(), lease())
    answer = await caller.call("lease", "crm", "alice")
    with pytest.raises(AttributeError, match="the subject has to consent first"):
        _ = answer.access_token
    assert not hasattr(answer, "another")


@pytest.mark.parametrize(
    ("key", "said"), [('"evg_canary"', "stands in quotes"), ("report.key", "is the name of a file")]
)
def test_what_is_no_key_is_refused_before_it_is_sent(
    key: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("report.key").write_text("evg_canary")
    with pytest.raises(BadRequest, match=said) as refused:
        Evergrant("http://127.0.0.1:1", key)
    assert "canary" not in str(refused.value)


def test_a_key_file_may_be_below_the_home(
    evergrant: ScriptedEvergrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "app.key").write_text("evg_canary\n")
    monkeypatch.setenv("EVERGRANT_API_KEY_FILE", "~/app.key")
    evergrant.script("POST /v1/lease", lease())
    with Evergrant(evergrant.url) as client:
        client.lease("crm", "alice")
    assert evergrant.requests[0].headers["authorization"] == "Bearer evg_canary"


def test_a_url_with_a_page_is_told_apart(evergrant: ScriptedEvergrant):
    evergrant.script("GET /docs/v1/connections/con_1", problem(404, "BadRequest", "not_found"))
    with (
        Evergrant(f"{evergrant.url}/docs/", "evg_canary") as client,
        pytest.raises(BadRequest, match="Leave out /docs in EVERGRANT_URL"),
    ):
        client.connection("con_1")


def test_another_program_s_port_is_told_at_once():
    """Temporal's, say, speaks HTTP/2 alone."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connected, _ = server.accept()
            connected.recv(4096)
            connected.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18))
            connected.close()

        Thread(target=answer, daemon=True).start()
        with (
            Evergrant(f"http://127.0.0.1:{server.getsockname()[1]}", "evg_canary") as client,
            pytest.raises(Unreachable, match="another program has this port"),
        ):
            client.connection("con_1")
