"""People's tokens of an issuer that the tenant trusts, and the apps that exchange them."""

from typing import Any

import httpx2
from joserfc.jwk import ECKey

from evergrant_server.core.access import Action
from evergrant_server.core.ids import Tenant
from tests.fakes.api import PUBLIC_URL, TENANT, Api
from tests.fakes.providers.workload_issuer import new_key, signed

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
LOGIN = "https://login.example"
CLIENT = "the-web-app"
PERSON = "user-1"
RULE = {"issuer": "staff", "token_type": "id_token", "audience": CLIENT, "actors": ["front"]}


class Delegating:
    """The apps `front`, which the tenant's rule `staff` lets act for people, and `back`; their keys."""

    def __init__(self, api: Api, admin: str) -> None:
        self.api, self.admin = api, admin
        self.key = new_key("one")
        self.keys: dict[str, str] = {}

    async def prepare(self, *, action: Action = Action.TOKEN) -> None:
        for name in ("front", "back"):
            self.keys[name] = await self.api.app_with(name, action)
        await self.put("/v1/issuers/staff", {"kind": "oidc", "issuer": LOGIN})
        await self.publish(self.key)
        await self.put("/v1/delegation-rules/staff", RULE)

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.api.call("PUT", path, self.admin, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    async def publish(self, *keys: ECKey, tenant: Tenant = TENANT) -> None:
        """What a worker does when it has read the issuer's keys."""
        public = tuple(key.as_dict(private=False) for key in keys)
        async with self.api.worker.write() as tx:
            issuer = await tx.trusted_issuers.by_name(tenant, "staff")
            assert issuer is not None
            read = issuer.with_keys(public, self.api.clock.now(), None)
            await tx.trusted_issuers.put(read, expected=issuer.revision)

    def id_token(self, *, key: ECKey | None = None, header: Any = None, **changes: Any) -> str:
        """The person's id token; changes of its claims, None leaves one out."""
        now = int(self.api.clock.now().timestamp())
        claims = {"iss": LOGIN, "aud": CLIENT, "sub": PERSON, "iat": now, "exp": now + 3600, **changes}
        top = {"alg": "ES256", "kid": "one", "typ": "JWT", **(header or {})}
        said = {name: it for name, it in claims.items() if it is not None}
        return signed({name: it for name, it in top.items() if it is not None}, said, key or self.key)

    async def ask(self, subject_token: str, by: str = "front", **more: Any) -> httpx2.Response:
        """Send an exchange; `by` is the app whose key is the actor token, `more` are parameters."""
        own = subject_token.startswith("evg_")
        form = {
            "grant_type": GRANT,
            "subject_token": subject_token,
            "subject_token_type": ACCESS_TOKEN if own else ID_TOKEN,
            "actor_token": self.keys.get(by, by),
            "actor_token_type": ACCESS_TOKEN,
            **more,
        }
        given = {name: it for name, it in form.items() if it is not None}
        return await self.api.client.post("/oauth/token", data=given)

    async def token(self, subject_token: str | None = None, by: str = "front", **more: Any) -> str:
        """A delegation's token: of the person, or of the delegation whose token is given."""
        answer = await self.ask(subject_token or self.id_token(), by, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]

    async def refused(self, subject_token: str, by: str = "front", **more: Any) -> tuple[str, str]:
        """The error of a refusal, and its description."""
        answer = await self.ask(subject_token, by, **more)
        assert answer.status_code in (400, 401), answer.text
        return answer.json()["error"], answer.json()["error_description"]

    async def handed(self, parent: str, to: str, by: str = "front", **more: Any) -> str:
        """A narrower token, by way of one that only `to` may exchange."""
        return await self.token(await self.token(parent, by, may_act=to, **more), to)


def id_of(token: str) -> str:
    return token[4:30]


def resource(kind: str, name: str) -> str:
    return f"{PUBLIC_URL}/v1/{kind}/{name}"
