"""The package and `evergrant.testing` as a user's program sees them: imports, types, fixtures and outages."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import evergrant as package
import httpx2
import pytest
import stamina
from evergrant import AsyncEvergrant, Evergrant, Lease, State, temporal
from evergrant.api.imports import ImportOutcome
from evergrant.testing import FakeEvergrant, ManualClock
from evergrant.testing.connections import connection_body, live_body
from pydantic import BaseModel

from evergrant_server.api.connections.models import (
    ConnectionView,
    LiveView,
)
from evergrant_server.api.leases.models import LeaseView, ProofView
from evergrant_server.api.leases.oauth1_signatures import SignatureView
from evergrant_server.api.transfer import models as transfer_models
from tests.fakes.patience import PATIENCE_S

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


def test_a_program_that_handles_every_outcome_passes_strict_checking(tmp_path: Path):
    """Its `assert_never` passes only if the client's types name every outcome, and none in vain."""
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(CLIENT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    arguments = ["--project", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run([sys.executable, "-m", "pyright", *arguments], capture_output=True, timeout=120)
    report = json.loads(run.stdout)
    assert (report["summary"]["filesAnalyzed"], report["generalDiagnostics"]) == (1, [])


HOUR = timedelta(hours=1)


@pytest.fixture
def client(fake_evergrant: FakeEvergrant, evergrant_clock: ManualClock):
    with Evergrant(clock=evergrant_clock) as made, stamina.set_testing(True, attempts=2):
        yield made


def test_a_connection_from_consent_to_revocation(
    fake_evergrant: FakeEvergrant, client: Evergrant, evergrant_clock: ManualClock
):
    needed = client.lease("crm", "alice")
    assert isinstance(needed, package.ConsentRequired)
    fake_evergrant.connections[needed.connection_id].consent()
    assert client.wait_for_consent(needed.connection_id, HOUR).state is State.ACTIVE
    first = client.lease("crm", "alice")
    assert isinstance(first, Lease)
    evergrant_clock.advance(HOUR)
    second = client.lease("crm", "alice")
    assert isinstance(second, Lease)
    assert (first.generation, second.generation) == (1, 2)
    client.revoke(second.connection_id, "done")
    with pytest.raises(package.ReconnectNeeded, match="connection_revoked"):
        client.lease("crm", "alice")
    actions = [record.action for record in client.audit(second.connection_id)]
    assert actions[-1] == "connection.revoked"
    assert client.connect("crm", "alice").id != second.connection_id


def test_an_identity_is_taken_at_its_word(fake_evergrant: FakeEvergrant):
    alice = fake_evergrant.connect("crm", "alice")
    with Evergrant(fake_evergrant.url, identity=lambda issuer: {"client_id": issuer}) as client:
        assert client.token("crm", "alice") == alice.token
    assert fake_evergrant.called("POST", "/oauth/token") == 1


def test_a_post_to_the_connect_link_leads_to_the_code_to_confirm(client: Evergrant):
    opened = client.connect("crm", "alice")
    assert opened.connect_url is not None
    assert httpx2.get(opened.connect_url).json()["state"] == "pending_consent"
    came = httpx2.post(opened.connect_url).json()
    assert client.connection(opened.id).state is State.PENDING_CONSENT
    assert client.confirm(opened.id, came["evergrant_code"], "alice").state is State.ACTIVE


def test_outages_and_failures(fake_evergrant: FakeEvergrant, client: Evergrant):
    alice = fake_evergrant.connect("crm", "alice")
    fake_evergrant.go_down()
    with pytest.raises(package.PlatformUnavailable):
        client.token("crm", "alice")
    fake_evergrant.come_back()
    fake_evergrant.drop()
    assert client.token("crm", "alice") == alice.token
    fake_evergrant.fail("client_rejected", kind="ClientMisconfigured", status=424)
    with pytest.raises(Exception, match="client_rejected"):
        client.connection(alice.id)
    fake_evergrant.drop(times=2)
    with pytest.raises(package.Unreachable):
        client.connection(alice.id)
    fake_evergrant.version = "9.0.0"
    with pytest.raises(package.ProtocolError, match=r"9\.0\.0"):
        client.connection(alice.id)


async def test_a_rotated_token_and_lists(fake_evergrant: FakeEvergrant, evergrant_clock: ManualClock):
    alice = fake_evergrant.connect("crm", "alice", token="known", lifetime=None)
    async with AsyncEvergrant(clock=evergrant_clock) as client:
        assert await client.token("crm", "alice") == "known"
        alice.rotate()
        evergrant_clock.advance(timedelta(seconds=30))
        new = await client.lease("crm", "alice")
        assert isinstance(new, Lease)
        assert (new.expires_at, new.generation, new.access_token) == (None, 2, alice.token)
        assert [found.id async for found in client.connections(state=State.ACTIVE)] == [alice.id]
        assert [found.name async for found in client.providers()] == ["fake"]
    assert fake_evergrant.called("POST", "/v1/lease") == alice.leases == 2


VIEWS: dict[type, type[BaseModel]] = {  # of the models that are written by hand
    ImportOutcome: transfer_models.ImportOutcome,
    Lease: LeaseView,
    package.Proof: ProofView,
    package.Signature: SignatureView,
}


@pytest.mark.parametrize("model", VIEWS)
def test_every_member_of_a_model_is_in_the_servers_response(model: type):
    members = set(model.__annotations__)
    assert members <= set(VIEWS[model].model_fields)


def test_the_fakes_members_are_the_servers(fake_evergrant: FakeEvergrant):
    alice = fake_evergrant.connect("crm", "alice")
    assert set(connection_body(alice, link=True)) <= set(ConnectionView.model_fields)
    assert set(live_body(alice)) == set(LiveView.model_fields)
    with httpx2.Client(
        headers={"authorization": f"Bearer {fake_evergrant.api_key}"}, timeout=PATIENCE_S
    ) as http:
        leased = http.post(f"{fake_evergrant.url}/v1/lease", json={"integration": "crm", "subject": "alice"})
    assert set(leased.json()) == set(LeaseView.model_fields)
