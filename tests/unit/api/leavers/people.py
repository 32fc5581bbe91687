"""Somebody with connections, sessions, a delegation, a client and an agent, in a tenant with two apps."""

from dataclasses import dataclass
from typing import Any

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.incidents import Incident
from evergrant_server.core.ids import DirectoryUserId, IncidentId, SessionId, new_id
from evergrant_server.core.oauth.requests import SubjectSession
from evergrant_server.core.people.leavers import DirectoryUser
from evergrant_server.core.people.roles import Person, PersonRole, person_id
from tests.fakes.api import TENANT, Api
from tests.fakes.rows import a_delegation, a_family
from tests.security.people import put_session

ISSUER = "https://login.example"
SUB = "u-77"
ALICE = Person(issuer=ISSUER, sub=SUB)
OFFBOARDINGS = "/v1/offboardings"
ORDER: dict[str, Any] = {"subject": "alice", "issuer": ISSUER, "sub": SUB, "reason": "HR-7"}


@dataclass
class Work:
    """What there is of Alice, and the keys of an admin and of an app that leases."""

    boss: str
    pipeline: str
    session: str
    mine: list[Connection]
    of_bob: Connection


async def at_work(api: Api) -> Work:
    boss = await api.app_with("boss", Action.ADMIN)
    pipeline = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    crm, erp = await api.integration(), await api.integration("erp")
    mine = [
        await api.active(crm, "at-alice", subject="alice"),
        await api.active(erp, "at-alice-erp", subject="alice"),
        await api.connection(erp, subject="alice", label="waits"),
    ]
    of_bob = await api.active(crm, "at-bob", subject="bob")
    _, session = await put_session(api, TENANT, PersonRole.AUDITOR, person=ALICE)
    ends_at = api.clock.now().replace(year=api.clock.now().year + 1).isoformat()
    agent = {"purpose": "mails", "ends_at": ends_at, "sponsor": f"person:{person_id(TENANT, ALICE)}"}
    made = await api.call("PUT", "/v1/agents/helper", boss, json=agent)
    assert made.status_code == 201, made.text
    app = await api.app_named("pipeline")
    async with api.worker.write() as tx:
        await tx.token_families.add(a_family(app, "alice", api.clock.now()))
        await tx.delegations.add(a_delegation(app, "key_0000000000000000000000", "alice", api.clock.now()))
        await tx.subject_sessions.add(a_subject_session(api))
    return Work(boss, pipeline, session, mine, of_bob)


def a_subject_session(api: Api) -> SubjectSession:
    now = api.clock.now()
    return SubjectSession(
        tenant=TENANT,
        id=SessionId(new_id("ses")),
        secret_hash="hash",
        rule="clg_0000000000000000000000",
        subject="alice",
        person=ALICE,
        created_at=now,
        expires_at=now.replace(year=now.year + 1),
    )


async def lease_of(api: Api, work: Work, integration: str = "crm", subject: str = "alice") -> str:
    """What a lease answers: `leased`, or the code of its refusal."""
    answer = await api.post("/v1/lease", work.pipeline, {"integration": integration, "subject": subject})
    return "leased" if answer.is_success else answer.json()["code"]


async def incident_of(api: Api, id: str) -> Incident:
    async with api.store.read() as tx:
        incident = await tx.incidents.get(TENANT, IncidentId(id))
    assert incident is not None
    return incident


def a_user(api: Api, name: str, external_id: str) -> DirectoryUser:
    """As the tenant's directory has told."""
    now = api.clock.now()
    return DirectoryUser(
        tenant=TENANT,
        id=DirectoryUserId(new_id("usr")),
        user_name=name,
        user_key=name,
        external_id=external_id,
        subject=name,
        created_at=now,
        changed_at=now,
    )
