"""After a leak of Evergrant's keys: the tenant's keys are replaced, then those of each connection.

Connection by connection, the most recently used first: new keys, and new tokens by a refresh where the
provider ends the refresh token that is used. What is left is a person's: the report names it.
"""

from activities.incidents.rows import Rows, Waves, is_new, reason_of
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.incidents import Incident, IncidentItem, ItemOutcome, ItemStep
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyRotationId, derived_id
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.key_rotation import RotationCommand, RotationKind
from evergrant_server.core.messages.connection import Rotate
from evergrant_server.core.messages.keys import KeyRotationStart
from evergrant_server.core.messages.names import SignalName, key_rotation_workflow_id
from evergrant_server.core.outbox import key_rotation_message
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import ListedConnection, connections_of
from evergrant_server.temporal_link.link import TemporalLink

_LOOKED_AT = 100  # connections of one look
# the refresh token that is used ends
_ENDING = (Rotation.STRICT, Rotation.GRACE)


class Leak:
    """`page`: connections whose keys are replaced in one transaction."""

    def __init__(self, rows: Rows, waves: Waves, link: TemporalLink, page: int) -> None:
        self._rows, self._waves, self._link, self._page = rows, waves, link, page

    async def rotate(self, incident: Incident) -> Incident:
        """Have the tenant's own keys replaced, by a rotation of its own."""
        return await self._with_rotation(incident, RotationKind.TENANT, RotationCommand.ROTATE)

    async def clean(self, incident: Incident) -> Incident:
        """Have the replaced keys of connections destroyed, by a rotation of its own."""
        return await self._with_rotation(incident, RotationKind.CONNECTION, RotationCommand.RETIRE)

    async def _with_rotation(
        self, incident: Incident, kind: RotationKind, command: RotationCommand
    ) -> Incident:
        """The next state once the rotation is done. One of the kind that runs already comes before it."""
        start = KeyRotationStart(
            tenant=incident.tenant,
            rotation_id=KeyRotationId(derived_id("rot", incident.id, kind)),
            kind=kind,
            command=command,
            begun_at=incident.created_at,
            context=self._rows.context(incident),
        )
        workflow = key_rotation_workflow_id(incident.tenant, kind)
        try:
            newest = await self._link.describe_key_rotation(workflow)
        except Failure as failure:
            if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE:
                raise
            return await self._rows.move(incident, _unchanged)
        is_own = newest is not None and newest.rotation_id == start.rotation_id
        if newest is not None and newest.progress.done and is_own:
            return await self._rows.move(incident, _next_state)
        if newest is not None and not newest.progress.done:
            return await self._rows.move(incident, _unchanged)

        async def send(tx: Transaction, current: Incident) -> Incident:
            if not await tx.outbox.targets_with_undelivered([workflow]):
                await tx.outbox.add(key_rotation_message(start, self._rows.now))
            return await _unchanged(tx, current)

        return await self._rows.move(incident, send)

    async def advance(self, incident: Incident) -> Incident:
        """New keys for the next connections; then note which have new tokens, and tell the next ones."""
        return await self._rows.move(incident, self._look)

    async def _look(self, tx: Transaction, incident: Incident) -> Incident:
        listed = await tx.incident_items.next_at(incident, ItemStep.LISTED, self._page)
        if listed and not await self._replace_keys(tx, incident, listed):
            return await _unchanged(tx, incident)
        changed = await tx.incident_items.changed(incident, _LOOKED_AT)
        outcomes = [_outcome_of(connection) for connection in changed]
        for connection, outcome in zip(changed, outcomes, strict=True):
            await self._rows.end(tx, connection.item, outcome)
        after = incident.with_ended(outcomes)
        turns = await self._waves.next(tx, incident, ItemStep.KEYED)
        settled = [outcome for item in turns if (outcome := await self._tell(tx, incident, item))]
        after = after.with_ended(settled)
        is_open = await tx.incident_items.any_open(incident)
        if not is_open or (self._rows.is_over(incident) and not (listed or turns)):
            return after.following()
        if listed or settled:
            return after.__replace__(idle=0)
        return after.__replace__(idle=1 if changed or turns else incident.idle + 1)

    async def _replace_keys(self, tx: Transaction, incident: Incident, listed: list[IncidentItem]) -> bool:
        """Give these connections new keys; False while another transaction holds one of the older ones."""
        id = KeyRotationId(derived_id("rot", incident.id, RotationKind.CONNECTION))
        rotation = (id, incident.created_at)
        moved = await tx.connection_keys.replace(
            incident.tenant, connections_of(listed), tuple(KeyPurpose), *rotation
        )
        if moved.skipped:
            return False
        for item in listed:
            keyed = item.__replace__(step=ItemStep.KEYED)
            await tx.incident_items.replace(keyed, expected=item.revision)
        return True

    async def _tell(self, tx: Transaction, incident: Incident, item: IncidentItem) -> ItemOutcome | None:
        """Tell the connection's workflow to refresh, where that ends what may have leaked; else the outcome
        that is left: a person has to act, or there is nothing to renew."""
        connection = await tx.connections.get(incident.tenant, item.connection_id)
        if connection is None or connection.has_ended:
            outcome = ItemOutcome.GONE
        elif connection.state is LifecycleState.PENDING_CONSENT:
            outcome = ItemOutcome.NOTHING_HELD
        else:
            integration = await tx.integrations.get(incident.tenant, connection.integration_id)
            grant = await tx.grants.get(incident.tenant, connection.id)
            rotates = integration is not None and integration.refresh.rotation in _ENDING
            if rotates and grant is not None and grant.refreshable and connection.reason is None:
                seen, context = connection.generation, self._rows.context(incident)
                message = Rotate(reason=reason_of(incident), seen_generation=seen, context=context)
                told = item.__replace__(generation=seen)
                await self._rows.tell(tx, incident, told, SignalName.ROTATE, message)
                return None
            outcome = ItemOutcome.RECONNECT
        await self._rows.end(tx, item, outcome)
        return outcome


def _outcome_of(connection: ListedConnection) -> ItemOutcome:
    """What has become of a connection that was told to refresh."""
    if is_new(connection.item, connection.generation):
        return ItemOutcome.RENEWED
    if connection.state == LifecycleState.NEEDS_REAUTH:
        return ItemOutcome.RECONNECT
    return ItemOutcome.GONE


async def _unchanged(_: Transaction, incident: Incident) -> Incident:
    return incident.__replace__(idle=incident.idle + 1)


async def _next_state(_: Transaction, incident: Incident) -> Incident:
    return incident.following()
