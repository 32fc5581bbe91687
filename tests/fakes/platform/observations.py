"""What the store and Temporal say about an installation's connections, for assertions."""

import asyncio
from collections.abc import Callable

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import connection_workflow_id
from evergrant_server.core.single_use.attempt import LateTokens
from evergrant_server.wiring.platform import Platform
from tests.fakes.patience import PATIENCE_S
from tests.fakes.temporal import runs

TENANT = Tenant("acme")


class Observations:
    """Reads the rows, the audit log and the histories of one tenant, and waits for what they should say."""

    def __init__(self, parts: Platform) -> None:
        self.parts = parts
        self.store = parts.store

    async def row(self, connection: Connection) -> Connection:
        async with self.store.read() as tx:
            found = await tx.connections.get(TENANT, connection.id)
        assert found is not None
        return found

    async def integration_of(self, connection: Connection) -> Integration:
        async with self.store.read() as tx:
            found = await tx.integrations.get(TENANT, connection.integration_id)
        assert found is not None
        return found

    async def consent_of(self, consent: Consent) -> Consent:
        """The consent's row as it is now."""
        async with self.store.read() as tx:
            found = await tx.consents.get(TENANT, consent.id)
        assert found is not None
        return found

    async def grant(self, connection: Connection) -> tuple[Connection, Grant]:
        """What a backup would hold of it now."""
        async with self.store.read() as tx:
            row = await tx.connections.get(TENANT, connection.id)
            grant = await tx.grants.get(TENANT, connection.id)
        assert row is not None
        assert grant is not None
        return row, grant

    async def access_token(self, connection: Connection) -> str:
        async with self.store.read() as tx:
            return (await tx.grants.access_token(await self.row(connection))).reveal()

    async def open_attempts(self, connection: Connection) -> int:
        async with self.store.read() as tx:
            found = await tx.attempts.open_of_any_kind(TENANT, connection.id, MAIN_SLOT)
        return 0 if found is None else 1

    async def late_tokens(self, connection: Connection) -> list[LateTokens]:
        async with self.store.read() as tx:
            return await tx.late_tokens.of_connection(TENANT, connection.id)

    async def signals(self, connection: Connection) -> list[str]:
        """The signals that the connection's workflow was sent, by name."""
        events = await self.parts.link.history(connection_workflow_id(TENANT, connection.id))
        sent = (event.get("workflowExecutionSignaledEventAttributes") for event in events)
        return [it["signalName"] for it in sent if it]

    async def audited(self, connection: Connection) -> list[AuditRecord]:
        async with self.store.read() as tx:
            return await audit.page(tx, TENANT, object=connection.id, limit=100)

    async def records(self, action: AuditAction) -> list[AuditRecord]:
        """Every record of this kind in the tenant's log."""
        async with self.store.read() as tx:
            return [it for it in await audit.page(tx, TENANT, limit=500) if it.action is action]

    async def actions(self, connection: Connection) -> list[AuditAction]:
        return [record.action for record in await self.audited(connection)]

    async def actions_on(self, object: str) -> list[AuditAction]:
        async with self.store.read() as tx:
            return [record.action for record in await audit.page(tx, TENANT, object=object, limit=100)]

    async def until(
        self, connection: Connection, condition: Callable[[Connection], bool], limit_s: float = PATIENCE_S
    ) -> Connection:
        async with asyncio.timeout(limit_s):
            while not condition(row := await self.row(connection)):
                await asyncio.sleep(0.05)
        return row

    async def until_signalled(self, connection: Connection, name: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while name not in await self.signals(connection):
                await asyncio.sleep(0.05)

    async def until_started(self, connection: Connection) -> None:
        """Wait until the connection's workflow is there."""
        async with asyncio.timeout(PATIENCE_S):
            while not await runs(self.parts.link, connection_workflow_id(TENANT, connection.id)):
                await asyncio.sleep(0.05)

    async def until_audited(self, connection: Connection, action: AuditAction) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while action not in await self.actions(connection):
                await asyncio.sleep(0.05)

    async def until_exported(self, connection: Connection) -> list[AuditAction]:
        """Wait until a closed run's history is in the store."""
        async with asyncio.timeout(PATIENCE_S):
            while AuditAction.HISTORY_EXPORTED not in (found := await self.actions(connection)):
                await asyncio.sleep(0.05)
        return found
