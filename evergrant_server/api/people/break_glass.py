"""A session that is made on the host, for when people can't log in: one hour, with an alarm."""

import logging

from evergrant_server.access.transactions import record
from evergrant_server.api.people.session_start import bearer_of
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import SessionId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.roles import HOST, Person, PersonRole
from evergrant_server.core.people.sessions import (
    BREAK_GLASS_LASTS,
    PersonSession,
    SessionKind,
    hash_secret,
)
from evergrant_server.store import Store
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.requests.authorization_url import new_random_value

log = logging.getLogger("evergrant.cli")

_LONGEST = 255


async def make_break_glass_session(store: Store, clock: Clock, tenant: Tenant, who: str, reason: str) -> str:
    """Make a session with the role tenant_admin, and return its bearer token. Needs the store and its keys.

    The audit record, which webhooks get as an event, is committed with it. Raises Failure INVALID_REQUEST for
    a name or a reason that no record can hold.
    """
    for field, text in (("who", who), ("reason", reason)):
        if not text.strip() or not text.isprintable() or len(text) > _LONGEST:
            raise Failure(
                ErrorCode.INVALID_REQUEST, f"{field}: 1 to {_LONGEST} printable characters", field=field
            )
    now, secret = clock.now(), new_random_value()
    session = PersonSession(
        tenant=tenant,
        id=SessionId(new_id("ses")),
        kind=SessionKind.BREAK_GLASS,
        secret_hash=hash_secret(secret.reveal()),
        rule=None,
        person=Person(issuer=HOST, sub=who, name=who),
        role=PersonRole.TENANT_ADMIN,
        reason=reason,
        authenticated_at=now,
        created_at=now,
        last_used_at=now,
        expires_at=now + BREAK_GLASS_LASTS,
    )
    until = session.expires_at.isoformat()
    detail = {"who": who, "reason": reason, "person": session.person_id, "until": until}
    async with store.write() as tx:
        await tx.person_sessions.add(session)
        operator = RequestContext(by="operator")
        await record(tx, tenant, AuditAction.BREAK_GLASS, session.id, operator, now, **detail)
    log_event(log, logging.ERROR, LogEvent.BREAK_GLASS, f"{who} until {until}: {reason}", object=session.id)
    return bearer_of(secret)
