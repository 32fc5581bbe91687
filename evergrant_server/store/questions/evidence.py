"""Counts of what a tenant has, for evidence: permits, credentials, decisions, ends. Checks no row."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, func, select

from evergrant_server.core.ids import Tenant
from evergrant_server.store.access import AppCredentialRow, AppKeyRow, AppRow
from evergrant_server.store.connections.incidents import INCIDENTS, IncidentRow
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import Row, table_of
from evergrant_server.store.database.rows import Repository
from evergrant_server.store.decisions import AccessRequestRow, ApprovalRow
from evergrant_server.store.erasure.orders import ErasureRow, LegalHoldRow
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.people.people import AdminLoginRow
from evergrant_server.store.permits import PermitRow, PermitUseRow
from evergrant_server.store.questions.questions import QuestionRow
from evergrant_server.store.webhooks import WebhookRow

Counts = dict[str, int]


class EvidenceCounts(Repository):
    """What a tenant has, by kinds."""

    async def access(self, tenant: Tenant, unused_since: datetime) -> Counts:
        """Apps and permits, and how many of the permits bound nothing in time or went unused."""
        permit, use = table_of(PermitRow), table_of(PermitUseRow)
        used = select(use.c.permit_id).where(use.c.tenant == tenant, use.c.used_at >= unused_since)
        return {
            "apps": await self._count(AppRow, tenant),
            "apps_disabled": await self._count(AppRow, tenant, table_of(AppRow).c.disabled.is_(True)),
            "permits": await self._count(PermitRow, tenant),
            "permits_that_deny": await self._count(PermitRow, tenant, permit.c.effect == "deny"),
            "permits_with_an_end": await self._count(PermitRow, tenant, permit.c.expires_at.is_not(None)),
            "permits_unused": await self._count(
                PermitRow, tenant, permit.c.id.not_in(used), permit.c.created_at < unused_since
            ),
        }

    async def decisions(self, tenant: Tenant, since: datetime) -> Counts:
        """Requests for access of that time by state, and approvals of dangerous commands."""
        request, approval = table_of(AccessRequestRow).c, table_of(ApprovalRow).c
        states = await self._by(AccessRequestRow, tenant, request.state, request.created_at >= since)
        self_approved = (request.decided_by == request.requested_by) & (request.state == "approved")
        return {
            **{f"requests_{state}": number for state, number in sorted(states.items())},
            "requests_approved_by_who_asked": await self._count(
                AccessRequestRow, tenant, request.created_at >= since, self_approved
            ),
            "commands_approved_by_a_second_admin": await self._count(
                ApprovalRow, tenant, approval.created_at >= since, approval.approved_by.is_not(None)
            ),
        }

    async def authentication(self, tenant: Tenant, now: datetime, old: datetime) -> Counts:
        """How apps prove who they are; `keys_old` were made before `old` and are accepted still."""
        key = table_of(AppKeyRow).c
        live = key.revoked_at.is_(None) & (key.expires_at.is_(None) | (key.expires_at > now))
        methods = await self._by(AppCredentialRow, tenant, table_of(AppCredentialRow).c.method)
        bindings = await self._by(IntegrationRow, tenant, table_of(IntegrationRow).c.binding)
        return {
            "keys": await self._count(AppKeyRow, tenant, live),
            "keys_without_an_end": await self._count(AppKeyRow, tenant, live, key.expires_at.is_(None)),
            "keys_old": await self._count(AppKeyRow, tenant, live, key.created_at < old),
            **{f"credentials_{method}": number for method, number in sorted(methods.items())},
            **{f"integrations_bound_by_{binding}": number for binding, number in sorted(bindings.items())},
            "people_log_in": await self._count(AdminLoginRow, tenant),
        }

    async def ends(self, tenant: Tenant) -> Counts:
        """What was revoked and erased, and how far providers have confirmed it."""
        connection, erasure = table_of(ConnectionRow).c, table_of(ErasureRow).c
        outcomes = await self._by(ConnectionRow, tenant, connection.revocation, connection.state == "revoked")
        done = erasure.state == "done"
        unconfirmed = select(func.coalesce(func.sum(erasure.unconfirmed), 0)).where(erasure.tenant == tenant)
        return {
            **{f"revoked_{outcome or 'unsaid'}": number for outcome, number in sorted(outcomes.items())},
            "revoking": await self._count(ConnectionRow, tenant, connection.state == "revoking"),
            "erasures_done": await self._count(ErasureRow, tenant, done),
            "erasures_under_way": await self._count(ErasureRow, tenant, erasure.finished_at.is_(None)),
            "erased_unconfirmed": int((await self._connection.execute(unconfirmed)).scalar_one()),
        }

    async def records(self, tenant: Tenant) -> Counts:
        hold, question = table_of(LegalHoldRow).c, table_of(QuestionRow).c
        return {
            "legal_holds_active": await self._count(LegalHoldRow, tenant, hold.ended_at.is_(None)),
            "questions_about_subjects": await self._count(QuestionRow, tenant, question.kind == "subject"),
            "questions_about_incidents": await self._count(QuestionRow, tenant, question.kind == "incident"),
        }

    async def incidents(self, tenant: Tenant, since: datetime) -> Counts:
        """Incidents and drills of that time by state, and the connections that ended unconfirmed in them."""
        incident = table_of(IncidentRow).c
        of_that_time = (incident.kind.in_(INCIDENTS), incident.created_at >= since)
        states = await self._by(IncidentRow, tenant, incident.state, *of_that_time)
        return {f"incidents_{state}": number for state, number in sorted(states.items())}

    async def listeners(self, tenant: Tenant, event: str) -> int:
        """How many webhooks that aren't disabled get this event."""
        row = table_of(WebhookRow).c
        events = select(row.events).where(row.tenant == tenant, row.disabled_by.is_(None))
        return sum(event in wanted for wanted in (await self._connection.execute(events)).scalars())

    async def _count(self, row: type[Row], tenant: Tenant, *conditions: ColumnElement[bool]) -> int:
        table: Table = table_of(row)
        query = select(func.count()).select_from(table).where(table.c.tenant == tenant, *conditions)
        return int((await self._connection.execute(query)).scalar_one())

    async def _by(
        self, row: type[Row], tenant: Tenant, column: Any, *conditions: ColumnElement[bool]
    ) -> dict[str, int]:
        table: Table = table_of(row)
        query = select(column, func.count()).where(table.c.tenant == tenant, *conditions).group_by(column)
        return {str(value or ""): int(number) for value, number in await self._connection.execute(query)}
