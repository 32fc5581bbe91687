"""Workload tokens at the token endpoint, as an attacker sends them."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from joserfc.jwk import ECKey
from sqlalchemy import update

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.jobs import FETCH_ISSUER_KEYS
from evergrant_server.store.trusted_issuers import TrustedIssuerRow
from tests.fakes.api import OTHER, TENANT, Api
from tests.fakes.assertions import JWT_BEARER, asserting_app
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.workload_issuer import new_key, signed

JWT_SPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
OURS = "https://evergrant.test"
GITHUB = "https://token.actions.githubusercontent.com"
CLUSTER = "https://cluster.example"
DOMAIN = "spiffe://example.org"
ISSUERS: dict[str, dict[str, str]] = {
    "github": {"kind": "github_actions", "issuer": GITHUB},
    "cluster": {"kind": "kubernetes", "issuer": CLUSTER},
    "domain": {"kind": "spiffe", "issuer": DOMAIN, "jwks_uri": "https://spire.example/bundle"},
}
RULES = {
    "github": {"repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main"},
    "cluster": {"sub": "system:serviceaccount:jobs:nightly"},
    "domain": {"sub": f"{DOMAIN}/jobs/nightly"},
}
CLAIMS: dict[str, dict[str, Any]] = {
    "github": {
        "iss": GITHUB,
        "aud": OURS,
        "sub": "repo:octo-org/octo-repo:ref:refs/heads/main",
        "repository": "octo-org/octo-repo",
        **RULES["github"],
    },
    "cluster": {"iss": CLUSTER, "aud": [OURS], "kubernetes.io": {"namespace": "jobs"}, **RULES["cluster"]},
    "domain": {"aud": [OURS], **RULES["domain"]},
}

OTHER_CLAIMS: list[tuple[str, dict[str, Any]]] = [
    ("github", {"sub": "repo:octo-org/octo-repo-2:ref:refs/heads/main", "repository_id": "740"}),
    ("github", {"ref": "refs/heads/main-2"}),
    ("github", {"ref": "refs/heads"}),
    ("github", {"aud": f"{OURS}/"}),
    ("github", {"aud": f"{OURS}/oauth/token"}),
    ("github", {"aud": [OURS, "https://elsewhere.example"]}),
    ("github", {"aud": None}),
    ("github", {"iss": CLUSTER}),
    ("github", {"iss": f"{GITHUB}/"}),
    ("github", {"iss": "https://elsewhere.example"}),
    ("github", {"exp": 1}),
    ("github", {"exp": True}),
    ("github", {"nbf": 2**40}),
    ("github", {"repository_id": 74}),
    ("cluster", {"sub": "system:serviceaccount:jobs:nightly-2"}),
    ("cluster", {"sub": ["system:serviceaccount:jobs:nightly"]}),
    ("domain", {"sub": f"{DOMAIN}/jobs/nightly/"}),
    ("domain", {"sub": f"{DOMAIN}/jobs"}),
    ("domain", {"sub": f"{DOMAIN}.evil.example/jobs/nightly"}),
    ("domain", {"sub": "spiffe://other.example/jobs/nightly", "iss": DOMAIN}),
    ("domain", {"sub": None, "iss": DOMAIN}),
]
OPEN_RULES: list[tuple[dict[str, Any], str]] = [
    ({"issuer": "github", "claims": {}}, "parameters.claims"),
    ({"issuer": "nowhere", "claims": {"sub": "a"}}, "parameters.issuer"),
    ({"issuer": "github", "claims": {"sub": "repo:octo-org/octo-repo:*"}}, "parameters.claims.sub"),
    ({"issuer": "github", "claims": RULES["github"], "audience": "api://us"}, "parameters.audience"),
    ({"issuer": "cluster", "claims": {"sub": 7}}, "parameters.claims.sub"),
    ({"issuer": "cluster", "claims": {"sub": "a\0b"}}, "parameters.claims.sub"),
    ({"issuer": "domain", "claims": {"sub": "spiffe://other.example/a"}}, "parameters.claims.sub"),
]


class Workloads:
    """The app `sync`, with a credential for each of three issuers; each has one key."""

    def __init__(self, api: Api, admin: str) -> None:
        self.api, self.admin = api, admin
        self.keys = {name: new_key("one") for name in ISSUERS}
        self.id = ""

    async def prepare(self) -> None:
        for name, body in ISSUERS.items():
            await self.put(f"/v1/issuers/{name}", body)
            await self.publish(name, self.keys[name])
            rule = {"issuer": name, "claims": RULES[name]}
            path = f"/v1/apps/sync/credentials/{name}"
            await self.put(path, {"method": "workload_identity", "parameters": rule})
        self.id = (await self.api.app_named("sync")).id
        await self.api.outbox()
        self.api.clock.advance(1)  # what is asked for now was asked for after that

    async def reading(self) -> None:
        """Until a worker is asked to read keys."""
        async with asyncio.timeout(PATIENCE_S):
            while not [it for it in await self.api.outbox() if it.name == FETCH_ISSUER_KEYS.name]:
                await asyncio.sleep(0.01)

    async def put(self, path: str, body: dict[str, Any]) -> None:
        answer = await self.api.call("PUT", path, self.admin, json=body)
        assert answer.is_success, answer.text

    async def publish(self, name: str, *keys: ECKey, tenant: Tenant = TENANT) -> None:
        """What a worker does when it has read them."""
        public = tuple(key.as_dict(private=False) for key in keys)
        async with self.api.worker.write() as tx:
            issuer = await tx.trusted_issuers.by_name(tenant, name)
            assert issuer is not None
            read = issuer.with_keys(public, self.api.clock.now(), None)
            await tx.trusted_issuers.put(read, expected=issuer.revision)

    def token(self, name: str, *, key: ECKey | None = None, header: Any = None, **changes: Any) -> str:
        """A good token; changes of its claims, None leaves one out."""
        now = int(self.api.clock.now().timestamp())
        claims = {**CLAIMS[name], "iat": now, "exp": now + 300, **changes}
        if name == "domain":
            del claims["iat"]
        top = {"alg": "ES256", "kid": "one", "typ": "JWT", **(header or {})}
        return signed(
            top, {it: value for it, value in claims.items() if value is not None}, key or self.keys[name]
        )

    async def ask(self, name: str, token: str | None = None, **more: Any) -> httpx2.Response:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.id,
            "client_assertion_type": JWT_SPIFFE if name == "domain" else JWT_BEARER,
            "client_assertion": token or self.token(name),
            **more,
        }
        given = {name: it for name, it in form.items() if it is not None}
        return await self.api.client.post("/oauth/token", data=given)

    async def refused(self, name: str, token: str, **more: Any) -> str:
        """The description of a refusal."""
        answer = await self.ask(name, token, **more)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), answer.text
        return answer.json()["error_description"]

    async def recorded(self) -> str:
        """Which rule the audit log names for the newest refusal."""
        await self.api.app.state.refusals.stop()
        return (await self.api.records(AuditAction.TOKEN_REFUSED))[-1].detail["rule"]


@pytest.fixture
async def workloads(api: Api) -> Workloads:
    admin = await api.app_with("boss", Action.ADMIN)
    await api.active_for("sync", Action.TOKEN)
    made = Workloads(api, admin)
    await made.prepare()
    return made


@pytest.mark.parametrize("name", ISSUERS)
async def test_a_workload_leases_with_what_its_platform_signed(workloads: Workloads, name: str):
    """Its token may be used again: a platform hands out the same one for minutes, an SVID has no `jti`."""
    token = workloads.token(name)
    for _ in range(2):
        answer = await workloads.ask(name, token)
        assert answer.status_code == 200, answer.text
    leased = await workloads.api.lease(answer.json()["access_token"])
    assert leased.json()["access_token"] == "at-1"


async def test_attack_13_a_recreated_repository_of_the_same_name(workloads: Workloads):
    """Another owner takes the freed name, with the same branch: the numbers are his."""
    taken = workloads.token("github", repository_id="900", repository_owner_id="901")
    await workloads.refused("github", taken)
    assert await workloads.recorded() == "github demands another repository_id, repository_owner_id"


async def test_attack_13_a_kubernetes_token_without_exp(workloads: Workloads):
    for claims, why in (({"exp": None}, "exp is missing"), ({"kubernetes.io": None}, "proven")):
        assert why in await workloads.refused("cluster", workloads.token("cluster", **claims))


async def test_another_claim_is_another_workload(workloads: Workloads):
    for name, claims in OTHER_CLAIMS:
        await workloads.refused(name, workloads.token(name, **claims))


async def test_each_kind_of_token_has_its_own_assertion_type(workloads: Workloads):
    """An SVID's `iss` says nothing: only its trust domain's keys are asked."""
    await workloads.refused("domain", workloads.token("domain"), client_assertion_type=JWT_BEARER)
    await workloads.refused("github", workloads.token("github"), client_assertion_type=JWT_SPIFFE)
    ours = {**RULES["github"], "iss": GITHUB}
    await workloads.refused("domain", workloads.token("domain", key=workloads.keys["github"], **ours))


async def test_a_signature_is_the_issuers_own(workloads: Workloads):
    for name in ISSUERS:
        await workloads.refused(name, workloads.token(name, key=new_key("one")))
        header, payload, signature = workloads.token(name).split(".")
        other = workloads.token(name, jti="another").split(".")[1]
        await workloads.refused(name, f"{header}.{other}.{signature}")
        await workloads.refused(name, f"{header}.{payload}.")
    own = new_key("one")
    await workloads.refused(
        "github", workloads.token("github", key=own, header={"jwk": own.as_dict(private=False)})
    )
    await workloads.refused("github", workloads.token("github", header={"typ": "client-authentication+jwt"}))
    assert [it.kind for it in await workloads.api.outbox()] == []


async def test_a_stranger_learns_neither_apps_nor_whom_they_trust(workloads: Workloads):
    """A wrong claim, an unknown app, another app, an issuer that it doesn't trust: one text."""
    other = await asserting_app(workloads.api, workloads.admin, "boss")
    wrong = workloads.token("github", repository_id="75")
    texts = {
        await workloads.refused("github", wrong),
        await workloads.refused("github", wrong, client_id="app_0000000000000000000000"),
        await workloads.refused("github", workloads.token("github"), client_id=other.id),
        await workloads.refused("github", workloads.token("github", iss="https://elsewhere.example")),
    }
    assert len(texts) == 1
    assert "client_id is missing" in await workloads.refused("github", wrong, client_id=None)


async def test_another_tenants_issuer_of_this_name_and_url_signs_for_none_of_ours(workloads: Workloads):
    theirs = await workloads.api.app_with("boss", Action.ADMIN, tenant=OTHER)
    body = {"kind": "kubernetes", "issuer": CLUSTER, "jwks_uri": "https://evil.example/keys"}
    assert (await workloads.api.call("PUT", "/v1/issuers/cluster", theirs, json=body)).status_code == 201
    evil = new_key("one")
    await workloads.publish("cluster", evil, tenant=OTHER)
    await workloads.refused("cluster", workloads.token("cluster", key=evil))


async def test_an_unknown_key_has_them_read_once_in_five_minutes_and_the_request_waits(workloads: Workloads):
    api, new = workloads.api, new_key("two")
    rotated = workloads.token("github", key=new, header={"kid": "two"})

    async def worker() -> None:
        await workloads.reading()
        await workloads.publish("github", new)

    answer, _ = await asyncio.gather(workloads.ask("github", rotated), worker())
    assert answer.status_code == 200, answer.text
    unknown = workloads.token("github", key=new_key("three"), header={"kid": "three"})
    for _ in range(3):  # at once: nothing is being read
        await workloads.refused("github", unknown)
    assert await api.outbox() == []
    assert await workloads.recorded() == "github doesn't publish the token's key"
    api.clock.advance(301)
    asking = asyncio.create_task(workloads.ask("github", workloads.token("github", header={"kid": "three"})))
    await workloads.reading()
    await workloads.publish("github", new)
    assert (await asking).status_code == 401


async def test_the_last_good_keys_serve_for_a_day_and_then_none(workloads: Workloads):
    api = workloads.api
    api.clock.advance(24 * 3600 - 2)
    assert (await workloads.ask("cluster")).status_code == 200
    api.clock.advance(1)

    async def failing_worker() -> None:
        await workloads.reading()
        async with api.worker.write() as tx:
            issuer = await tx.trusted_issuers.by_name(TENANT, "cluster")
            assert issuer is not None
            failed = issuer.with_problem("status 500", api.clock.now())
            await tx.trusted_issuers.put(failed, expected=issuer.revision)

    answer, _ = await asyncio.gather(workloads.ask("cluster"), failing_worker())
    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unreachable")
    assert int(answer.headers["retry-after"]) > 0


async def test_an_issuer_that_is_trusted_no_more_ends_its_tokens_at_once(workloads: Workloads):
    """Withdrawal is our act, and waits for no expiry."""
    api = workloads.api
    tokens = {name: (await workloads.ask(name)).json()["access_token"] for name in ISSUERS}
    assert (await api.lease(tokens["github"])).status_code == 200  # and it is cached
    assert (await api.call("DELETE", "/v1/issuers/github", workloads.admin)).status_code == 204
    assert (await api.lease(tokens["github"])).status_code == 401
    assert (await api.lease(tokens["cluster"])).status_code == 200
    await workloads.refused("github", workloads.token("github"))
    await workloads.put("/v1/issuers/github", ISSUERS["github"])
    await workloads.publish("github", workloads.keys["github"])
    await workloads.refused("github", workloads.token("github"))  # its rule has gone
    deleted = await api.records(AuditAction.CREDENTIAL_DELETED)
    assert [it.detail["issuer"] for it in deleted] == ["github"]


async def test_an_issuer_that_was_changed_by_hand_is_no_ones(
    workloads: Workloads, caplog: pytest.LogCaptureFixture
):
    """ADR 0025: write access to the database plants no key."""
    own = new_key("one")
    planted = [own.as_dict(private=False)]
    async with workloads.api.worker.write() as tx:
        await tx.connection.execute(update(TrustedIssuerRow).values(keys=planted))
    await workloads.refused("cluster", workloads.token("cluster", key=own))
    assert "authority broken" in caplog.text


async def test_a_rule_that_could_let_others_in_is_refused(workloads: Workloads):
    for parameters, field in OPEN_RULES:
        body = {"method": "workload_identity", "parameters": parameters}
        answer = await workloads.api.call("PUT", "/v1/apps/sync/credentials/more", workloads.admin, json=body)
        assert answer.status_code == 400
        found = answer.json()
        assert field in json.dumps([found.get("field"), found.get("errors")])
