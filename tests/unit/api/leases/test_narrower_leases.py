"""Leases for exactly the scopes that they name: a narrower token where the provider issues such tokens."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MOST_NARROWED, Grant, Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult
from evergrant_server.core.secret import Secret
from tests.fakes.api import LIFETIME, TENANT, Api
from tests.fakes.patience import eventually

ALL = ("read", "write", "admin")
EXACT: dict[str, Any] = {"scopes": ["read"], "exact": True}
EXACT_PERMIT = {"integration": "crm", "actions": ["token"], "exact_scopes": True}


async def wide(api: Api, provider: str = "auth0", **more: Any) -> Connection:
    return await api.active(await api.integration(provider=provider), scopes=ALL, **more)


async def narrowed(api: Api, connection: Connection, ask: EnsureFresh, came: tuple[str, ...] | None) -> int:
    """What a worker writes. `came` None: the provider refused these scopes."""
    now = api.clock.now()
    async with api.worker.write() as tx:
        current = await tx.connections.get(TENANT, connection.id)
        assert current is not None
        before = await tx.grants.get(TENANT, connection.id)
        assert before is not None
        if came is None:
            await tx.narrowed_tokens.put(current, before.narrowed(ask.scopes, None), None, now)
            return current.generation
        after = current.refreshed(now)
        token = Secret(f"only-{'-'.join(ask.scopes)}-{after.generation}")
        tokens = TokenSet(access_token=token, expires_in=LIFETIME, scopes=came, refresh_token=Secret("rt-2"))
        grant = Grant.from_tokens(tokens, generation=after.generation, requested=ALL, at=now, before=before)
        kept, other = grant.keeping_access_token(before), grant.narrowed(ask.scopes, None)
        saved = await tx.grants.install(after, tokens, kept, origin=Origin.REFRESH, expected=current.revision)
        await tx.narrowed_tokens.put(saved, other, token, now)
    return after.generation


Came = Callable[[EnsureFresh], Awaitable[tuple[str, ...] | None]]


def narrows(api: Api, came: Came | None = None) -> None:
    """The workflow has a narrower token requested: it comes with the requested scopes, or with others."""
    turns = asyncio.Lock()

    async def refresh(tenant: Tenant, id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        async with turns:
            connection = await api.row(tenant, id)
            if connection.generation > ask.seen_generation:
                return EnsureFreshResult(generation=connection.generation)
            if not ask.scopes:
                installed = await api.install(connection, f"at-{connection.generation + 1}", scopes=ALL)
                return EnsureFreshResult(generation=installed.generation)
            scopes = ask.scopes if came is None else await came(ask)
            return EnsureFreshResult(generation=await narrowed(api, connection, ask, scopes))

    api.link.on_refresh = refresh


async def test_an_exact_lease_gets_a_narrower_token_and_the_other_stays(api: Api):
    connection, key = await wide(api), await api.app_with("agent", Action.TOKEN)
    narrows(api)
    first, again = await api.lease(key, **EXACT), await api.lease(key, **EXACT)
    assert first.status_code == 200, first.text
    assert first.json()["access_token"] == again.json()["access_token"] == "only-read-2"
    assert first.json()["scopes"] == ["read"]
    assert [it.scopes for it in api.link.asked] == [("read",)]
    assert (await api.lease(key, scopes=["read"])).json()["access_token"] == "at-1"
    assert (await api.lease(key, scopes=list(ALL), exact=True)).json()["access_token"] == "at-1"
    leases = await api.records(AuditAction.LEASE_ISSUED, of=connection.id)
    assert [sorted(it.detail["scopes"]) for it in leases].count(["read"]) == 2
    assert [sorted(it.detail["scopes"]) for it in leases].count(sorted(ALL)) == 2


async def test_a_permit_that_insists_is_satisfied_by_a_narrower_token(api: Api):
    await wide(api)
    key, admin = await api.app_with("agent"), await api.app_with("admin", Action.ADMIN)
    narrows(api)
    put = await api.call("PUT", "/v1/apps/agent/permits/exact", admin, json=EXACT_PERMIT)
    assert put.status_code in (200, 201), put.text
    assert (await api.lease(key, scopes=["read"])).json()["scopes"] == ["read"]
    assert (await api.lease(key, scopes=list(ALL))).json()["access_token"] == "at-1"
    unnamed = await api.lease(key)
    assert (unnamed.status_code, unnamed.json()["code"]) == (403, "scope_not_permitted")


@pytest.mark.parametrize(("provider", "known"), [("gitlab", "unknown"), ("ory", "unsupported")])
async def test_where_the_provider_cannot_the_answer_says_so(api: Api, provider: str, known: str):
    await wide(api, provider)
    key = await api.app_with("agent", Action.TOKEN)
    for _ in range(2):  # the second from the cache
        refused = (await api.lease(key, **EXACT)).json()
        said = (refused["status"], refused["code"], refused["down_scoping"], refused["scopes"])
        assert said == (403, "scope_not_narrowed", known, "write admin")
    assert api.link.asked == []
    assert (await api.lease(key, scopes=["read"])).status_code == 200


@pytest.mark.parametrize(
    "more", [{"refreshable": False}, {"token_type": "DPoP"}], ids=["not refreshable", "bound to a key"]
)
async def test_a_grant_of_which_no_narrower_bearer_token_comes(api: Api, more: dict[str, Any]):
    await wide(api, **more)
    refused = (await api.lease(await api.app_with("agent", Action.TOKEN), **EXACT)).json()
    assert (refused["code"], refused["down_scoping"]) == ("scope_not_narrowed", "unsupported")


@pytest.mark.parametrize("came", [ALL, ("write",), None], ids=["all of them", "others", "refused"])
async def test_a_provider_that_does_not_narrow_is_asked_once(api: Api, came: tuple[str, ...] | None):
    await wide(api)
    key = await api.app_with("agent", Action.TOKEN)

    async def others(_: EnsureFresh) -> tuple[str, ...] | None:
        return came

    narrows(api, others)
    for _ in range(3):
        refused = (await api.lease(key, **EXACT)).json()
        assert (refused["code"], refused["down_scoping"]) == ("scope_not_narrowed", "refresh")
    assert len(api.link.asked) == 1
    assert (await api.lease(key)).json()["access_token"] == "at-1"


async def test_a_refresh_of_the_main_token_ends_the_narrower_ones(api: Api):
    connection, key = await wide(api), await api.app_with("agent", Action.TOKEN)
    narrows(api)
    assert (await api.lease(key, **EXACT)).json()["access_token"] == "only-read-2"
    await api.install(connection, "at-3", scopes=ALL)
    assert (await api.lease(key, **EXACT)).json()["access_token"] == "only-read-4"
    assert (await api.lease(key)).json()["access_token"] == "at-3"


async def test_a_due_narrower_token_is_served_now_and_replaced_behind(api: Api):
    connection, key = await wide(api, lifetime=4 * LIFETIME), await api.app_with("agent", Action.TOKEN)
    narrows(api)
    assert (await api.lease(key, **EXACT)).json()["access_token"] == "only-read-2"
    api.clock.advance(LIFETIME - 100)
    assert (await api.lease(key, **EXACT)).json()["access_token"] == "only-read-2"
    await eventually(lambda: api.row(TENANT, connection.id), lambda it: it.generation == 3)
    assert (await api.lease(key, **EXACT)).json()["access_token"] == "only-read-3"
    assert (await api.lease(key)).json()["access_token"] == "at-1"


async def test_after_a_revocation_no_narrower_token_leaves(api: Api):
    connection, key = await wide(api), await api.app_with("agent", Action.TOKEN)
    narrows(api)
    assert (await api.lease(key, **EXACT)).status_code == 200
    await api.change(connection, lambda it: it.revocation_requested("left", api.clock.now()))
    refused = await api.lease(key, **EXACT)
    assert (refused.status_code, refused.json()["code"]) == (409, "connection_revoked")


async def test_those_who_wait_for_the_main_token_go_on_when_a_narrower_one_comes_first(api: Api):
    _, key = await wide(api), await api.app_with("agent", Action.TOKEN)
    api.clock.advance(LIFETIME + 1)
    narrows(api)
    exact = [api.lease(key, scopes=[scope], exact=True) for scope in ("read", "write")]
    answers = await asyncio.gather(*exact, api.lease(key))
    assert [it.status_code for it in answers] == [200, 200, 200], [it.text for it in answers]
    assert len({it.json()["access_token"] for it in answers}) == 3


async def test_a_connection_has_so_many_narrower_tokens_and_says_until_when(api: Api):
    names = [f"s{number}" for number in range(MOST_NARROWED + 1)]
    await api.active(await api.integration(provider="auth0"), scopes=(*names, "other"), lifetime=2 * LIFETIME)
    key = await api.app_with("agent", Action.TOKEN)
    narrows(api)
    for name in names[:-1]:
        assert (await api.lease(key, scopes=[name], exact=True)).status_code == 200
    refused = await api.lease(key, scopes=[names[-1]], exact=True)
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_not_narrowed")
    assert int(refused.headers["retry-after"]) <= LIFETIME
    assert len(api.link.asked) == MOST_NARROWED
    api.clock.advance(LIFETIME + 1)
    assert (await api.lease(key, scopes=[names[-1]], exact=True)).status_code == 200


async def test_a_report_of_the_main_token_counts_after_narrower_ones_came(api: Api):
    """They have moved the generation on, and the token that was refused is still the connection's."""
    connection, key = await wide(api), await api.app_with("agent", Action.TOKEN)
    narrows(api)
    assert (await api.lease(key, **EXACT)).json()["generation"] == 2
    report = {"generation": 1, "reason": "unauthorized"}
    assert (await api.post(f"/v1/connections/{connection.id}/refresh", key, report)).status_code == 200
    assert (await api.lease(key)).json()["access_token"] == "at-3"


@pytest.mark.parametrize("body", [{"exact": True}, {"exact": True, "scopes": []}, {"exact": "yes please"}])
async def test_exact_needs_scopes(api: Api, body: dict[str, Any]):
    await wide(api)
    refused = await api.lease(await api.app_with("agent", Action.TOKEN), **body)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")


async def test_an_outage_is_the_answer_to_who_waits_for_a_narrower_token(api: Api):
    await wide(api)
    api.refreshes_fail(ErrorCode.PROVIDER_UNREACHABLE, 5)
    answer = await api.lease(await api.app_with("agent", Action.TOKEN), **EXACT)
    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unreachable")


async def test_an_explanation_counts_on_a_narrower_token_where_the_provider_issues_one(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    await api.app_with("agent")
    put = await api.call(
        "PUT", "/v1/apps/agent/permits/exact", admin, json={**EXACT_PERMIT, "integration": "*"}
    )
    assert put.status_code in (200, 201), put.text
    for name, provider, known, reason in (
        ("crm", "auth0", "refresh", "allowed"),
        ("erp", "gitlab", "unknown", "token_above_request"),
    ):
        connection = await api.active(await api.integration(name, provider=provider), scopes=ALL)
        asked = {"app": "agent", "connection": connection.id, "scopes": "read"}
        said = (await api.get("/v1/access/explain", admin, params=asked)).json()
        assert (said["down_scoping"], said["reason"]) == (known, reason)
        provided = (await api.get(f"/v1/providers/{provider}", admin)).json()
        assert provided["down_scoping"] == known
