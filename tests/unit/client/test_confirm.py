"""A consent is confirmed: by both clients, against the fake's refusals, and by `evergrant connect --wait`."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread

import httpx2
import pytest
from evergrant import BadRequest, Evergrant, Lease, ReconnectNeeded, State, new_verifier
from evergrant.models import challenge_of
from evergrant.testing import FakeEvergrant, ManualClock

from tests.fakes.patience import PATIENCE_S
from tests.unit.client.conftest import Caller, Command
from tests.unit.client.scripted_evergrant import (
    LINK,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    lease,
    problem,
)

CONFIRM = "POST /v1/connections/con_1/confirm"
PENDING = ScriptedResponse(201, connection(state="pending_consent", connect_url=LINK))


def test_a_challenge_is_the_verifiers_s256_rfc7636_appendix_b():
    assert challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == (
        "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )
    verifier, challenge = new_verifier()
    assert (len(verifier), challenge) == (43, challenge_of(verifier))
    assert new_verifier()[0] != verifier


async def test_a_consent_begins_with_a_challenge_and_is_confirmed(
    caller: Caller, evergrant: ScriptedEvergrant
):
    evergrant.script("POST /v1/connections", PENDING)
    evergrant.script("POST /v1/connections/con_1/reauthorize", PENDING)
    evergrant.script("POST /v1/lease", lease(), lease(generation=8))
    evergrant.script(CONFIRM, ScriptedResponse(200, connection(generation=8)))
    await caller.call("connect", "crm", "alice", challenge="ch-1")
    await caller.call("reauthorize", "con_1", challenge="ch-2")
    await caller.call("lease", "crm", "alice", challenge="ch-3")
    assert [it.body["challenge"] for it in evergrant.requests] == ["ch-1", "ch-2", "ch-3"]

    confirmed = await caller.call("confirm", "con_1", "code-1", "alice", "v-1")
    assert (confirmed.state, confirmed.generation) == (State.ACTIVE, 8)
    sent = evergrant.requests[-1]
    assert sent.body == {"code": "code-1", "subject": "alice", "verifier": "v-1"}
    assert (await caller.call("lease", "crm", "alice")).generation == 8, "the lease of before is not served"


@pytest.fixture
def client(fake_evergrant: FakeEvergrant, evergrant_clock: ManualClock) -> Iterator[Evergrant]:
    with Evergrant(clock=evergrant_clock) as made:
        yield made


def test_the_fake_refuses_as_the_server_does(
    fake_evergrant: FakeEvergrant, client: Evergrant, evergrant_clock: ManualClock
):
    verifier, challenge = new_verifier()
    opened = client.connect("crm", "alice", challenge=challenge)
    alice = fake_evergrant.connections[opened.id]
    late = alice.come_back()
    evergrant_clock.advance(timedelta(minutes=2))
    with pytest.raises(ReconnectNeeded, match="confirm_expired"):
        client.confirm(opened.id, late, "alice", verifier)
    with pytest.raises(BadRequest, match="not_found"):
        client.confirm(opened.id, "guess", "alice", verifier)

    code = alice.come_back()
    assert client.confirm(opened.id, code, "alice", verifier) == client.confirm(
        opened.id, code, "alice", verifier
    )
    assert isinstance(client.lease("crm", "alice"), Lease)


@pytest.mark.parametrize(("subject", "own"), [("mallory", True), ("alice", False)])
def test_another_person_or_session_ends_the_consent(
    fake_evergrant: FakeEvergrant, client: Evergrant, subject: str, own: bool
):
    verifier, challenge = new_verifier()
    opened = client.connect("crm", "alice", challenge=challenge)
    alice = fake_evergrant.connections[opened.id]
    code = alice.come_back()
    with pytest.raises(ReconnectNeeded, match="subject_mismatch"):
        client.confirm(opened.id, code, subject, verifier if own else None)
    with pytest.raises(ReconnectNeeded, match="subject_mismatch"):
        client.confirm(opened.id, code, "alice", verifier)
    assert alice.state is State.PENDING_CONSENT


def test_connect_binds_through_the_browsers_return(command: Command, fake_evergrant: FakeEvergrant):
    def consent() -> None:
        """The subject's browser: it opens the link, and is led to the terminal's listener."""
        while not (links := [it.link for it in [*fake_evergrant.connections.values()] if it.link]):
            time.sleep(0.01)
        back = httpx2.post(links[0]).headers["location"]
        assert back.startswith("http://127.0.0.1:")
        httpx2.get(f"{back.partition('?')[0]}?evergrant_code=another-consents").raise_for_status()
        httpx2.get(back).raise_for_status()

    browser = Thread(target=consent)
    browser.start()
    ended = command("connect", "crm", "alice", "--wait", "--timeout", "20", "-o", "json")
    browser.join()
    assert (ended.status, json.loads(ended.out)["state"]) == (0, "active")
    assert [line.split()[0] for line in ended.err.splitlines()] == ["open", "not_found:", "alice"]


def test_connect_ends_with_a_consent_that_failed_at_the_provider(
    command: Command, evergrant: ScriptedEvergrant
):
    """Its code is spent: to confirm once more, as after another 503, can't help."""
    spent = problem(503, "ProviderUnavailable", "provider_error", retry_after=1, consent="failed")
    evergrant.script("POST /v1/connections", PENDING)
    evergrant.script("GET /v1/connections/con_1", PENDING)
    evergrant.script(CONFIRM, spent)

    def come_back() -> None:
        while not evergrant.count("GET /v1/connections/con_1"):
            time.sleep(0.01)
        begun = next(it.body for it in evergrant.requests if it.path == "/v1/connections")
        httpx2.get(f"{begun['return_to']}?evergrant_code=code-1").raise_for_status()

    browser = Thread(target=come_back)
    browser.start()
    ended = command("connect", "crm", "alice", "--wait")
    browser.join()
    assert (ended.status, evergrant.count(CONFIRM)) == (1, 1)
    assert "evergrant connections get con_1\n" in ended.err
    assert ended.err.endswith(
        "evergrant: provider_error: the reason (Run the command again: it makes a new link.)\n"
    )


FAILED = {
    "code": "client_rejected",
    "detail": "The provider refused our client id, secret, redirect URI or request.",
    "kind": "ClientMisconfigured",
    "repairer": "integration_admin",
    "repair": "Correct the client.",
    "reference": "abcde-fghij",
}
SAID = {
    "at": "2030-01-02T03:04:05+00:00",
    "reason": "client_rejected",
    "reference": None,
    "status": 401,
    "error": "invalid_client",
    "description": "wrong secret",
    "unauthenticated": False,
}


@pytest.mark.parametrize("own", [(), ("--return-to", "https://app.example/back")])
def test_connect_ends_when_the_exchange_has_failed(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path, own: tuple[str, ...]
):
    """Nothing brings that to the terminal, so it asks; the folder's admin sees the provider's words."""
    (tmp_path / "app.key").write_text("evg_app")
    evergrant.script("POST /v1/connections", PENDING)
    waits = {"state": "pending_consent", "connect_url": LINK}
    failed = ScriptedResponse(200, connection(**waits, failed_consent=FAILED))
    said = ScriptedResponse(200, connection(**waits, failed_consent=FAILED, provider_said=SAID))
    evergrant.script("GET /v1/connections/con_1", PENDING, failed, failed, said)
    ended = command("connect", "crm", "alice", "--wait", *own, "--api-key-file", str(tmp_path / "app.key"))
    assert ended.status == 1
    *_, words, client, error = ended.err.splitlines()
    assert words == "the provider said: status 401, invalid_client: wrong secret"
    assert "evergrant integrations get crm" in client
    assert error.startswith(
        "evergrant: client_rejected: the consent has failed: The provider refused our client"
    )
    assert error.endswith("(Correct the client. Run the command again: it makes a new link.)")
    keys = [request.headers["authorization"] for request in evergrant.requests]
    assert keys[-1] == "Bearer evg_canary", "the admin's"


def test_connect_warns_of_a_scope_that_was_not_granted(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/connections", PENDING)
    granted = connection(scopes=["read"], requested_scopes=["read", "write"], missing_scopes=["write"])
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, granted))
    ended = command("connect", "crm", "alice", "--wait")
    assert ended.status == 0
    assert "requested and not granted: write\n" in ended.err
    assert "evergrant connections reauthorize con_1 --scope write\n" in ended.err


def test_connect_reads_the_code_where_no_return_is_listed(evergrant: ScriptedEvergrant):
    refused = problem(400, "BadRequest", "invalid_request", field="return_to")
    evergrant.script("POST /v1/connections", refused, PENDING)
    evergrant.script("GET /v1/connections/con_1", PENDING, ScriptedResponse(200, connection()))
    evergrant.script(CONFIRM, ScriptedResponse(200, connection()))
    executable = str(Path(sys.executable).parent / "evergrant")
    env = {"PATH": "", "EVERGRANT_URL": evergrant.url, "EVERGRANT_API_KEY": "evg_canary"}
    env["PYTHONPATH"] = str(Path(__file__).parents[3] / "clients/python/src")
    command = [executable, "connect", "crm", "alice", "--wait"]
    run = subprocess.run(
        command, env=env, input="code-1\n", capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (run.returncode, run.stderr.splitlines()) == (
        0,
        [
            f"open {LINK}",
            "if the page at the end shows a code, enter it here",
            "alice is connected at crm",
        ],
    )
    sent = next(it.body for it in evergrant.requests if it.path.endswith("/confirm"))
    begun = evergrant.requests[1].body
    assert begun["challenge"] == challenge_of(sent["verifier"])
    assert ("return_to" in begun, sent["code"], sent["subject"]) == (False, "code-1", "alice")
