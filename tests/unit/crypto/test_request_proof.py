"""What a proof of who requested it is bound to."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import SignalName, UpdateName
from evergrant_server.core.outbox import OutboxKind
from evergrant_server.crypto import KeyRing, Role, request_proof
from evergrant_server.crypto.request_proof import (
    GATEWAY_MESSAGES,
    as_claimed,
    proof_key,
    prove_request,
    proven_message,
)

NOW = datetime(2026, 11, 27, 8, 0, 0, 250_000, UTC)
DAY = timedelta(days=1)
WORKFLOW = "connection:acme:con_1"
TRACE = "0af7651916cd43dd8448eb211c80319c"
ASKED = RequestContext(by="app:crm-sync", trace_id=TRACE, span_id="00f067aa0ba902b7")


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.create(tmp_path / "keys.json", Role.WORKER)


def test_a_proof_is_for_one_message_to_one_workflow(ring: KeyRing, tmp_path: Path):
    proven = prove_request(ring, ASKED, WORKFLOW, "rotate", NOW)
    assert proven_message(ring, proven, WORKFLOW, NOW, DAY) == "rotate"
    handled = proven.model_copy(update={"span_id": "53995c3f42cd8ad8"})  # by a span of the workflow
    assert proven_message(ring, handled, WORKFLOW, NOW, DAY) == "rotate"
    assert proven_message(KeyRing.open(tmp_path / "keys.json", Role.API), proven, WORKFLOW, NOW, DAY)
    assert proven_message(ring, proven, "connection:acme:con_2", NOW, DAY) is None
    assert proven_message(KeyRing.create(tmp_path / "other.json"), proven, WORKFLOW, NOW, DAY) is None


@pytest.mark.parametrize(
    "change",
    [
        {"by": "app:another"},
        {"by": "\ud800"},
        {"trace_id": "0" * 32},
        {"proof": ""},
        {"proof": "rotate"},
        {"proof": "rotate 1 " + "0" * 32},
    ],
)
def test_a_changed_context_proves_nothing(ring: KeyRing, change: dict[str, str]):
    proven = prove_request(ring, ASKED, WORKFLOW, "rotate", NOW).model_copy(update=change)
    assert proven_message(ring, proven, WORKFLOW, NOW, DAY) is None


def test_another_message_or_time_has_another_proof(ring: KeyRing):
    proven = prove_request(ring, ASKED, WORKFLOW, "rotate", NOW)
    for old, new in (("rotate ", "revoke "), (f" {int(NOW.timestamp())} ", f" {int(NOW.timestamp()) + 1} ")):
        altered = proven.model_copy(update={"proof": proven.proof.replace(old, new)})
        assert altered.proof != proven.proof
        assert proven_message(ring, altered, WORKFLOW, NOW, DAY) is None


@pytest.mark.parametrize("away", [DAY + timedelta(seconds=1), -DAY - timedelta(seconds=1)])
def test_a_proof_of_another_day_proves_nothing(ring: KeyRing, away: timedelta):
    proven = prove_request(ring, ASKED, WORKFLOW, "rotate", NOW)
    assert proven_message(ring, proven, WORKFLOW, NOW + away, DAY) is None
    assert proven_message(ring, proven, WORKFLOW, NOW + away, timedelta.max) == "rotate"


@pytest.mark.parametrize(
    ("by", "recorded"),
    [
        ("app:crm-sync", "claimed:app:crm-sync"),
        ("claimed:app:crm-sync", "claimed:app:crm-sync"),
        ("a" * 5000, "claimed:" + "a" * 100),
        ("\ud800", "claimed:unreadable"),
    ],
)
def test_a_claim_is_recorded_in_bounded_text(by: str, recorded: str):
    claimed = as_claimed(RequestContext(by=by, trace_id="no trace", span_id="x", proof="y"))
    assert claimed == RequestContext(by=recorded)
    assert as_claimed(ASKED).trace_id == TRACE


MESSAGES = {it.value for names in (SignalName, UpdateName, OutboxKind) for it in names} | {"reconcile"}


@pytest.mark.parametrize("role", Role)
def test_each_role_has_a_key_of_its_own(ring: KeyRing, tmp_path: Path, role: Role):
    keys = {proof_key(ring, it) for it in Role}
    assert len(keys) == len(Role)
    own = KeyRing.open(tmp_path / "keys.json", role)
    proven = prove_request(own, ASKED, WORKFLOW, UpdateName.ENSURE_FRESH, NOW)
    assert proven_message(ring, proven, WORKFLOW, NOW, DAY) == UpdateName.ENSURE_FRESH


@pytest.mark.parametrize("message", sorted(MESSAGES))
def test_a_gateways_key_proves_what_a_gateway_says_alone(
    ring: KeyRing, tmp_path: Path, message: str, monkeypatch: pytest.MonkeyPatch
):
    gateway = KeyRing.open(tmp_path / "keys.json", Role.GATEWAY)
    if message not in GATEWAY_MESSAGES:
        with pytest.raises(ValueError, match="a gateway sends no"):
            prove_request(gateway, ASKED, WORKFLOW, message, NOW)
    with monkeypatch.context() as stolen:  # whoever has the key isn't held up by that
        stolen.setattr(request_proof, "GATEWAY_MESSAGES", MESSAGES)
        proven = prove_request(gateway, ASKED, WORKFLOW, message, NOW)
    wanted = message if message in GATEWAY_MESSAGES else None
    assert proven_message(ring, proven, WORKFLOW, NOW, DAY) == wanted


def test_what_ends_something_is_none_of_a_gateways_messages():
    assert GATEWAY_MESSAGES <= MESSAGES
    assert not GATEWAY_MESSAGES & {SignalName.REVOKE, OutboxKind.STOP_AGENT, OutboxKind.START_EXPORT}
