"""Of a breach and of a leaver: stopped connections are revoked at the providers, most recently used first.

The workflow of each connection is told in turn. It revokes as for any other command, for as long as that
takes, and destroys the keys.
"""

from activities.incidents.rows import Rows, Waves, reason_of
from evergrant_server.core.connections.incidents import Incident, ItemStep, outcome_of_revocation
from evergrant_server.core.messages.connection import Revoke
from evergrant_server.core.messages.names import SignalName
from evergrant_server.store import Transaction

_ENDED_AT_ONCE = 100  # rows of one look


class Breach:
    def __init__(self, rows: Rows, waves: Waves) -> None:
        self._rows, self._waves = rows, waves

    async def advance(self, incident: Incident) -> Incident:
        """Note which connections have ended, and tell the next ones."""
        return await self._rows.move(incident, self._look)

    async def _look(self, tx: Transaction, incident: Incident) -> Incident:
        ended = await tx.incident_items.revoked(incident, _ENDED_AT_ONCE)
        for item, revocation in ended:
            await self._rows.end(tx, item, outcome_of_revocation(revocation))
        after = incident.with_ended([outcome_of_revocation(revocation) for _, revocation in ended])
        if len(ended) == _ENDED_AT_ONCE:
            return after.__replace__(idle=0)
        turns = await self._waves.next(tx, incident, ItemStep.LISTED)
        message = Revoke(reason=reason_of(incident), context=self._rows.context(incident))
        for item in turns:
            await self._rows.tell(tx, incident, item, SignalName.REVOKE, message)
        is_open = await tx.incident_items.any_open(incident)
        if not is_open or (self._rows.is_over(incident) and not turns):
            return after.following()
        return after.__replace__(idle=1 if ended or turns else incident.idle + 1)
