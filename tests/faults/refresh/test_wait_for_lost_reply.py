"""A lost answer is waited for while the access token works; not for one that was refused, nor in silence."""

from datetime import timedelta
from pathlib import Path

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.connection import EnsureFresh, RefreshReason
from tests.fakes.clock import SetClock
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.scripted_provider import (
    Answer,
    ScriptedProvider,
    drop,
    drop_after_commit,
    ok,
    status,
)
from tests.faults.support.activities import Activities, at_temporal

STRICT = RefreshRules(rotation=Rotation.STRICT)


@pytest.mark.parametrize(
    ("endless", "lost", "ends_as"),
    [
        (True, drop(), (LifecycleState.ACTIVE, 2, None)),
        (False, status(500), (LifecycleState.ACTIVE, 2, None)),
        (False, drop_after_commit(), (LifecycleState.NEEDS_REAUTH, 1, ErrorCode.OUTCOME_UNKNOWN)),
    ],
)
async def test_a_reported_token_ends_the_wait_for_a_lost_reply(
    place: Installation,
    idp: ScriptedProvider,
    endless: bool,
    lost: Answer,
    ends_as: tuple[LifecycleState, int, ErrorCode | None],
):
    """The provider refuses the token now, however long its expiry says it is valid."""
    idp.script(ok(expires_in=None if endless else 30 * 86_400))
    connection = await place.connect(idp, STRICT)
    idp.script(lost)
    report = EnsureFresh(seen_generation=1, context=ASKED, refresh_reason=RefreshReason.UNAUTHORIZED)
    heard = await place.parts.link.ensure_fresh(TENANT, connection.id, report, timeout=PATIENCE_S)
    assert heard.problem is not None
    row = await place.until(
        connection, lambda it: it.generation == 2 or it.state is LifecycleState.NEEDS_REAUTH
    )
    assert (row.state, row.generation, row.reason) == ends_as


async def test_an_hours_wait_for_another_host_is_recorded_once(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """The token stays valid for days, but the operator has to bring the other host back."""
    idp.script(ok(expires_in=30 * 86_400))
    connection = await place.connect(idp, STRICT)
    clock = SetClock(place.parts.clock.now())
    allow = (idp.allowance,)
    gone, here = (Activities(place, allow, tmp_path / host, clock=clock) for host in ("gone", "here"))
    idp.script(drop())
    assert (await gone.refresh(connection, 1)).failure is ErrorCode.PROVIDER_UNREACHABLE
    for hours, told in ((0, 0), (0.9, 0), (0.2, 1), (5, 1)):
        clock.advance(hours * 3600)
        news = await here.refresh(connection, 1, at_temporal(clock.now()))
        assert news.failure is ErrorCode.REFRESH_PENDING
        records = [
            it for it in await place.audited(connection) if it.action is AuditAction.CONNECTION_FAILING
        ]
        assert [it.detail["reason"] for it in records] == [ErrorCode.REFRESH_PENDING] * told
    row, grant = await place.grant(connection)
    assert row.state is LifecycleState.ACTIVE
    assert grant.is_valid(clock.now() + timedelta(days=29)), "and is served meanwhile"
