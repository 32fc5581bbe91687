"""A lost answer is waited for while the access token works; not for one that was refused, nor in silence."""

from datetime import timedelta
from pathlib import Path

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SetClock
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.messages import EnsureFresh, Wish
from evergrant_server.core.provider import RefreshRules, Rotation
from tests.fakes.installation import ASKED, TENANT, Installation
from tests.fakes.scripted_provider import Answer, ScriptedProvider, drop, drop_after_commit, ok, status
from tests.faults.test_review_takeover import Activities, at_temporal

STRICT = RefreshRules(rotation=Rotation.STRICT)


@pytest.mark.parametrize("endless", [True, False])
@pytest.mark.parametrize(
    ("lost", "ends_as"),
    [
        (drop(), (State.ACTIVE, 2, None)),
        (status(500), (State.ACTIVE, 2, None)),
        (drop_after_commit(), (State.NEEDS_REAUTH, 1, Code.OUTCOME_UNKNOWN)),
    ],
)
async def test_a_token_that_was_reported_keeps_nobody_waiting_for_a_lost_answer(
    place: Installation,
    idp: ScriptedProvider,
    endless: bool,
    lost: Answer,
    ends_as: tuple[State, int, Code | None],
):
    """Whether it has no end or thirty days left: whoever holds it is refused now."""
    idp.script(ok(expires_in=None if endless else 30 * 86_400))
    connection = await place.connect(idp, STRICT)
    idp.script(lost)
    report = EnsureFresh(seen_generation=1, asked=ASKED, wish=Wish.UNAUTHORIZED)
    heard = await place.parts.link.ensure_fresh(TENANT, connection.id, report, timeout=20)
    assert heard.problem is not None
    row = await place.until(connection, lambda it: it.generation == 2 or it.state is State.NEEDS_REAUTH)
    assert (row.state, row.generation, row.reason) == ends_as


async def test_a_wait_of_an_hour_for_another_hosts_answer_is_told_once(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """The token works, and may for days: but a host has to come back, and somebody should know."""
    idp.script(ok(expires_in=30 * 86_400))
    connection = await place.connect(idp, STRICT)
    clock = SetClock(place.parts.clock.now())
    allow = (idp.allowance,)
    gone, here = (Activities(place, allow, tmp_path / host, clock=clock) for host in ("gone", "here"))
    idp.script(drop())
    assert (await gone.refresh(connection, 1)).failure is Code.PROVIDER_UNREACHABLE
    for hours, told in ((0, 0), (0.9, 0), (0.2, 1), (5, 1)):
        clock.advance(hours * 3600)
        news = await here.refresh(connection, 1, at_temporal(clock.now()))
        assert news.failure is Code.REFRESH_PENDING
        records = [
            it for it in await place.audited(connection) if it.action is AuditAction.CONNECTION_FAILING
        ]
        assert [it.detail["reason"] for it in records] == [Code.REFRESH_PENDING] * told
    row, grant = await place.grant(connection)
    assert row.state is State.ACTIVE
    assert grant.valid(clock.now() + timedelta(days=29)), "and is served meanwhile"
