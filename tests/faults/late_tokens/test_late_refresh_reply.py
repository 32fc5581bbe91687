"""An answer that comes when the connection was given up: kept, verified, believed only if it works.

The slow worker has a journal folder of its own, as on another host; the installation's own
worker can't see it, waits as long as it must, and takes over.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest_asyncio

from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.databases import database_url, postgres_server  # noqa: F401  # fixtures
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, drop, error, hold_answer, status
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT, left

STRICT = RefreshRules(rotation=Rotation.STRICT)


@pytest_asyncio.fixture
async def brief() -> AsyncIterator[ScriptedProvider]:
    """A strict provider whose access tokens are soon over."""
    async with ScriptedProvider(expires_in=1) as provider:
        yield provider


@pytest_asyncio.fixture
async def place(
    temporal_address: str,
    database_url: str,  # noqa: F811  # the fixture
    tmp_path: Path,
    brief: ScriptedProvider,
) -> AsyncIterator[Installation]:
    allow = (brief.allowance,)
    async with installation(temporal_address, database_url, tmp_path, allow=allow, limits=SHORT) as here:
        yield here


class Slow:
    """A worker on another host that has sent, and whose answer doesn't come."""

    def __init__(
        self, place: Installation, idp: ScriptedProvider, folder: Path, limits: TimeLimits = SHORT
    ) -> None:
        self._place = place
        self._idp = idp
        self._gate = asyncio.Event()
        self.worker = Activities(place, (idp.allowance,), folder / "elsewhere", limits)
        self._refresh: asyncio.Task[GrantResult] | None = None

    async def refreshes(self, connection: Connection) -> None:
        self._idp.script(hold_answer(self._gate))
        ask = partial(self.worker.refresh, connection, connection.generation)
        self._refresh = await left(self._idp, ask)

    async def answered(self) -> GrantResult:
        assert self._refresh is not None
        self._gate.set()
        return await self._refresh


async def given_up(place: Installation, idp: ScriptedProvider, slow: Slow) -> Connection:
    """Another worker took over from the slow one, and was refused."""
    connection = await place.connect(idp, STRICT)
    await slow.refreshes(connection)
    await place.ensure_fresh(connection, 1)
    lost = await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    assert lost.reason is ErrorCode.OUTCOME_UNKNOWN
    assert idp.count("token", grant_type="refresh_token") == 2
    return lost


async def late_records(place: Installation, connection: Connection) -> list[AuditRecord]:
    found = await place.audited(connection)
    return [it for it in found if it.action is AuditAction.LATE_TOKENS_RECEIVED]


async def test_a_late_reply_that_works_reactivates_the_connection(
    place: Installation, brief: ScriptedProvider, tmp_path: Path
):
    """The provider refuses a second use and leaves the family alone."""
    slow = Slow(place, brief, tmp_path)
    connection = await place.connect(brief, STRICT)
    await slow.refreshes(connection)
    brief.script(error("invalid_grant"))
    await place.ensure_fresh(connection, 1)
    await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    await slow.answered()
    back = await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert back.generation == 2
    assert back.reason is None
    actions = await place.actions(connection)
    told = {AuditAction.SENT_TWICE, AuditAction.LATE_TOKENS_RECEIVED, AuditAction.CONNECTION_RECOVERED}
    assert set(actions[-3:]) == told
    (twice,) = [it for it in await place.audited(connection) if it.action is AuditAction.SENT_TWICE]
    assert twice.detail["overlapped"] is False, "the slow one's bytes had left long before"
    assert await place.late_tokens(connection) == []
    assert await place.open_attempts(connection) == 0
    assert (await place.ensure_fresh(connection, 2)).generation == 3, "its refresh token is the newest"
    assert brief.families[-1].alive


async def test_a_late_reply_of_an_ended_family_is_discarded(
    place: Installation, brief: ScriptedProvider, tmp_path: Path
):
    slow = Slow(place, brief, tmp_path)
    connection = await given_up(place, brief, slow)
    assert not brief.families[-1].alive
    await slow.answered()
    async with asyncio.timeout(PATIENCE_S):
        while len(await late_records(place, connection)) < 2:
            await asyncio.sleep(0.05)
    came, refused = await late_records(place, connection)
    assert came.detail["sends"] == 1
    assert (refused.detail["verified"], refused.detail["reason"]) == (False, ErrorCode.GRANT_REJECTED)
    row = await place.row(connection)
    assert (row.state, row.reason, row.generation) == (
        LifecycleState.NEEDS_REAUTH,
        ErrorCode.OUTCOME_UNKNOWN,
        1,
    )
    assert await place.late_tokens(connection) == []


async def test_a_late_reply_is_verified_until_the_provider_decides(
    place: Installation, brief: ScriptedProvider, tmp_path: Path
):
    slow = Slow(place, brief, tmp_path)
    connection = await place.connect(brief, STRICT)
    await slow.refreshes(connection)
    brief.script(error("invalid_grant"), drop(), status(503))
    await place.ensure_fresh(connection, 1)
    await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    await slow.answered()
    await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)


async def test_a_new_consent_discards_a_late_reply(
    place: Installation, brief: ScriptedProvider, tmp_path: Path
):
    slow = Slow(place, brief, tmp_path)
    connection = await given_up(place, brief, slow)
    await place.consent(brief, await place.integration_of(connection), connection)
    await place.until(connection, lambda c: c.generation == 2)
    await slow.answered()
    assert await place.late_tokens(connection) == []
    assert (await place.row(connection)).generation == 2
    assert await late_records(place, connection) == []


async def test_a_late_reply_is_revoked_with_its_connection(
    place: Installation, brief: ScriptedProvider, tmp_path: Path
):
    """It is unverified when the connection is revoked and may be valid, so it is revoked as well."""
    slow = Slow(place, brief, tmp_path)
    connection = await place.connect(brief, STRICT)
    await slow.refreshes(connection)
    brief.script(error("invalid_grant"), *(status(503) for _ in range(50)))
    await place.ensure_fresh(connection, 1)
    await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    await slow.answered()
    assert len(await place.late_tokens(connection)) == 1
    await place.revoke(connection)
    ended = await place.until(connection, lambda c: c.state is LifecycleState.REVOKED)
    assert ended.revocation is RevocationOutcome.CONFIRMED
    family = brief.families[-1]
    revoked = [call.params["token"] for call in brief.calls if call.endpoint == "revoke"]
    assert family.refresh_token in revoked
    assert await place.late_tokens(connection) == []
