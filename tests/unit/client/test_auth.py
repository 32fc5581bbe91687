"""`auth()` against a resource over real HTTP: which requests carry the token, and what a 401 does."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant, BadRequest, Evergrant, ProviderUnavailable, ReconnectNeeded
from evergrant.testing import FakeConnection, FakeEvergrant, ManualClock


class Resource:
    """An API that knows which tokens are good, and remembers what it was sent."""

    def __init__(self, good: Callable[[str], bool]) -> None:
        self.good = good
        self.seen: list[tuple[str, str | None, bytes]] = []
        self.redirects: dict[str, str] = {}
        resource = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                carried = self.headers.get("authorization")
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                resource.seen.append((self.path, carried, body))
                target = resource.redirects.get(self.path)
                good = resource.good((carried or "").removeprefix("Bearer "))
                self.send_response(302 if target else 200 if good else 401)
                if target:
                    self.send_header("location", target)
                self.send_header("content-length", "0")
                self.end_headers()

            def do_POST(self) -> None:
                self.do_GET()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def tokens(self) -> list[str | None]:
        return [carried for _, carried, _ in self.seen]

    def stop(self) -> None:
        self.http.shutdown()
        self._thread.join()
        self.http.server_close()


@pytest.fixture
def alice(fake_evergrant: FakeEvergrant) -> FakeConnection:
    return fake_evergrant.connect("crm", "alice")


@pytest.fixture
def resource(alice: FakeConnection) -> Iterator[Resource]:
    """It takes the newest token and no other."""
    made = Resource(lambda token: token == alice.token)
    yield made
    made.stop()


@pytest.fixture
def elsewhere() -> Iterator[Resource]:
    """Another origin, which takes nothing."""
    made = Resource(lambda token: False)
    yield made
    made.stop()


class Http:
    """Requests through either client's auth."""

    def __init__(self, kind: str, clock: ManualClock) -> None:
        self._kind = kind
        self._clock = clock

    async def get(
        self, *urls: str, origins: Any, at_once: bool = False, **more: Any
    ) -> list[httpx2.Response]:
        if self._kind == "blocking":
            return await asyncio.to_thread(self._blocking, urls, origins, more)
        async with AsyncEvergrant(clock=self._clock) as client:
            auth = client.auth("crm", "alice", origins=origins)
            async with httpx2.AsyncClient(auth=auth, trust_env=False, **more) as http:
                if at_once:
                    return list(await asyncio.gather(*(http.get(url) for url in urls)))
                return [await http.get(url) for url in urls]

    def _blocking(self, urls: tuple[str, ...], origins: Any, more: dict[str, Any]) -> list[httpx2.Response]:
        with Evergrant(clock=self._clock) as client:
            auth = client.auth("crm", "alice", origins=origins)
            with httpx2.Client(auth=auth, trust_env=False, **more) as http:
                return [http.get(url) for url in urls]


@pytest.fixture(params=["blocking", "asyncio"])
def http(request: pytest.FixtureRequest, evergrant_clock: ManualClock) -> Http:
    return Http(request.param, evergrant_clock)


def refreshes(fake: FakeEvergrant, alice: FakeConnection) -> list[Any]:
    path = f"/v1/connections/{alice.id}/refresh"
    return [it.body["generation"] for it in fake.requests if it.path == path]


async def test_each_request_carries_a_token(
    http: Http, resource: Resource, alice: FakeConnection, fake_evergrant: FakeEvergrant
):
    answers = await http.get(f"{resource.url}/a", f"{resource.url}/b", origins=resource.url)
    assert [it.status_code for it in answers] == [200, 200]
    assert resource.tokens == [f"Bearer {alice.token}"] * 2
    assert refreshes(fake_evergrant, alice) == []


async def test_a_401_is_reported_with_its_generation_and_the_request_repeated(
    http: Http, resource: Resource, alice: FakeConnection, fake_evergrant: FakeEvergrant
):
    stale = alice.token
    resource.good = lambda token: token != stale
    (answer,) = await http.get(f"{resource.url}/a", origins=resource.url)
    assert answer.status_code == 200
    assert resource.tokens == [f"Bearer {stale}", f"Bearer {alice.token}"]
    assert refreshes(fake_evergrant, alice) == [1]


async def test_a_resource_that_takes_nothing_is_not_refreshed_for_again_and_again(
    http: Http, resource: Resource, alice: FakeConnection, fake_evergrant: FakeEvergrant
):
    resource.good = lambda token: False
    answers = await http.get(*[f"{resource.url}/a"] * 5, origins=resource.url)
    assert {it.status_code for it in answers} == {401}
    assert refreshes(fake_evergrant, alice) == [1]
    assert len(resource.seen) == 6


async def test_many_401s_at_once_are_one_report(
    evergrant_clock: ManualClock, resource: Resource, alice: FakeConnection, fake_evergrant: FakeEvergrant
):
    stale = alice.token
    resource.good = lambda token: token != stale
    urls = [f"{resource.url}/{number}" for number in range(20)]
    answers = await Http("asyncio", evergrant_clock).get(*urls, origins=resource.url, at_once=True)
    assert {it.status_code for it in answers} == {200}
    assert refreshes(fake_evergrant, alice) == [1]


async def test_another_origin_gets_no_token_and_its_401_is_its_own(
    http: Http, resource: Resource, elsewhere: Resource, alice: FakeConnection, fake_evergrant: FakeEvergrant
):
    (answer,) = await http.get(f"{elsewhere.url}/a", origins=[resource.url])
    assert (answer.status_code, elsewhere.tokens) == (401, [None])
    assert fake_evergrant.requests == []


@pytest.mark.parametrize("back", [False, True])
async def test_a_redirect_elsewhere_takes_no_token_along(
    http: Http,
    resource: Resource,
    elsewhere: Resource,
    alice: FakeConnection,
    fake_evergrant: FakeEvergrant,
    back: bool,
):
    resource.redirects["/a"] = f"{elsewhere.url}/b"
    if back:
        elsewhere.redirects["/b"] = f"{resource.url}/c"
    (answer,) = await http.get(f"{resource.url}/a", origins=resource.url, follow_redirects=True)
    assert answer.status_code == 401
    assert elsewhere.tokens == [None]
    assert refreshes(fake_evergrant, alice) == []


async def test_a_redirect_within_the_origin_keeps_it(http: Http, resource: Resource, alice: FakeConnection):
    resource.redirects["/a"] = "/b"
    (answer,) = await http.get(f"{resource.url}/a", origins=resource.url, follow_redirects=True)
    assert (answer.status_code, resource.tokens) == (200, [f"Bearer {alice.token}"] * 2)


async def test_a_missing_consent_is_raised_before_anything_is_sent(
    http: Http, resource: Resource, alice: FakeConnection
):
    alice.lose()
    with pytest.raises(ReconnectNeeded) as needed:
        await http.get(f"{resource.url}/a", origins=resource.url)
    assert needed.value.connect_url == alice.link
    assert resource.seen == []


def test_a_body_is_sent_again_and_a_stream_is_not(
    evergrant_clock: ManualClock, resource: Resource, alice: FakeConnection
):
    resource.good = lambda token, stale=alice.token: token != stale
    with Evergrant(clock=evergrant_clock, cache_leases_for=timedelta(0)) as client:
        auth = client.auth("crm", "alice", origins=resource.url)
        with httpx2.Client(auth=auth, trust_env=False) as http:
            assert http.post(f"{resource.url}/a", json={"n": 1}).status_code == 200
            assert [body for _, _, body in resource.seen] == [b'{"n":1}'] * 2
            resource.good = lambda token, stale=alice.token: token != stale
            sent = http.post(f"{resource.url}/b", content=iter([b"x"]), headers={"content-length": "1"})
            assert sent.status_code == 401
            assert http.get(f"{resource.url}/c").status_code == 200  # it was reported all the same


def test_a_report_that_can_not_be_made_is_an_error(
    evergrant_clock: ManualClock, resource: Resource, alice: FakeConnection
):
    resource.good = lambda token: False
    alice.refuses_refresh = True
    with Evergrant(clock=evergrant_clock, deadline=timedelta(seconds=0.5)) as client:
        auth = client.auth("crm", "alice", origins=resource.url)
        with httpx2.Client(auth=auth, trust_env=False) as http, pytest.raises(ProviderUnavailable):
            http.get(f"{resource.url}/a")


@pytest.mark.parametrize(
    "origins",
    [
        (),
        "",
        "api.example.com",
        "http://api.example.com",
        "https://a.example/v1",
        "https://u@a.example",
        "ftp://a",
    ],
)
def test_only_origins_are_allowed(fake_evergrant: FakeEvergrant, origins: Any):
    with Evergrant() as client, pytest.raises(BadRequest) as refused:
        client.auth("crm", "alice", origins=origins)
    assert refused.value.code == "origin_invalid"


async def test_each_auth_is_for_its_own_kind_of_client(fake_evergrant: FakeEvergrant):
    with Evergrant() as client:
        mine = client.auth("crm", "alice", origins="https://a.example")
    async with AsyncEvergrant() as other:
        theirs = other.auth("crm", "alice", origins="https://a.example")
    with httpx2.Client(auth=theirs) as http, pytest.raises(RuntimeError, match="AsyncClient"):
        http.get("https://a.example")
    async with httpx2.AsyncClient(auth=mine) as http:
        with pytest.raises(RuntimeError, match="AsyncEvergrant"):
            await http.get("https://a.example")
