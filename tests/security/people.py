"""People who administer, in tests: a tenant that has them log in, a browser of one, and their sessions."""

from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2

from activities.people import PersonLoginActivities
from activities.support.provider_context import ProviderContextLoader
from evergrant_server.core.access import Action
from evergrant_server.core.ids import SessionId, Tenant, new_id
from evergrant_server.core.messages import jobs
from evergrant_server.core.people.roles import Person, PersonRole
from evergrant_server.core.people.sessions import SESSION_LASTS, PersonSession, SessionKind, hash_secret
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.requests.sender import Sender
from tests.fakes.api import TENANT, Api
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.fakes.rows import an_integration
from tests.fakes.visitor import Visitor

ORIGIN = "https://evergrant.test"
ROLES = {"tenant_admin": ["admins"], "auditor": ["auditors", "board"]}
COOKIE = "__Host-evergrant-session"


def worker_for(api: Api, issuer: LoginIssuer) -> None:
    """Has a worker behind the API that may call the issuer."""
    contexts = ProviderContextLoader(api.worker, api.parts.registry, api.parts.settings.public_url, api.clock)
    egress = Egress(EgressPolicy(allow=(issuer.allowance,)))
    worker = PersonLoginActivities(api.worker, contexts, Sender(egress), egress, api.clock)
    api.link.on_job[jobs.VERIFY_PERSON.name] = worker.verify_person


async def client_at(api: Api, issuer: LoginIssuer, name: str = "staff", **more: Any) -> None:
    """Our client at the tenant's issuer."""
    said = {"name": name, "client_id": issuer.client_id, "issuer": issuer.issuer, **more}
    row = an_integration(TENANT, api.clock.now(), endpoints=issuer.endpoints, **said)
    async with api.worker.write() as tx:
        await tx.integrations.put(row, Secret(issuer.client_secret), expected=None)


async def people_log_in(api: Api, issuer: LoginIssuer, **body: Any) -> str:
    """Sets where people log in. Returns the key of an app with `admin`."""
    worker_for(api, issuer)
    await client_at(api, issuer)
    key = await api.app_with("boss", Action.ADMIN)
    await put_login(api, key, **body)
    return key


async def put_login(api: Api, key: str, **body: Any) -> httpx2.Response:
    made = await api.call(
        "PUT", "/v1/admin-login", key, json={"integration": "staff", "roles": ROLES, **body}
    )
    assert made.status_code in (200, 201), made.text
    return made


class PersonAt(Visitor):
    """One browser of a person who administers."""

    def __init__(self, api: Api) -> None:
        super().__init__(api)
        self.api = api

    async def leave(self, **query: str) -> httpx2.Response:
        """Opens the login's page and presses its button."""
        csrf = await self.csrf(f"/login?{urlencode(query)}")
        return self.left(await self.browser.post("/login", data={"csrf": csrf, **query}))

    async def callback(self) -> str:
        """Where the issuer, which knows the person, sends the browser."""
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            answer = await http.get(self.provider_url)
        return answer.headers["location"]

    async def log_in(self, **query: str) -> httpx2.Response:
        """The whole way; answers what the callback does."""
        await self.leave(**query)
        return await self.browser.get(await self.callback())

    async def call(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """As a script of our own origin."""
        headers = {"Origin": ORIGIN} | more.pop("headers", {})
        return await self.browser.request(method, path, headers=headers, **more)

    @property
    def cookie(self) -> str | None:
        return self.browser.cookies.get(COOKIE)


async def logged_in(api: Api, issuer: LoginIssuer, *groups: str, sub: str = "ann", **more: Any) -> PersonAt:
    """A person of these groups, with a session; `more` are claims."""
    issuer.person = {"sub": sub, "groups": list(groups), **more}
    person = PersonAt(api)
    answer = await person.log_in()
    assert (answer.status_code, urlsplit(answer.headers["location"]).path) == (303, "/session"), answer.text
    return person


async def put_session(api: Api, tenant: Tenant, role: PersonRole, **more: Any) -> tuple[str, str]:
    """A session as of a login of moments ago: its id, and its bearer token."""
    now, id = api.clock.now(), SessionId(new_id("ses"))
    secret = f"secret-of-{id}"
    said: dict[str, Any] = {
        "kind": SessionKind.COMMAND,
        "secret_hash": hash_secret(secret),
        "rule": None,
        "person": Person(issuer="https://login.example", sub=f"person-of-{tenant}"),
        "role": role,
        "authenticated_at": now,
        "expires_at": now + SESSION_LASTS,
        **more,
    }
    async with api.worker.write() as tx:
        session = PersonSession(tenant=tenant, id=id, created_at=now, last_used_at=now, **said)
        await tx.tenants.begin(tenant)
        await tx.person_sessions.add(session)
    return id, f"evg_ses_{secret}"


async def works(person: PersonAt) -> bool:
    """Whether the browser's session is accepted."""
    return (await person.call("GET", "/v1/sessions/current")).status_code == 200
