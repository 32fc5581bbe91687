"""One real life of a connection, with values that can be looked for, and the worker that erases it."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.erasure import ErasureActivities
from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.ids import ClientConsentId, ConnectionId, ErasureId, SessionId, new_id
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.erasure import ErasureCall, ErasureProgress
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.oauth.requests import ClientConsent, SubjectSession
from evergrant_server.core.people.roles import Person
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.store import HistoryExport
from evergrant_server.temporal_link.runs import NewestRun
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.databases import lent
from tests.fakes.rows import a_delegation, a_family, add_refresh

TRACE = "0af7651916cd43dd8448eb211c80319c"


class ScriptedRuns:
    """Stands where TemporalLink stands: which runs are open, and which were terminated."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.terminated: list[str] = []

    async def newest_run(self, workflow: str) -> NewestRun | None:
        return NewestRun("run-1", workflow in self.open, None)

    async def terminate_run(self, workflow: str, run_id: str, reason: str) -> None:
        self.terminated.append(workflow)
        self.open.discard(workflow)


class Life:
    """An installation with one person in it."""

    def __init__(self, api: Api, admin: str, app: str, database_url: str) -> None:
        self.api, self.admin, self.app, self.database_url = api, admin, app, database_url
        self.runs = ScriptedRuns()
        mark = secrets.token_hex(6)
        self.subject = f"alice-{mark}@wonder.example"
        self.values: dict[str, str] = {
            "subject": self.subject,
            "label": f"laptop-of-alice-{mark}",
            "scope": f"calendar:alice-{mark}",
            "account": f"account-of-alice-{mark}",
            "call": f"https://gitlab.com/api/v4/users/alice-{mark}",
            "reason": f"because-alice-{mark}-said-so",
            "history": f"history-of-alice-{mark}",
            "session": f"Alice {mark} Liddell",
        }
        self.tokens = {"access": f"at-{secrets.token_hex(16)}", "refreshed": f"at-{secrets.token_hex(16)}"}

    async def live(self) -> Connection:
        """Consent, grant, refresh, lease, a failure, a delegation, an approval, a session, a history."""
        api, values = self.api, self.values
        body = {"integration": "crm", "subject": self.subject, "label": values["label"]}
        wanted = {**body, "scopes": [values["scope"]]}
        made = await api.post("/v1/connections", self.app, wanted, headers={"Idempotency-Key": "one"})
        assert made.status_code in (200, 201), made.text
        connection = await api.row(TENANT, ConnectionId(made.json()["id"]))
        for token in self.tokens.values():
            connection = await api.install(connection, token, scopes=(values["scope"],))
        leased = await api.post("/v1/lease", self.app, body)
        assert leased.json()["access_token"] == self.tokens["refreshed"]
        call = {
            "connection_id": connection.id,
            "method": "GET",
            "url": values["call"],
            "reason": values["reason"],
        }
        assert (await api.post("/v1/call-approvals", self.app, call)).is_success
        await self._worker(connection)
        await api.outbox()
        return connection

    async def _worker(self, connection: Connection) -> None:
        """What workers and pages write."""
        api, values, now = self.api, self.values, self.api.clock.now()
        app = await api.app_named("app")
        person = Person(issuer="https://login.example", sub=values["account"], name=values["session"])
        context = RequestContext(by="app:app", trace_id=TRACE)
        about = {
            connection.id: (
                AuditAction.REFRESH_FAILED,
                {"provider_said": {"description": values["account"]}},
            ),
            self.subject: (AuditAction.SUBJECT_LOGGED_IN, person.model_dump()),
            "dlg_of_last_year": (AuditAction.DELEGATION_ISSUED, {"subject": self.subject}),
        }
        history = HistoryExport(
            tenant=TENANT,
            connection_id=connection.id,
            workflow_id=connection_workflow_id(TENANT, connection.id),
            run_id="run-0",
            exported_at=now,
            closed=True,
            last_event_id=1,
            events=[{"eventId": "1", "payload": values["history"]}],
        )
        async with api.worker.write() as tx:
            await add_refresh(tx, connection, now, AttemptOutcome.INSTALLED)
            await tx.histories.add(history)
            await tx.delegations.add(a_delegation(app, "key_1", self.subject, now))
            await tx.token_families.add(a_family(app, self.subject, now))
            await tx.subject_sessions.add(a_session(self.subject, person, now))
            await tx.client_consents.put(a_client_consent(self.subject, now))
            entries = [
                AuditEntry(
                    tenant=TENANT, at=now, action=action, object=object, context=context, detail=detail
                )
                for object, (action, detail) in about.items()
            ]
            await audit.append_all(tx, entries)

    async def revoked(self, connection_id: str) -> None:
        """What the connection's workflow has done in the end: the provider has confirmed."""
        now = self.api.clock.now()
        async with self.api.worker.write() as tx:
            current = await tx.connections.get(TENANT, ConnectionId(connection_id))
            assert current is not None
            assert current.state is LifecycleState.REVOKING
            ended = current.revocation_ended(RevocationOutcome.CONFIRMED, now)
            await tx.connections.replace(ended, expected=current.revision)
            await tx.grants.shred(TENANT, current.id)

    async def order(self, key: str | None = None, **body: Any) -> dict[str, Any]:
        answer = await self.api.post("/v1/erasures", key or self.admin, {"reason": "INC-9", **body})
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def step(self, erasure_id: str) -> ErasureProgress:
        """One activity of the erasure's workflow."""
        call = ErasureCall(
            tenant=TENANT,
            erasure_id=ErasureId(erasure_id),
            context=RequestContext(by="app:admin", trace_id=TRACE),
            provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
        )
        activities = ErasureActivities(self.api.worker, self.runs, self.api.clock)  # type: ignore[arg-type]  # a stand-in
        return await ActivityEnvironment().run(activities.advance_erasure, call)

    async def to_the_end(self, erasure_id: str) -> ErasureProgress:
        """Every step that has something to do."""
        while (progress := await self.step(erasure_id)).next_s == 0:
            pass
        return progress

    async def erased(self, connection: Connection, **target: Any) -> ErasureProgress:
        """Order it, have the provider confirm, and erase."""
        erasure = await self.order(**target)
        await self.to_the_end(erasure["id"])
        await self.revoked(connection.id)
        return await self.to_the_end(erasure["id"])


def a_session(subject: str, person: Person, now: Any) -> SubjectSession:
    return SubjectSession(
        tenant=TENANT,
        id=SessionId(new_id("ses")),
        secret_hash=secrets.token_hex(32),
        rule="clg_1",
        subject=subject,
        person=person,
        created_at=now,
        expires_at=now,
    )


def a_client_consent(subject: str, now: Any) -> ClientConsent:
    return ClientConsent(
        tenant=TENANT,
        id=ClientConsentId(new_id("ccn")),
        client_id="cli_1",
        subject=subject,
        resource="https://gateway.example/mcp",
        redirect_uri="http://127.0.0.1/done",
        rule="clg_1",
        created_at=now,
        used_at=now,
    )


@asynccontextmanager
async def life(kind: str, folder: Path, **settings: Any) -> AsyncIterator[Life]:
    """An installation on this kind of database, and who will live there."""
    async with lent(kind, folder) as url, running_api(folder, database_url=url, **settings) as api:
        await api.integration(scope_ceiling=None)
        admin = await api.app_with("admin", Action.ADMIN)
        app = await api.app_with("app", Action.TOKEN, Action.CONNECT)
        yield Life(api, admin, app, url)
