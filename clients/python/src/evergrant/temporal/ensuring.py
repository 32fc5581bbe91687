"""The activity behind `workflow.ensure`: each try asks once whether there is a token by now.

A try that finds none fails, and Temporal begins the next one when it is due; what earlier tries told whom
is in the heartbeat's details. Neither holds a link.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from evergrant.api.models import Connection
from evergrant.async_client import AsyncEvergrant
from evergrant.errors import BadRequest, ReconnectNeeded
from evergrant.lease import Lease
from evergrant.models import ConsentRequired, State
from evergrant.temporal.leases import CURRENT_LEASES
from evergrant.temporal.workflow import ENSURE, Ensured, EnsureToken

OnConsentRequired = Callable[[EnsureToken, ConsentRequired], Awaitable[None]]
_ENDED = (State.DENIED, State.REVOKING, State.REVOKED)  # a person said no: no new link is asked for


@dataclass(frozen=True, slots=True)
class _Awaited:
    """The consent that an earlier try found missing, whose link `on_consent_required` has had."""

    connection_id: str
    missing_scopes: tuple[str, ...]
    expires_at: str | None

    def link_lasts(self) -> bool:
        return self.expires_at is None or datetime.now(UTC) < datetime.fromisoformat(self.expires_at)


class EnsureActivity:
    """Holds the hook for new links."""

    def __init__(self, on_consent_required: OnConsentRequired | None) -> None:
        self._on_consent_required = on_consent_required

    @activity.defn(name=ENSURE)
    async def ensure(self, wanted: EnsureToken) -> Ensured:
        """Raises EvergrantError; one that waits for the subject is a failure that Temporal retries."""
        leases = CURRENT_LEASES.get()
        assert leases is not None, "the plugin that registers this activity intercepts it"
        client, awaited = leases.clients.asyncio, _awaited()
        if awaited is not None and await _still_waits(client, awaited):
            raise _waiting(awaited.connection_id)
        try:
            answer = await (_lease(client, wanted) if wanted.hold else _connect(client, wanted))
        except ReconnectNeeded as needed:  # without a link: this app may not connect, or an admin is asked
            raise _waiting(needed.connection_id, needed) from None
        if isinstance(answer, Lease):
            leases.secrets.append(answer.access_token)
            return Ensured(answer.connection_id, answer.generation, answer.expires_at, answer.scopes)
        if isinstance(answer, Connection):
            return Ensured(answer.id, answer.generation, answer.expires_at, answer.scopes)
        leases.secrets.append(answer.connect_url)
        await self._tell(wanted, answer)
        raise _waiting(answer.connection_id)

    async def _tell(self, wanted: EnsureToken, answer: ConsentRequired) -> None:
        """Once for each link; again after a worker that died between this and its heartbeat."""
        expires = answer.expires_at.isoformat() if answer.expires_at else None
        awaited_consent = _Awaited(answer.connection_id, answer.missing_scopes, expires)
        if self._on_consent_required is not None and awaited_consent != _awaited():
            await self._on_consent_required(wanted, answer)
        activity.heartbeat(awaited_consent)


async def _lease(client: AsyncEvergrant, wanted: EnsureToken) -> Lease | ConsentRequired:
    return await client.lease(wanted.integration, wanted.subject, label=wanted.label, scopes=wanted.scopes)


async def _connect(client: AsyncEvergrant, wanted: EnsureToken) -> Connection | ConsentRequired:
    """The connection, once it is active with the scopes; no token is leased. Raises the failure of one that
    waits without a link."""
    connection = await client.connect(
        wanted.integration, wanted.subject, label=wanted.label, scopes=wanted.scopes
    )
    missing = tuple(scope for scope in wanted.scopes or () if scope not in connection.scopes)
    if connection.state is State.ACTIVE and not missing:
        return connection
    if connection.connect_url is None:
        raise _waiting(connection.id)
    return ConsentRequired(connection.connect_url, connection.id, connection.connect_expires_at, missing)


def _awaited() -> _Awaited | None:
    details: Sequence[Mapping[str, Any]] = activity.info().heartbeat_details
    if not details:
        return None
    facts = details[0]
    return _Awaited(facts["connection_id"], tuple(facts["missing_scopes"]), facts["expires_at"])


async def _still_waits(client: AsyncEvergrant, awaited: _Awaited) -> bool:
    """True when a lease would be refused as before, and its link lasts. Raises the failure of a connection
    that a person has ended."""
    try:
        connection = await client.connection(awaited.connection_id)
    except BadRequest as error:
        if error.status != 404:
            raise
        return False  # it was deleted
    if connection.state in _ENDED:
        raise _ended(connection)
    granted = connection.state is State.ACTIVE and set(awaited.missing_scopes) <= set(connection.scopes)
    return not granted and not connection.state.final and awaited.link_lasts()


def _waiting(connection_id: str | None, needed: ReconnectNeeded | None = None) -> ApplicationError:
    code = "consent_required" if needed is None else needed.code
    return ApplicationError(
        f"{connection_id or 'the connection'} waits for a person: {code}",
        {"code": code, "connection_id": connection_id},
        type="ConsentAwaited",
        category=ApplicationErrorCategory.BENIGN,
    )


def _ended(connection: Connection) -> ApplicationError:
    code = connection.reason or str(connection.state)
    return ApplicationError(
        f"{connection.id} has ended: {connection.state}",
        {"code": code, "connection_id": connection.id},
        type="ConnectionEnded",
        non_retryable=True,
    )
