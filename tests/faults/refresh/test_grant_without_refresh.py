"""A grant that cannot be refreshed: the API and a real workflow answer a report of its token at once."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant

from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.secret import Secret
from tests.fakes.events.transmitter import id_token
from tests.fakes.http_server import served
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import raw
from tests.faults.refresh.test_refresh_rules import follows, version
from tests.faults.support.activities import Activities

REPORT = {"generation": 1, "reason": "unauthorized"}
JSON = {"Content-Type": "application/json"}
BARE = {"access_token": "at-1", "token_type": "Bearer"}


async def takes_nothing(scope: Any, receive: Any, send: Any) -> None:
    """A resource server that refuses every token."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("says", [{}, {"expires_in": 3600}])
async def test_a_report_is_answered_with_the_generation_there_is(place: Installation, says: dict[str, Any]):
    place.idp.script(raw(json.dumps({**BARE, **says}).encode(), 200, JSON))
    connection = await place.connect()
    sent = place.idp.count("token")
    async with place.api() as http, served(takes_nothing) as resource:
        for body in (REPORT, {"generation": 1}, {}):
            answer = await http.post(f"/v1/connections/{connection.id}/refresh", json=body)
            assert (answer.status_code, answer.json().get("generation")) == (200, 1), answer.text
        key = http.headers["Authorization"].removeprefix("Bearer ")
        async with AsyncEvergrant(str(http.base_url), key, deadline=timedelta(seconds=20)) as client:
            auth = client.auth(connection.integration, connection.subject, origins=resource)
            async with httpx2.AsyncClient(auth=auth, trust_env=False) as user, asyncio.timeout(10):
                assert (await user.get(f"{resource}/me")).status_code == 401
    assert place.idp.count("token") == sent


@pytest.mark.parametrize("ends", [True, False])
async def test_a_refresh_token_that_the_definition_has_no_use_for_is_no_reason_to_wait(
    place: Installation, ends: bool
):
    if not ends:
        bare = {**BARE, "refresh_token": place.idp.grant()["refresh_token"]}
        place.idp.script(raw(json.dumps(bare).encode(), 200, JSON))
    connection = await place.connect()
    await version(place, 1, DefinitionState.ACTIVE, refresh_supported=False)
    await follows(place, connection, {})
    sent = place.idp.count("token")
    async with place.api() as http:
        for _ in range(3):
            answer = await http.post(f"/v1/connections/{connection.id}/refresh", json=REPORT)
            assert (answer.status_code, answer.json().get("generation")) == (200, 1), answer.text
    assert place.idp.count("token") == sent
    again = (await place.described(connection)).next_at
    assert ends or again is None, "nothing is due, so no timer is set"


async def test_rfc6749_6_a_new_consent_is_never_refreshed_with_the_token_of_the_one_before(
    place: Installation,
):
    """The subject may have consented with another account: the token before is that other one's."""
    place.idp.script(
        raw(json.dumps({**place.idp.grant(), "id_token": id_token("account-1")}).encode(), 200, JSON)
    )
    connection = await place.connect()
    place.idp.script(raw(json.dumps({**BARE, "expires_in": 3600}).encode(), 200, JSON))
    await place.consent(connection)
    await place.until(connection, lambda row: row.generation == 2)
    row, grant = await place.grant(connection)
    async with place.store.read() as tx:
        kept = await tx.grants.refresh_token(row), await tx.grants.id_token(row)
    async with place.api() as http:
        report = {"generation": 2, "reason": "unauthorized"}
        answer = await http.post(f"/v1/connections/{connection.id}/refresh", json=report)
    assert (answer.status_code, answer.json().get("generation")) == (200, 2), answer.text
    assert place.idp.count("token", grant_type="refresh_token") == 0
    assert (kept, grant.refreshable) == ((None, None), False)


async def test_an_interim_token_that_nothing_exchanges_is_not_tried_without_a_pause(place: Installation):
    """Its definition has lost the exchange: what it holds is all there is."""
    place.idp.script(raw(json.dumps(BARE).encode(), 200, JSON))
    connection = await place.connect()
    row, grant = await place.grant(connection)
    interim = grant.model_copy(update={"generation": 2, "short_lived": True})
    tokens = TokenSet(access_token=Secret("at-2"))
    await place.install(interim, tokens, row.refreshed(row.changed_at), Origin.REFRESH)
    news = await Activities(place).refresh(connection, 2)
    assert (news.failure, news.generation, news.not_leased) == (None, 2, False)
