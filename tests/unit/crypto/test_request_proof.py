"""What a proof of who requested it is bound to."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.crypto.request_proof import as_claimed, prove_request, proven_message

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
