"""An answer that comes when the connection was given up: kept, verified, believed only if it works.

The slow worker has a journal folder of its own, as on another host; the installation's own
worker can't see it, waits as long as it must, and takes over.
"""

import pytest

from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import STRICT, Installation
from tests.fakes.providers.scripted_provider import Answer, ScriptedProvider, drop, error, status
from tests.faults.support.reply_timing import SHORT, Slow


@pytest.fixture
def provider() -> ScriptedProvider:
    """Its access tokens are soon over."""
    return ScriptedProvider(expires_in=1)


@pytest.fixture
def limits() -> TimeLimits:
    return SHORT


async def overtaken(place: Installation, *answers: Answer) -> tuple[Slow, Connection]:
    """Another worker took over from a slow one, and heard `answers`; without any, its use is refused."""
    slow, connection = Slow(place), await place.connect(STRICT)
    await slow.refreshes(connection)
    place.idp.script(*answers)
    await place.ensure_fresh(connection, 1)
    return slow, await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)


async def late_records(place: Installation, connection: Connection) -> list[AuditRecord]:
    return await place.audited(connection, AuditAction.LATE_TOKENS_RECEIVED)


async def test_a_late_reply_that_works_reactivates_the_connection(place: Installation):
    """The provider refuses a second use and leaves the family alone."""
    slow, connection = await overtaken(place, error("invalid_grant"))
    await slow.answered()
    back = await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert back.generation == 2
    assert back.reason is None
    actions = await place.actions(connection)
    told = {AuditAction.SENT_TWICE, AuditAction.LATE_TOKENS_RECEIVED, AuditAction.CONNECTION_RECOVERED}
    assert set(actions[-3:]) == told
    (twice,) = await place.audited(connection, AuditAction.SENT_TWICE)
    assert twice.detail["overlapped"] is False, "the slow one's bytes had left long before"
    assert await place.late_tokens(connection) == []
    assert await place.open_attempts(connection) == 0
    assert (await place.ensure_fresh(connection, 2)).generation == 3, "its refresh token is the newest"
    assert place.idp.families[-1].alive


async def test_a_late_reply_of_an_ended_family_is_discarded(place: Installation):
    slow, connection = await overtaken(place)
    assert connection.reason is ErrorCode.OUTCOME_UNKNOWN
    assert not place.idp.families[-1].alive
    await slow.answered()
    found = await eventually(lambda: late_records(place, connection), lambda it: len(it) == 2)
    came, refused = found
    assert came.detail["sends"] == 1
    assert (refused.detail["verified"], refused.detail["reason"]) == (False, ErrorCode.GRANT_REJECTED)
    row = await place.row(connection)
    assert (row.state, row.reason, row.generation) == (
        LifecycleState.NEEDS_REAUTH,
        ErrorCode.OUTCOME_UNKNOWN,
        1,
    )
    assert await place.late_tokens(connection) == []


async def test_a_late_reply_is_verified_until_the_provider_decides(place: Installation):
    slow, connection = await overtaken(place, error("invalid_grant"), drop(), status(503))
    await slow.answered()
    await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)


async def test_a_new_consent_discards_a_late_reply(place: Installation):
    slow, connection = await overtaken(place)
    assert connection.reason is ErrorCode.OUTCOME_UNKNOWN
    await place.consent(connection)
    await place.until(connection, lambda c: c.generation == 2)
    await slow.answered()
    assert await place.late_tokens(connection) == []
    assert (await place.row(connection)).generation == 2
    assert await late_records(place, connection) == []


async def test_a_late_reply_is_revoked_with_its_connection(place: Installation):
    """It is unverified when the connection is revoked and may be valid, so it is revoked as well."""
    slow, connection = await overtaken(place, error("invalid_grant"), *(status(503) for _ in range(50)))
    await slow.answered()
    assert len(await place.late_tokens(connection)) == 1
    ended = await place.revoked(connection)
    assert ended.revocation is RevocationOutcome.CONFIRMED
    family = place.idp.families[-1]
    revoked = [call.params["token"] for call in place.idp.calls if call.endpoint == "revoke"]
    assert family.refresh_token in revoked
    assert await place.late_tokens(connection) == []
