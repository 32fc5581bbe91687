"""Whose turn it is, at real servers: what callers are told within two minutes of the server's answer.

Each cell is a refresh at a server that others wrote, by one worker's activities and the workflow's decisions
on a real store; the time between two tries is skipped, the servers' own isn't. Each cell is played twice:
beside another connection of the same client, which is refreshed meanwhile, and (`make soak`) with the only
connection.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import pytest_asyncio

from evergrant_server.api.connections.view import connection_view
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode, Repairer
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from providers.definition.registry import Registry
from providers.requests.authorization_url import build_authorization_url, new_random_value
from tests.fakes.platform.skipped_time import REDIRECT_URI, TENANT, LoneWorker, lone_worker
from tests.fakes.providers.glewlwyd import Glewlwyd
from tests.fakes.providers.lemonldap import LemonLdap
from tests.fakes.providers.real_servers import REAL_SERVERS, Passage, RealServer, Road, road_to

SERVERS: tuple[type[RealServer], ...] = (*REAL_SERVERS, Glewlwyd, LemonLdap)
WITHIN = timedelta(minutes=2)
SOON = timedelta(minutes=15)
WITNESSED_AFTER = timedelta(seconds=1)
TRIES = 3  # of each kind of an outage
MOST_TRIES = 20

pytestmark = pytest.mark.asyncio(loop_scope="module")  # each server is started once


@dataclass(frozen=True)
class Told:
    """What a caller reads of a connection."""

    state: LifecycleState
    reason: ErrorCode | None
    repairer: Repairer | None
    failures: int
    next_at: datetime | None


class Scene:
    """A worker, one server, and the connection that meets the trouble; `witness` is another of its client."""

    def __init__(self, server: RealServer, road: Road, place: LoneWorker) -> None:
        self.server, self.road, self.place = server, road, place

    async def prepare(self, cell: str, *, alone: bool) -> None:
        endpoints = moved(await self.server.endpoints(), self.server.issuer, self.road.origin)
        self.integration = await self.place.integration(
            self.server.client_secret,
            name=cell,
            client_id=self.server.client_id,
            issuer=endpoints.issuer,
            endpoints=endpoints,
            default_scopes=self.server.scopes,
        )
        self.user = f"sam-{cell}"
        self.connection = await self._consented(self.user)
        self.witness = None if alone else await self._consented(f"ann-{cell}")
        for connection in filter(None, (self.connection, self.witness)):
            assert (await self.place.refresh(connection)).failure is None, self.road.answers[-1].text
            self.place.clock.advance(600)

    async def _consented(self, user: str) -> Connection:
        """A connection of this user of the server: authorization request, consent and code exchange."""
        verifier = new_random_value()
        url = build_authorization_url(
            Registry.load().get("generic"),
            self.integration,
            redirect_uri=REDIRECT_URI,
            state=new_random_value(),
            verifier=verifier,
            scopes=self.server.scopes,
            account={"login_hint": user},
        )
        callback = dict(parse_qsl(urlsplit(await self.server.consent(url, user)).query))
        result, consent = await self.place.exchange(
            self.integration, {}, subject=user, code=callback["code"], verifier=verifier.reveal()
        )
        assert consent.status is ConsentStatus.DONE, result
        async with self.place.store.read() as tx:
            connection = await tx.connections.get(TENANT, consent.connection_id)
        assert connection is not None
        return connection

    async def tries(self, times: int = 1) -> Told:
        """The next refreshes of the connection, on its timer."""
        for _ in range(times):
            await self._refresh_when_due()
        return await self.told()

    async def told_in_time(self) -> Told:
        """What is told two minutes after the server has answered the connection's next refresh.

        Until then it is refreshed whenever its timer fires.
        """
        until: datetime | None = None
        for _ in range(MOST_TRIES):
            row, due = await self.told(), self.place.due_at(self.connection)
            if row.state is not LifecycleState.ACTIVE or (until is not None and (due is None or due > until)):
                return row
            answered = await self._refresh_when_due()
            if answered and until is None:
                until = self.place.clock.now() + WITHIN
        raise AssertionError(f"after {MOST_TRIES} tries: {await self.told()}")

    async def _refresh_when_due(self) -> bool:
        """Whether the server answered. A moment later the witness is refreshed, if there is one."""
        clock, due = self.place.clock, self.place.due_at(self.connection)
        clock.advance(max((due - clock.now()).total_seconds(), 0) if due is not None else 0)
        before = len(self.road.answers)
        await self.place.refresh(self.connection)
        answered = len(self.road.answers) > before
        clock.advance(WITNESSED_AFTER.total_seconds())
        if self.witness is not None and self.road.is_open:
            await self.place.refresh(self.witness)
        return answered

    async def change_secret(self, secret: str) -> None:
        async with self.place.store.write() as tx:
            current = await tx.integrations.get(TENANT, self.integration.id)
            assert current is not None
            changed = current.__replace__(changed_at=self.place.clock.now())
            await tx.integrations.put(changed, Secret(secret), expected=current.revision)

    async def told(self) -> Told:
        async with self.place.store.read() as tx:
            row = await tx.connections.get(TENANT, self.connection.id)
            assert row is not None
            view = await connection_view(tx, row)
        due = self.place.due_at(row)
        if row.state is LifecycleState.ACTIVE and row.failures:
            assert due is not None
            assert due > self.place.clock.now() - WITNESSED_AFTER
        return Told(view.state, view.reason or view.last_failure, view.repairer, view.failures, due)


def moved(endpoints: Endpoints, issuer: str, origin: str) -> Endpoints:
    """The endpoints that workers call, by the road; browsers go to the server itself."""
    server = "{0.scheme}://{0.netloc}".format(urlsplit(issuer))
    urls = {
        name: url.replace(server, origin)
        for name in ("token_endpoint", "revocation_endpoint", "introspection_endpoint", "userinfo_endpoint")
        if (url := getattr(endpoints, name)) is not None
    }
    return endpoints.__replace__(**urls)


Cell = Callable[[Scene], Awaitable[None]]


def works(told: Told) -> None:
    assert (told.state, told.failures, told.repairer) == (LifecycleState.ACTIVE, 0, None)


def asks_the_subject(told: Told, *reasons: ErrorCode) -> None:
    assert (told.state, told.repairer) == (LifecycleState.NEEDS_REAUTH, Repairer.SUBJECT), told
    assert not reasons or told.reason in reasons, told


def is_over(scene: Scene, told: Told) -> None:
    """The subject is asked, unless nothing tells the refusal from another: then it is asked again soon."""
    if scene.witness is not None or not scene.server.says_nothing:
        asks_the_subject(told)
        return
    assert (told.state, told.repairer) == (LifecycleState.ACTIVE, Repairer.TIME), told
    assert told.next_at is not None
    assert told.next_at - scene.place.clock.now() <= SOON


async def lost_answer(scene: Scene) -> None:
    """The server has spent the token, and the answer is lost."""
    scene.road.passage = Passage.ANSWER_LOST
    assert (await scene.tries()).repairer is Repairer.TIME
    scene.road.passage = Passage.OPEN
    told = await scene.told_in_time()
    if scene.server.takes_spent:
        works(told)
    else:
        asks_the_subject(told, ErrorCode.OUTCOME_UNKNOWN)


async def outage_then_dead(scene: Scene) -> None:
    """First it can't be reached, then a gateway before it answers; meanwhile the grant is ended."""
    await scene.road.close()
    assert (await scene.tries(TRIES)).repairer is Repairer.TIME
    await scene.road.open()
    scene.road.passage = Passage.BAD_GATEWAY
    assert (await scene.tries(TRIES)).repairer is Repairer.TIME
    await scene.server.end_grants(scene.user)
    scene.road.passage = Passage.OPEN
    is_over(scene, await scene.told_in_time())


async def revoked(scene: Scene) -> None:
    await scene.server.end_grants(scene.user)
    is_over(scene, await scene.told_in_time())


async def disabled(scene: Scene) -> None:
    await scene.server.disable(scene.user)
    told = await scene.told_in_time()
    if scene.server.heeds_disabling:
        asks_the_subject(told)
    else:
        works(told)


async def wrong_secret(scene: Scene) -> None:
    """The admin is asked; once the secret is repaired, all works, or the subject is asked."""
    await scene.change_secret("another")
    told = await scene.told_in_time()
    assert (told.state, told.repairer) == (LifecycleState.ACTIVE, Repairer.INTEGRATION_ADMIN), told
    await scene.change_secret(scene.server.client_secret)
    told = await scene.told_in_time()
    if scene.server.spends_on_wrong_secret:
        asks_the_subject(told)
    else:
        works(told)


async def down(scene: Scene) -> None:
    """Time is named, with the next try; once the server is back, all works."""
    await scene.road.close()
    told = await scene.tries()
    assert (told.state, told.repairer) == (LifecycleState.ACTIVE, Repairer.TIME), told
    assert told.next_at is not None
    assert timedelta() < told.next_at - scene.place.clock.now() <= WITHIN
    await scene.road.open()
    works(await scene.told_in_time())


CELLS: tuple[Cell, ...] = (lost_answer, outage_then_dead, revoked, disabled, wrong_secret, down)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS, ids=lambda kind: kind.name)
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RealServer]:
    async with request.param.running(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.mark.parametrize(
    "alone", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["beside_another", "alone"]
)
@pytest.mark.parametrize(
    "cell",
    [pytest.param(it, marks=pytest.mark.soak if it in (revoked, down) else ()) for it in CELLS],
    ids=lambda kind: kind.__name__,
)
async def test_the_right_repairer_within_two_minutes(
    server: RealServer, cell: Cell, alone: bool, tmp_path: Path
):
    if cell.__name__ in server.cannot:
        pytest.skip(server.cannot[cell.__name__])
    async with road_to(server) as road:
        allowed = urlsplit(road.origin).netloc
        async with lone_worker(tmp_path, allowed, now=datetime.now(UTC)) as place:
            scene = Scene(server, road, place)
            name = f"{cell.__name__}-{'alone' if alone else 'beside'}"
            await scene.prepare(name.replace("_", "-"), alone=alone)
            await cell(scene)
