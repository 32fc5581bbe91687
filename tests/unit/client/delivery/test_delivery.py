"""When a token is written, kept and deleted: what is refused goes, what isn't answered stays a while."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from evergrant import Evergrant
from evergrant.delivery.delivery import Delivery, Format, Order, Pace, rendered
from evergrant.lease import Lease

from tests.unit.client.scripted_evergrant import (
    LINK,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    lease,
    problem,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE, CONNECTION = "POST /v1/lease", "GET /v1/connections/con_1"


class Shelf:
    """A place in memory."""

    def __init__(self) -> None:
        self.text: str | None = None

    def write(self, lease: Lease, format: Format) -> bool:
        changed, self.text = self.text != rendered(lease, format), rendered(lease, format)
        return changed

    def remove(self) -> bool:
        was, self.text = self.text, None
        return was is not None


class Bench:
    """A delivery whose clock and server a test moves."""

    def __init__(self, evergrant: ScriptedEvergrant, client: Evergrant, **pace: Any) -> None:
        self.evergrant, self.shelf, self.at = evergrant, Shelf(), NOW
        self.delivery = Delivery(client, Order("crm", "alice"), self.shelf, Pace(**pace), lambda: self.at)

    def look(self, *, after: float = 15, leased: Any = None, seen: Any = None):
        self.at += timedelta(seconds=after)
        if leased is not None:
            self.evergrant.script(LEASE, leased)
        if seen is not None:
            is_row = isinstance(seen, dict)
            self.evergrant.script(CONNECTION, ScriptedResponse(200, seen) if is_row else seen)
        return self.delivery.look()

    def leases(self) -> int:
        return self.evergrant.count(LEASE)


@pytest.fixture
def client(evergrant: ScriptedEvergrant, no_pauses: None) -> Iterator[Evergrant]:
    nothing = timedelta(0)
    with Evergrant(evergrant.url, "evg_key_canary", cache_leases_for=nothing) as client:
        yield client


@pytest.fixture
def bench(evergrant: ScriptedEvergrant, client: Evergrant) -> Bench:
    return Bench(evergrant, client)


def until(**time: float) -> ScriptedResponse:
    return lease(expires_at=(NOW + timedelta(**time)).isoformat())


def test_a_token_is_leased_once_while_nothing_changes(bench: Bench):
    assert bench.look(leased=until(hours=8)).written
    assert bench.shelf.text == TOKEN
    bench.look(leased=until(hours=8), seen=connection(revision=3))  # the first revision that is seen
    for _ in range(5):
        look = bench.look(seen=connection(revision=3))
        assert (look.written, look.wait_s) == (False, 15)
    assert bench.leases() == 2
    bench.look(after=300, leased=until(hours=8), seen=connection(revision=3))
    assert bench.leases() == 3  # a permit that has ended is noticed


def test_a_change_of_the_connection_has_it_leased_again(bench: Bench):
    bench.look(leased=until(hours=8))
    bench.look(leased=until(hours=8), seen=connection(revision=3))
    newer = lease(access_token="canary-newer", generation=8)
    assert bench.look(leased=newer, seen=connection(revision=4)).written
    assert bench.shelf.text == "canary-newer"


def test_a_token_is_renewed_before_it_ends(bench: Bench):
    bench.look(after=0, leased=until(minutes=30))
    bench.look(after=0, leased=until(minutes=30), seen=connection(revision=3))
    look = bench.look(after=24 * 60 + 50, leased=until(minutes=30), seen=connection(revision=3))
    assert look.wait_s == pytest.approx(10)  # five minutes before its end
    assert bench.look(after=10, leased=lease(access_token="canary-2"), seen=connection(revision=3)).written
    assert bench.evergrant.requests[-1].body["min_ttl"] == 300


REFUSALS = {
    "bound": lease(token_type="DPoP"),
    "revoked": problem(409, "ReconnectNeeded", "connection_revoked"),
    "held": problem(403, "Denied", "connection_held"),
    "permit": problem(403, "Denied", "not_permitted"),
    "disabled": problem(403, "Denied", "app_disabled"),
    "key": problem(401, "BadRequest", "unauthenticated"),
    "consent": consent_required(),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_refused_is_deleted_and_written_again_once_it_is_leased(
    bench: Bench, refusal: ScriptedResponse
):
    bench.look(leased=until(hours=8))
    look = bench.look(leased=refusal, seen=connection(revision=9))
    assert look.removed
    assert look.refusal is not None
    assert bench.shelf.text is None
    later = bench.look(after=look.wait_s, leased=refusal)
    assert not later.removed
    assert later.wait_s > look.wait_s  # less and less often
    assert LINK not in str(look.refusal)
    assert bench.look(after=later.wait_s, leased=until(hours=8)).written


def test_a_connection_that_is_hidden_is_asked_for_by_a_lease(bench: Bench):
    bench.look(leased=until(hours=8))
    absent = problem(404, "BadRequest", "not_found")
    assert bench.look(leased=REFUSALS["permit"], seen=absent).removed


FAILURES = {
    "no answer": ScriptedResponse(drop=True),
    "store": problem(503, "PlatformUnavailable", "store_unavailable"),
    "provider": problem(503, "ProviderUnavailable", "provider_unreachable"),
    "client": problem(424, "ClientMisconfigured", "client_rejected"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_what_isnt_answered_stays_until_the_token_ends(bench: Bench, failure: ScriptedResponse):
    bench.look(after=0, leased=until(hours=1))
    for _ in range(3):
        look = bench.look(after=15 * 60, leased=failure, seen=failure)
        assert (look.removed, look.refusal) == (False, None)
        assert look.delay is not None
    assert bench.shelf.text == TOKEN
    assert bench.look(after=15 * 60, leased=failure, seen=failure).removed
    assert bench.shelf.text is None


def test_a_bound_for_no_answer_is_kept(evergrant: ScriptedEvergrant, client: Evergrant):
    bench = Bench(evergrant, client, unanswered=timedelta(minutes=10))
    bench.look(after=0, leased=lease(expires_at=None))
    failure = FAILURES["store"]
    assert not bench.look(after=9 * 60, leased=failure, seen=failure).removed
    assert bench.look(after=60, leased=failure, seen=failure).removed


def test_the_forms_of_a_token():
    token = Lease(
        "at", token_type="Bearer", expires_at=NOW, scopes=("read",), generation=7, connection_id="con_1"
    )
    assert rendered(token, Format.TOKEN) == "at"
    assert rendered(token, Format.HEADER) == "Authorization: Bearer at\n"
    assert rendered(token, Format.ENV) == "ACCESS_TOKEN=at\n"
    assert '"expires_at": "2026-01-01T00:00:00+00:00"' in rendered(token, Format.JSON)
