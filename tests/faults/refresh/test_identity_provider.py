"""A subject's identity provider grants access at a server that trusts it (ID-JAG): no consent there."""

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
import pytest_asyncio

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.lifecycle.schedule import jitter
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.secret import Secret
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.client_grants import JWT_BEARER, TOKEN_EXCHANGE
from tests.fakes.providers.enterprise import ID_JAG, ID_TOKEN, EnterpriseIdp, EnterpriseMcp
from tests.fakes.providers.scripted_provider import drop_after_commit, error
from tests.fakes.rows import discovered
from tests.fakes.temporal import payloads_in
from tests.faults.support.client_grants import request_first_tokens

NEEDED = ErrorCode.IDENTITY_NEEDED


@pytest.fixture
def provider() -> EnterpriseIdp:
    return EnterpriseIdp(lambda: datetime.now(UTC))


@pytest_asyncio.fixture
async def server(idp: EnterpriseIdp) -> AsyncIterator[EnterpriseMcp]:
    async with EnterpriseMcp(idp) as server:
        idp.clients[server.issuer] = server.client_id
        yield server


@pytest.fixture
def allow(server: EnterpriseMcp) -> tuple[str, ...]:
    return (server.allowance,)


class World:
    """`user-1` is connected at the identity provider; `tools` is the server's integration."""

    def __init__(self, place: Installation, idp: EnterpriseIdp, server: EnterpriseMcp) -> None:
        self.place, self.idp, self.server = place, idp, server
        self.staff: Integration
        self.tools: Integration

    async def begin(self) -> "World":
        place, server = self.place, self.server
        self.staff = await place.integration(name="staff")
        there = {**discovered(server), "name": "tools", "identity_provider": "staff"}
        self.tools = await place.integration(**there)
        async with place.store.write() as tx:
            secret = Secret(server.client_secret)
            self.tools = await tx.integrations.put(self.tools, secret, expected=self.tools.revision)
        return self

    async def identity(self) -> Connection:
        """The subject logs in at the identity provider."""
        begun = await self.place.begin(self.staff)
        await self.place.consent(begun)
        return await self.place.until(begun, lambda c: c.state is LifecycleState.ACTIVE)

    async def granting(self) -> Connection:
        """What the API writes for a connection without a consent."""
        place, week = self.place, timedelta(days=7)
        target = TokenTarget(resources=(self.server.mcp,))
        begun = await place.begin(self.tools, id=_soon(), flow=Flow.ID_JAG, deadline=week, target=target)
        async with place.store.write() as tx:
            await request_first_tokens(tx, begun, ("read",), ASKED)
        place.parts.relay.notify()
        return begun

    async def connected(self) -> Connection:
        begun = await self.granting()
        return await self.place.until(begun, lambda c: c.state is LifecycleState.ACTIVE)

    @property
    def exchanges(self) -> list[dict[str, str]]:
        return [it.params for it in self.idp.calls if it.params.get("grant_type") == TOKEN_EXCHANGE]

    @property
    def assertions(self) -> int:
        return self.server.count("token", grant_type=JWT_BEARER)


def _soon() -> ConnectionId:
    """One of the first of a fleet to look again, which is spread over a minute by their ids."""
    drawn = (ConnectionId(new_id("con")) for _ in count())
    return next(it for it in drawn if max(jitter(it, 0), jitter(it, 1)) < 0.05)


@pytest_asyncio.fixture
async def world(place: Installation, idp: EnterpriseIdp, server: EnterpriseMcp) -> World:
    return await World(place, idp, server).begin()


async def test_two_legs_bring_a_token_and_two_more_the_next(world: World):
    """Section 4.3: audience is the issuer, resource the server. The next token is made of a new ID-JAG."""
    await world.identity()
    connection = await world.connected()
    (asked,) = world.exchanges
    assert (asked["audience"], asked["resource"]) == (world.server.issuer, world.server.mcp)
    assert (asked["requested_token_type"], asked["subject_token_type"]) == (ID_JAG, ID_TOKEN)
    assert asked["scope"] == "read"
    _, grant = await world.place.grant(connection)
    assert (grant.refreshable, grant.scopes) == (True, ("read",))
    assert (await world.place.ensure_fresh(connection, 1)).generation == 2
    first, second = world.server.jags
    assert first["jti"] != second["jti"]
    assert second["resource"] == world.server.mcp


async def test_an_id_token_that_has_ended_is_renewed_by_its_own_workflow(world: World):
    place = world.place
    identity = await world.identity()
    row, grant = await place.grant(identity)
    early = grant.obtained_at - timedelta(hours=1)
    old = world.idp.claims(None) | {"exp": int(early.timestamp()) + 300}
    tokens = TokenSet(
        access_token=Secret("at-1"),
        refresh_token=Secret(world.idp.grant()["refresh_token"]),
        id_token=Secret(world.idp.sign(old)),
    )
    await place.install(grant.model_copy(update={"obtained_at": early}), tokens, row, Origin.NEW)
    await world.connected()
    assert (await place.row(identity)).generation == 2, "by its workflow, once"
    assert world.idp.count("token", grant_type="refresh_token") == 1
    assert len(world.exchanges) == world.assertions == 1


async def test_an_id_token_that_no_refresh_renews_needs_its_subject(world: World):
    """Nothing is sent, the connection stays, and after a login at the identity provider it works again."""
    identity = await world.identity()
    connection = await world.connected()
    await world.place.revoked(identity)
    sent = len(world.exchanges)
    assert (await world.place.ensure_fresh(connection, 1)).problem is NEEDED
    row = await world.place.row(connection)
    assert (row.state, row.generation, row.last_failure) == (LifecycleState.ACTIVE, 1, NEEDED)
    (said,) = await world.place.audited(connection, AuditAction.REFRESH_FAILED)
    assert said.detail["identity_provider"] == "staff"
    assert len(world.exchanges) == sent
    await world.identity()
    await world.place.look_again(connection)
    assert (await world.place.ensure_fresh(connection, 1)).generation == 2


async def test_a_first_token_waits_for_a_good_id_token(world: World):
    world.idp.bent, world.idp.renews = {"exp": int(datetime.now(UTC).timestamp()) - 1}, False
    identity = await world.identity()
    begun = await world.granting()
    waits = await world.place.until(begun, lambda c: c.reason is NEEDED)
    assert waits.state is LifecycleState.PENDING_CONSENT
    assert world.exchanges == []
    world.idp.bent = {}
    await world.place.revoked(identity)
    await world.identity()
    await world.place.look_again(begun)
    await world.place.until(begun, lambda c: c.state is LifecycleState.ACTIVE)


async def test_a_refusal_by_policy_reaches_no_server(world: World):
    await world.identity()
    connection = await world.connected()
    world.idp.script(error("access_denied"))
    assert (await world.place.ensure_fresh(connection, 1)).problem is ErrorCode.ID_JAG_REFUSED
    assert world.assertions == 1, "the first token's own"
    assert (await world.place.row(connection)).state is LifecycleState.ACTIVE


async def test_a_grant_that_the_server_refuses_is_no_matter_of_the_subject(world: World):
    await world.identity()
    connection = await world.connected()
    world.idp.clients[world.server.issuer] = "another-client"
    assert (await world.place.ensure_fresh(connection, 1)).problem is ErrorCode.ID_JAG_REFUSED
    assert (await world.place.row(connection)).state is LifecycleState.ACTIVE


async def test_after_a_lost_answer_both_legs_are_sent_again(world: World):
    """An ID-JAG counts once, so the next try has another one."""
    await world.identity()
    connection = await world.connected()
    world.server.script(drop_after_commit())
    await world.place.ensure_fresh(connection, 1)
    after = await world.place.until(connection, lambda c: c.generation == 2)
    assert after.state is LifecycleState.ACTIVE
    assert len(world.server.jags) == len({it["jti"] for it in world.server.jags}) == 3


async def test_the_id_token_goes_to_its_issuer_alone(world: World):
    """Neither it nor the ID-JAG is in a history."""
    await world.identity()
    connection = await world.connected()
    (asked,) = world.exchanges
    there = [call.body for call in world.server.calls]
    assert not any(asked["subject_token"].encode() in body for body in there)
    jags = [it.params["assertion"] for it in world.server.calls if "assertion" in it.params]
    events = await world.place.parts.link.history(connection_workflow_id(TENANT, connection.id))
    payloads = payloads_in(events)
    history = b"".join(base64.b64decode(payload["data"]) for payload in payloads)
    assert connection.id.encode() in history, "the search finds what is there"
    assert asked["subject_token"].encode() not in history
    assert jags[0].encode() not in history
