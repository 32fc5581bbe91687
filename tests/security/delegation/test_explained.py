"""An explanation says what the lease is answered: for each caller, permit, provider and request."""

from typing import Any

import pytest

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import FollowUp
from tests.fakes.api import Api
from tests.security.delegation.delegating import Delegating, id_of
from tests.unit.api.leases.test_narrower_leases import ALL, narrows, wide

PERMITS: dict[str, dict[str, Any]] = {
    "everything": {},
    "a ceiling": {"scope_ceiling": ["read"]},
    "exact scopes": {"exact_scopes": True},
    "exact scopes below a ceiling": {"exact_scopes": True, "scope_ceiling": ["read", "write"]},
    "another subject": {"subjects": ["user-2"]},
    "another action": {"actions": ["connect"]},
    "somewhere else": {"sources": ["192.0.2.0/24"]},
}
# a lease is judged for its action alone first, and answered so whatever else refuses it
FIRST = {"another subject": "not_found", "somewhere else": "not_found", "another action": "not_permitted"}
DENY = {"integration": "crm", "actions": ["token"], "effect": "deny", "scopes": ["write"]}
REQUESTS = ("", "read", "read write", " ".join(ALL), "read sudo")
CODES = {
    "denied": "scope_not_permitted",
    "no_permit": "not_found",
    "action_not_permitted": "not_permitted",
    "scope_above_ceiling": "scope_not_permitted",
    "token_above_request": "scope_not_permitted",
}


async def said_of_app(api: Api, admin: str, connection: Connection, scopes: str) -> tuple[bool, set[str]]:
    asked = {"app": "back", "connection": connection.id, "scopes": scopes}
    found = (await api.get("/v1/access/explain", admin, params=asked)).json()
    codes = {stop["code"] for stop in found["stopped_by"]}
    return found["allowed"] and not codes, codes | {CODES.get(found["reason"], "")}


async def said_of_delegation(
    api: Api, admin: str, token: str, connection: Connection, scopes: str
) -> tuple[bool, set[str]]:
    asked = {"connection": connection.id, "scopes": scopes}
    answer = await api.get(f"/v1/delegations/{id_of(token)}/explain", admin, params=asked)
    found = answer.json()
    codes = {stop["code"] for stop in found["stopped_by"]}
    refused = [CODES[link["reason"]] for link in found["chain"] if not link["allowed"]]
    assert found["allowed"] is not bool(refused)
    return found["allowed"] and not codes, codes | set(refused)


async def require_same(
    api: Api, admin: str, callers: dict[str, str], connection: Connection, case: str
) -> set[int]:
    """Compare each explanation with its lease; the statuses that leases were answered with."""
    statuses = set[int]()
    for caller, key in callers.items():
        for scopes in REQUESTS:
            if caller == "app":
                granted, codes = await said_of_app(api, admin, connection, scopes)
            else:
                granted, codes = await said_of_delegation(api, admin, key, connection, scopes)
            answer = await api.lease(key, **({"scopes": scopes.split()} if scopes else {}))
            assert (answer.status_code == 200) is granted, (case, caller, scopes, answer.text, codes)
            codes |= {FIRST.get(case, "")}
            assert granted or answer.json()["code"] in codes, (case, caller, scopes, answer.text, codes)
            statuses.add(answer.status_code)
    return statuses


@pytest.mark.parametrize(
    ("provider", "denies"),
    [
        *(("auth0", False), ("gitlab", True)),  # the first issues narrower tokens
        *(pytest.param(*pair, marks=pytest.mark.soak) for pair in (("auth0", True), ("gitlab", False))),
    ],
)
async def test_an_explanation_is_what_the_lease_is_answered(
    api: Api, some: Delegating, admin: str, provider: str, denies: bool
):
    connection = await wide(api, provider)
    narrows(api)
    callers = {
        "app": some.keys["back"],
        "delegation": await some.handed(await some.token(), "back"),
        "delegation for one scope": await some.handed(await some.token(scope="read"), "back"),
        "delegation for all scopes": await some.handed(await some.token(scope=" ".join(ALL)), "back"),
    }
    statuses = set[int]()
    for name, permit in PERMITS.items():
        body = {"integration": "crm", "actions": ["token"], **permit}
        await some.put("/v1/apps/back/permits/only", body)
        if denies:
            await some.put("/v1/apps/back/permits/no", DENY)
        statuses |= await require_same(api, admin, callers, connection, name)
    never = {200} if denies and provider == "gitlab" else set[int]()  # every token has the denied scope
    assert statuses >= {200, 403, 404} - never


@pytest.mark.parametrize("state", ["choosing", "revoking", "needs_reauth"])
async def test_an_explanation_of_a_delegation_counts_the_connections_state(
    api: Api, some: Delegating, admin: str, state: str
):
    connection = await wide(api)
    narrows(api)
    change = {"follow_up": FollowUp.CHOOSING} if state == "choosing" else {"state": state}
    await api.change(connection, lambda row: type(row).model_validate(row.model_dump() | change))
    callers = {"app": some.keys["back"], "delegation": await some.handed(await some.token(), "back")}
    await require_same(api, admin, callers, connection, state)
