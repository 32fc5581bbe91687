"""Where a connection's workflow begins: its life as the store tells it. Pure."""

from datetime import datetime

from evergrant_server.core.account import FollowUp
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.grant import Grant
from evergrant_server.core.ids import workflow_id
from evergrant_server.core.messages import Asked, ConnectionStart, Life
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, written
from evergrant_server.core.schedule import NEWEST_RULES


def life_of(connection: Connection, grant: Grant | None, idle_s: float | None, now: datetime) -> Life:
    """The life of a connection as the store tells it: a new workflow goes on from here."""
    life = Life(
        state=connection.state,
        generation=connection.generation,
        policy=connection.refresh_policy,
        flow=connection.flow,
        consent_deadline=connection.consent_deadline,
        reason=connection.reason,
        revoke_reason=connection.revoke_reason,
        retry_at=now if connection.state is State.REVOKING else None,
        look_at=now if connection.follow_up is FollowUp.LOOKING else None,
        choosing=connection.follow_up is FollowUp.CHOOSING,
    )
    if grant is None:
        return life
    return life.model_copy(
        update={
            "obtained_at": grant.obtained_at,
            "expires_at": grant.expires_at,
            "refreshable": grant.refreshable,
            "idle_s": idle_s,
            "refresh_expires_at": grant.refresh_expires_at,
            "end_known_at": grant.obtained_at,
            "interim": grant.interim,
            "ends_together": grant.ends_together,
        }
    )


def begun(connection: Connection, subject_hash: str, asked: Asked, now: datetime) -> OutboxMessage:
    """Has the workflow of a new connection begin, written with the row itself."""
    order = ConnectionStart(
        tenant=connection.tenant,
        connection_id=connection.id,
        integration_id=connection.integration_id,
        integration=connection.integration,
        provider=connection.provider,
        subject_hash=subject_hash,
        rules=NEWEST_RULES,
        life=life_of(connection, None, None, now),
        asked=asked,
    )
    target = workflow_id(connection.tenant, connection.id)
    return written(connection.tenant, OutboxKind.START_WORKFLOW, target, order, now)
