"""What the store and Temporal say about an installation's connections, for assertions."""

import asyncio
from collections.abc import Callable
from typing import Any

from temporalio.client import WorkflowHandle

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.connection import ConnectionDescription
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.single_use.attempt import LateTokens
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.wiring.platform import Platform
from tests.fakes.patience import PATIENCE_S, eventually

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

    async def integration_now(self, integration_id: IntegrationId) -> Integration:
        async with self.store.read() as tx:
            found = await tx.integrations.get(TENANT, integration_id)
        assert found is not None
        return found

    async def integration_of(self, connection: Connection) -> Integration:
        return await self.integration_now(connection.integration_id)

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

    async def audited(self, connection: Connection, action: AuditAction | None = None) -> list[AuditRecord]:
        """Its records, or those of one kind."""
        async with self.store.read() as tx:
            found = await audit.page(tx, TENANT, object=connection.id, limit=100)
        return [it for it in found if action in (None, it.action)]

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
            return await eventually(lambda: self.row(connection), condition)

    def workflow(self, connection: Connection) -> WorkflowHandle[Any, Any]:
        return self.parts.client.get_workflow_handle(connection_workflow_id(TENANT, connection.id))

    async def described(self, connection: Connection) -> ConnectionDescription | None:
        """What its workflow says; None when it has none."""
        return await self.parts.link.describe(TENANT, connection.id, timeout=PATIENCE_S)

    async def until_described(
        self, connection: Connection, condition: Callable[[ConnectionDescription], bool]
    ) -> ConnectionDescription:
        """Wait until its workflow says so as well."""
        said = await eventually(lambda: self.described(connection), lambda it: it and condition(it))
        assert said is not None
        return said

    async def until_signalled(self, connection: Connection, name: str) -> None:
        await eventually(lambda: self.signals(connection), lambda it: name in it)

    async def until_started(self, connection: Connection) -> None:
        """Wait until the connection's workflow is there."""
        await eventually(lambda: runs(self.parts.link, connection_workflow_id(TENANT, connection.id)))

    async def until_audited(self, connection: Connection, action: AuditAction) -> list[AuditAction]:
        """Wait for this record, and return what is recorded."""
        return await eventually(lambda: self.actions(connection), lambda it: action in it)

    async def until_exported(self, connection: Connection) -> list[AuditAction]:
        """Wait until a closed run's history is in the store."""
        return await self.until_audited(connection, AuditAction.HISTORY_EXPORTED)


async def run_id(link: TemporalLink, workflow: str) -> str | None:
    """The newest run of a workflow."""
    found = await link.newest_run(workflow)
    return found and found.run_id


async def runs(link: TemporalLink, workflow: str) -> bool:
    found = await link.newest_run(workflow)
    return found is not None and found.running
