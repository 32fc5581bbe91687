"""An access token that is its own refresh token, as at Meta's services, through every real part.

The provider gives a first token of an hour, and a long-lived one for it; that one is exchanged for
its successor while it is good, and for nothing once it is over.
"""

import secrets
from dataclasses import dataclass
from typing import Any

import pytest

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from tests.fakes.certificates import LoopbackTls
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, drop_after_commit, ok, status

FIRST, LONG = "ig_exchange_token", "ig_refresh_token"


class MetaLike(ScriptedProvider):
    """Its tokens have no refresh tokens; `/long` and `/again` take an access token in the query."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.good: set[str] = set()

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        code, headers, data = super()._act(call)
        if call.endpoint == "token" and data is not None:
            return code, headers, {"access_token": self._made(), "user_id": 17841400000000000}
        if call.endpoint not in ("long", "again"):
            return code, headers, data
        if call.params.get("access_token") not in self.good:
            return 400, {}, {"error": {"message": "x", "type": "OAuthException", "code": 190}}
        return 200, {}, {"access_token": self._made(), "token_type": "bearer", "expires_in": 5183944}

    def _made(self) -> str:
        token = "at-" + secrets.token_urlsafe(16)
        self.good.add(token)
        return token


@dataclass
class World:
    place: Installation
    idp: MetaLike

    async def connect(self, **more: Any) -> Connection:
        """A connection at a provider whose definition is the catalogue's for Instagram, but for its URLs."""
        document = {
            "response": {"metadata_paths": ["user_id"]},
            "refresh": self._exchange(LONG, "again", "none"),
            "post_token_exchange": self._exchange(FIRST, "long", "secret"),
            "client_auth": "client_secret_post",
            "refresh_rotates": None,
            "terminal_error_codes": ["190"],
            **more,
        }
        integration = await self.place.integration_with(self.place.document(**document))
        connection = await self.place.begin(integration, refresh_policy="adaptive")
        await self.place.consent(connection)
        return connection

    def _exchange(self, grant_type: str, endpoint: str, client: str) -> dict[str, str]:
        how = {"kind": "access_token_exchange", "method": "GET", "url": self.idp.url(endpoint)}
        return {**how, "grant_type": grant_type, "client": client}

    def sent(self, endpoint: str) -> list[dict[str, str]]:
        return [call.params for call in self.idp.calls if call.endpoint == endpoint]


@pytest.fixture
def provider(tls: LoopbackTls) -> MetaLike:
    return MetaLike(tls=tls)


@pytest.fixture
def world(place: Installation, idp: MetaLike) -> World:
    return World(place, idp)


async def test_a_first_token_is_exchanged_at_once_and_a_lost_answer_costs_another_request(world: World):
    world.idp.script(drop_after_commit(), at="long")
    connection = await world.connect()
    await world.place.until(connection, lambda c: c.generation == 2)
    tries = world.sent("long")
    assert len(tries) == 2
    assert {tuple(sorted(it)) for it in tries} == {("access_token", "client_secret", "grant_type")}
    assert {it["access_token"] for it in tries} <= world.idp.good
    row, grant = await world.place.grant(connection)
    assert (row.state, grant.short_lived, grant.ends_together, grant.refreshable) == (
        LifecycleState.ACTIVE,
        False,
        True,
        True,
    )
    assert grant.metadata == {"user_id": 17841400000000000}
    held = await world.place.access_token(connection)
    assert (await world.place.ensure_fresh(connection, 2)).generation == 3
    assert world.sent("again") == [{"grant_type": LONG, "access_token": held}]
    assert await world.place.access_token(connection) != held


async def test_a_token_younger_than_the_provider_wants_is_not_refreshed_but_a_first_one_is(world: World):
    connection = await world.connect(min_refresh_age_s=86_400)
    await world.place.until(connection, lambda c: c.generation == 2)
    answer = await world.place.ensure_fresh(connection, 2)
    assert (answer.declined, answer.generation) == (True, 2)
    assert answer.retry_after is not None
    assert 80_000 < answer.retry_after <= 86_400
    assert world.sent("again") == []


async def test_a_token_that_ran_out_needs_the_subject(world: World):
    """It is tried from half of its life on; once it is over, nothing is sent any more."""
    world.idp.script(ok(expires_in=3), at="long")
    world.idp.script(*[status(503)] * 9, at="again")
    connection = await world.connect()
    ended = await world.place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    assert ended.reason is ErrorCode.CONSENT_REQUIRED
    assert len(world.sent("again")) in (1, 2)
