"""A connection whose token is exchanged for another one's (RFC 8693): for whoever may lease it, as it is."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import Endpoints
from tests.fakes.api import TENANT, Api
from tests.fakes.failing_fleet import told_to_try_again

ISSUER = "https://back.example"
BOTH = (Action.TOKEN, Action.CONNECT)
PERMIT = {"integration": "*", "actions": ["token", "connect"]}


async def a_source(api: Api) -> Connection:
    """It can read and write; `back` is where its token may be exchanged."""
    front = await api.integration(name="front")
    known = Endpoints(issuer=ISSUER, token_endpoint=f"{ISSUER}/token")
    await api.integration(name="back", provider="generic", issuer=ISSUER, endpoints=known)
    return await api.active(front, "at-1", scopes=("read", "write"))


def wanted(source: Connection) -> dict[str, object]:
    names = {"integration": "back", "subject": "user-1", "scopes": ["read"]}
    return {**names, "flow": "token_exchange", "source": source.id}


async def begun(api: Api, key: str, source: Connection) -> Connection:
    made = await api.post("/v1/connections", key, wanted(source))
    assert made.status_code in (200, 201), made.text
    return await api.row(TENANT, ConnectionId(made.json()["id"]))


async def failing(api: Api, connection: Connection) -> Connection:
    """As a worker leaves it that was refused the exchange."""
    await api.install(connection, "at-2")
    changed = await api.change(
        connection, lambda c: c.refresh_failed(ErrorCode.SOURCE_NOT_PERMITTED, c.changed_at, token_over=False)
    )
    await told_to_try_again(api)
    return changed


async def test_a_source_that_can_do_more_than_the_app_may_is_no_source(api: Api):
    """Its token would be refused as a lease; exchanged, it would do at the back what it does in front."""
    source = await a_source(api)
    app = await api.app_with("narrow", *BOTH, ceiling=("read",))
    leased = await api.post(f"/v1/connections/{source.id}/token", app)
    assert leased.json()["code"] == "scope_not_permitted"
    refused = await api.post("/v1/connections", app, wanted(source))
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_not_permitted")
    wide = await api.app_with("wide", *BOTH)
    made = await api.post("/v1/connections", wide, wanted(source))
    assert made.status_code == 201, made.text


@pytest.mark.parametrize("how", ["begin", "reauthorize"])
async def test_an_app_that_asks_again_and_may_lease_the_source_takes_its_place(api: Api, how: str):
    source = await a_source(api)
    first = await failing(api, await begun(api, await api.app_with("first", *BOTH), source))
    assert (first.source_app, source.source_app) == ((await api.app_named("first")).id, None)
    second = await api.app_with("second", *BOTH)
    path = "/v1/connections" if how == "begin" else f"/v1/connections/{first.id}/reauthorize"
    answer = await api.post(path, second, wanted(source) if how == "begin" else {})
    assert answer.status_code == 200, answer.text
    row = await api.row(TENANT, first.id)
    assert row.source_app == (await api.app_named("second")).id
    assert answer.json()["revision"] == row.revision
    (said,) = await api.records(AuditAction.SOURCE_APP_CHANGED, of=first.id)
    assert (said.context.by, said.detail["before"]) == ("app:second", first.source_app)
    assert await told_to_try_again(api) == [first.id]
    again = await api.post(path, second, wanted(source) if how == "begin" else {})
    assert again.status_code == 200
    assert len(await api.records(AuditAction.SOURCE_APP_CHANGED, of=first.id)) == 1, "said when it changes"


async def test_an_app_that_asks_again_and_may_not_lease_the_source_changes_nothing(api: Api):
    """It may have the connection's own token made anew: in the name of the app before."""
    source = await a_source(api)
    first = await begun(api, await api.app_with("first", *BOTH), source)
    narrow = await api.app_with("narrow", *BOTH, ceiling=("read",))
    elsewhere = await api.app_with("elsewhere", *BOTH, integration="back")
    for key in (narrow, elsewhere):
        answer = await api.post(f"/v1/connections/{first.id}/reauthorize", key)
        assert answer.status_code == 200, answer.text
    refused = await api.post("/v1/connections", narrow, wanted(source))
    assert refused.json()["code"] == "scope_not_permitted"
    assert (await api.row(TENANT, first.id)).source_app == first.source_app


async def test_who_only_looks_for_it_by_its_names_asks_for_no_exchange(api: Api):
    source = await a_source(api)
    first = await failing(api, await begun(api, await api.app_with("first", *BOTH), source))
    second = await api.app_with("second", *BOTH)
    found = await api.post("/v1/connections", second, {"integration": "back", "subject": "user-1"})
    assert (found.status_code, found.json()["id"]) == (200, first.id)
    assert (await api.row(TENANT, first.id)).source_app == first.source_app


async def test_an_app_that_is_permitted_or_enabled_again_has_what_waits_for_it_look_again(api: Api):
    source = await a_source(api)
    admin = await api.app_with("admin", Action.ADMIN)
    connection = await failing(api, await begun(api, await api.app_with("bridge", *BOTH), source))
    await api.app_with("another", *BOTH)
    await api.call("PUT", "/v1/apps/another/permits/more", admin, json=PERMIT)
    assert await told_to_try_again(api) == []
    nudges = api.relay.nudges
    given = await api.call("PUT", "/v1/apps/bridge/permits/more", admin, json=PERMIT)
    assert given.status_code == 201, given.text
    assert api.relay.nudges > nudges
    assert await told_to_try_again(api) == [connection.id]
    for disabled, told in ((True, []), (False, [connection.id])):
        await api.call("PUT", "/v1/apps/bridge", admin, json={"disabled": disabled})
        assert await told_to_try_again(api) == told
