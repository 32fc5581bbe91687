"""Why an active connection may hold an expired token."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import FollowUp, Grant
from evergrant_server.core.connections.token_state import TokenState, token_state
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from tests.fakes.rows import a_connection, an_integration

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ACTIVE: dict[str, Any] = {"state": LifecycleState.ACTIVE, "generation": 3}
CONNECTION = a_connection(an_integration(Tenant("acme"), NOW), NOW, **ACTIVE)


def a_grant(ended: timedelta = MINUTE, **changes: Any) -> Grant:
    facts = {"generation": 3, "scopes": (), "obtained_at": NOW - timedelta(hours=1), "refreshable": True}
    return Grant(**{**facts, "expires_at": NOW - ended, **changes})


def state(grant: Grant | None, leased: int = 0, **changes: Any) -> TokenState:
    return token_state(CONNECTION.__replace__(**changes), grant, leased, NOW)


@pytest.mark.parametrize(
    ("grant", "leased", "changes", "expected"),
    [
        (None, 0, {}, TokenState.NONE),
        (a_grant(-MINUTE), 0, {}, TokenState.VALID),
        (a_grant(expires_at=None), 0, {}, TokenState.VALID),
        (a_grant(), 2, {}, TokenState.IDLE),
        (a_grant(), 3, {}, TokenState.DUE),
        (a_grant(30 * MINUTE), 3, {}, TokenState.LATE),
        (a_grant(access_generation=2), 2, {}, TokenState.DUE),
        (a_grant(), 0, {"refresh_policy": "warm"}, TokenState.DUE),
        (a_grant(), 3, {"refresh_policy": "on_demand"}, TokenState.IDLE),
        (a_grant(), 3, {"failures": 1, "last_failure": ErrorCode.PROVIDER_ERROR}, TokenState.FAILING),
        (a_grant(refreshable=False), 3, {}, TokenState.OVER),
        (a_grant(), 3, {"state": LifecycleState.NEEDS_REAUTH}, TokenState.OVER),
        (a_grant(), 3, {"follow_up": FollowUp.CHOOSING}, TokenState.CHOOSING),
        (a_grant(), 3, {"state": LifecycleState.REVOKED}, TokenState.NONE),
    ],
)
def test_the_token_of_a_connection(
    grant: Grant | None, leased: int, changes: dict[str, Any], expected: TokenState
):
    assert state(grant, leased, **changes) is expected
