"""Who may do what in a filled tenant: issuers, a rule, clients, authorizations, people, and leases."""

from datetime import datetime, timedelta
from typing import Any

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.oauth.authorizations import FamilyEnd
from evergrant_server.core.people.roles import Person, PersonRole
from evergrant_server.core.people.sessions import SESSION_LASTS, SessionKind
from tests.fakes.api import TENANT, Api
from tests.fakes.rows import a_family
from tests.security.isolation.world import A_CREDENTIAL
from tests.security.people import put_session

_STAFF = "https://login.acme.example"
_GATEWAY = "https://gateway.acme.example/mcp"


async def fill_rights(api: Api, key: str, crm: Integration, noon: datetime) -> tuple[str, str, str, str]:
    """The ids of a client, of what a person authorized, and of a session; the place of a record."""

    async def put(path: str, body: dict[str, Any]) -> None:
        answer = await api.call("PUT", f"/v1/{path}", key, json=body)
        assert answer.is_success, answer.text

    endpoints = Endpoints(
        issuer=_STAFF,
        authorization_endpoint=f"{_STAFF}/authorize",
        token_endpoint=f"{_STAFF}/token",
        jwks_uri=f"{_STAFF}/keys",
    )
    await api.integration("staff", provider="generic", issuer=_STAFF, endpoints=endpoints)
    await put("apps/crm-sync/credentials/signer", A_CREDENTIAL)
    await put("issuers/staff", {"kind": "oidc", "issuer": _STAFF})
    await put(
        "issuers/pipelines",
        {"kind": "github_actions", "issuer": "https://token.actions.githubusercontent.com"},
    )
    rule = {"issuer": "staff", "token_type": "access_token", "audience": "https://portal.acme.example/api"}
    await put(
        "delegation-rules/portal", {**rule, "actors": ["invoice-helper"], "clients": {"web-portal": "report"}}
    )
    groups = {"tenant_admin": ["platform-admins"], "auditor": ["internal-audit", "board"]}
    await put("admin-login", {"integration": "staff", "roles": groups})
    await put("client-login", {"app": "invoice-helper", "integration": "staff"})
    uris = ["http://127.0.0.1/callback", "https://coder.acme.example/oauth/callback"]
    client = (await api.post("/v1/oauth-clients", key, {"name": "Acme Coder", "redirect_uris": uris})).json()
    await api.post("/v1/oauth-clients", key, {"name": "Release bot", "redirect_uris": uris[:1]})
    families = await _families(api, client["client_id"], noon)
    session = await _people(api, noon)
    await _leases(api, key, crm)
    async with api.worker.read() as tx:
        (record,) = await audit.newest_of_tenant(tx, TENANT, [AuditAction.DELEGATION_RULE_PUT], among=500)
    return client["id"], families, session, f"{record.shard}:{record.seq}"


async def _families(api: Api, client_id: str, noon: datetime) -> str:
    """What three people authorized, of which one has ended it; the id of one that is live."""
    app = await api.app_named("invoice-helper")
    live = [
        a_family(
            app, f"{name}@acme.example", noon - timedelta(days=days), client_id=client_id, resource=_GATEWAY
        )
        for name, days in (("ann", 3), ("bo", 1))
    ]
    ended = a_family(
        app, "cyd@acme.example", noon - timedelta(days=9), client_id=client_id, resource=_GATEWAY
    )
    ended = ended.__replace__(ended_at=noon - timedelta(days=2), end=FamilyEnd.REVOKED)
    async with api.worker.write() as tx:
        for family in (*live, ended):
            await tx.token_families.add(family)
    return live[0].id


async def _people(api: Api, noon: datetime) -> str:
    """Who is logged in, and who was; the id of a session that is live."""
    async with api.worker.read() as tx:
        rule = await tx.admin_logins.of_tenant(TENANT)
    assert rule is not None
    ids: list[str] = []
    for name, role, kind, hours in (
        ("ann", PersonRole.AUDITOR, SessionKind.BROWSER, 0),
        ("robin", PersonRole.TENANT_ADMIN, SessionKind.COMMAND, 0),
        ("bo", PersonRole.TENANT_ADMIN, SessionKind.BROWSER, 20),
    ):
        person = Person(issuer=_STAFF, sub=name, name=f"{name}@acme.example")
        expires = {"expires_at": noon - timedelta(hours=hours) + SESSION_LASTS}
        id, _ = await put_session(api, TENANT, role, kind=kind, person=person, rule=rule.id, **expires)
        ids.append(id)
    return ids[0]


async def _leases(api: Api, key: str, crm: Integration) -> None:
    """Some of an app, so that a change of its permits would lose something."""
    made = await api.post("/v1/apps/crm-sync/keys", key)
    assert made.is_success, made.text
    await api.active(crm, "at-pat", subject="pat@acme.example", lifetime=7200)
    for _ in range(3):
        lease = await api.lease(made.json()["key"], subject="pat@acme.example")
        assert lease.is_success, lease.text
