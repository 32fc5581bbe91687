"""`auth()` against an API over real HTTP: which requests carry the token, a 401's report, DPoP proofs.

Both clients run the same flow; `test_simultaneous_401s_are_one_report` runs asyncio's.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant, BadRequest, Evergrant, Proof, ProviderUnavailable, ReconnectNeeded
from evergrant.testing import FakeConnection, FakeEvergrant, ManualClock

from tests.fakes.patience import PATIENCE_S
from tests.unit.client.scripted_evergrant import RecordedRequest, ScriptedResponse, served


class Resource:
    """A provider's API that accepts some tokens and records its requests.

    With `proves` it accepts a request only with its DPoP proof, and with `nonce` in that, if any.
    """

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        self.accepts = accepts
        self.requests: list[RecordedRequest] = []
        self.redirects: dict[str, str] = {}
        self.proves: FakeConnection | None = None
        self.nonce: str | None = None
        self.url = ""

    def respond(self, request: RecordedRequest) -> ScriptedResponse:
        self.requests.append(request)
        if target := self.redirects.get(request.path):
            return ScriptedResponse(302, "", {"location": target})
        if self.proves is not None:
            return self._respond_to_proof(self.proves, request)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        return ScriptedResponse(200 if self.accepts(token) else 401, "")

    def _respond_to_proof(self, connection: FakeConnection, request: RecordedRequest) -> ScriptedResponse:
        proof = request.headers.get("dpop", "")
        expected = f"{connection.generation} GET {self.url}{request.path} {self.nonce}"
        if (request.headers.get("authorization"), proof) == (f"DPoP {connection.token}", expected):
            return ScriptedResponse(200, "")
        if self.nonce is None or proof.endswith(f" {self.nonce}"):
            return ScriptedResponse(401, "")
        challenge = {"www-authenticate": 'DPoP error="use_dpop_nonce"', "dpop-nonce": self.nonce}
        return ScriptedResponse(401, "", challenge)

    @property
    def tokens(self) -> list[str | None]:
        return [request.headers.get("authorization") for request in self.requests]


@pytest.fixture
def alice(fake_evergrant: FakeEvergrant) -> FakeConnection:
    return fake_evergrant.connect("crm", "alice")


@pytest.fixture
def resources(alice: FakeConnection) -> Iterator[tuple[Resource, Resource]]:
    """Two origins: one accepts the newest token alone, the other accepts none."""
    made = (Resource(lambda token: token == alice.token), Resource(lambda token: False))
    with ExitStack() as stack:
        for resource in made:
            resource.url = stack.enter_context(served(resource.respond))
        yield made


@pytest.fixture
def resource(resources: tuple[Resource, Resource]) -> Resource:
    return resources[0]


@pytest.fixture
def other_origin(resources: tuple[Resource, Resource]) -> Resource:
    return resources[1]


Get = Callable[..., list[int]]


@pytest.fixture
def get(evergrant_clock: ManualClock) -> Get:
    """GET requests through a client's auth; `between` runs after each of them. Returns the statuses."""

    def run(*urls: str, origins: Any, between: Callable[[], object] = lambda: None, **more: Any) -> list[int]:
        statuses: list[int] = []
        with Evergrant(clock=evergrant_clock) as client:
            auth = client.auth("crm", "alice", origins=origins)
            with httpx2.Client(auth=auth, trust_env=False, **more) as http:
                for url in urls:
                    statuses.append(http.get(url).status_code)
                    between()
        return statuses

    return run


@pytest.fixture
def reports(fake_evergrant: FakeEvergrant, alice: FakeConnection) -> Callable[[], list[Any]]:
    """The generations that were reported as refused."""
    path = f"/v1/connections/{alice.id}/refresh"
    return lambda: [made.body["generation"] for made in fake_evergrant.requests if made.path == path]


def refuse_current(resource: Resource, alice: FakeConnection) -> str:
    """The API refuses the current token and accepts every other; returns the refused one."""
    refused = alice.token
    resource.accepts = lambda token: token != refused
    return refused


def test_a_401_is_reported_with_its_generation_and_the_request_repeated(
    get: Get, resource: Resource, alice: FakeConnection, reports: Callable[[], list[Any]]
):
    refused = refuse_current(resource, alice)
    assert get(f"{resource.url}/a", origins=resource.url) == [200]
    assert resource.tokens == [f"Bearer {refused}", f"Bearer {alice.token}"]
    assert reports() == [1]


def test_an_api_that_refuses_every_token_causes_one_report(
    get: Get, resource: Resource, reports: Callable[[], list[Any]]
):
    resource.accepts = lambda token: False
    assert get(*[f"{resource.url}/a"] * 5, origins=resource.url) == [401] * 5
    assert reports() == [1]
    assert len(resource.requests) == 6


async def test_simultaneous_401s_are_one_report(
    resource: Resource, alice: FakeConnection, reports: Callable[[], list[Any]]
):
    refuse_current(resource, alice)
    async with AsyncEvergrant() as client:
        auth = client.auth("crm", "alice", origins=resource.url)
        async with httpx2.AsyncClient(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            responses = await asyncio.gather(*(http.get(f"{resource.url}/{n}") for n in range(20)))
    assert {response.status_code for response in responses} == {200}
    assert reports() == [1]


def test_another_origin_gets_no_token_and_its_401_is_not_reported(
    get: Get, resource: Resource, other_origin: Resource, fake_evergrant: FakeEvergrant
):
    assert get(f"{other_origin.url}/a", origins=[resource.url]) == [401]
    assert other_origin.tokens == [None]
    assert fake_evergrant.requests == []


@pytest.mark.parametrize("back", [False, True])
def test_a_redirect_to_another_origin_drops_the_token(
    get: Get, resource: Resource, other_origin: Resource, reports: Callable[[], list[Any]], back: bool
):
    resource.redirects["/a"] = f"{other_origin.url}/b"
    if back:
        other_origin.redirects["/b"] = f"{resource.url}/c"
    assert get(f"{resource.url}/a", origins=resource.url, follow_redirects=True) == [401]
    assert other_origin.tokens == [None]
    assert reports() == []


def test_a_missing_consent_is_raised_before_a_request_is_sent(
    get: Get, resource: Resource, alice: FakeConnection
):
    alice.lose()
    with pytest.raises(ReconnectNeeded) as needed:
        get(f"{resource.url}/a", origins=resource.url)
    assert needed.value.connect_url == alice.link
    assert resource.requests == []


def test_a_body_is_sent_again_and_a_stream_is_not(
    evergrant_clock: ManualClock, resource: Resource, alice: FakeConnection
):
    refuse_current(resource, alice)
    with Evergrant(clock=evergrant_clock, cache_leases_for=timedelta(0)) as client:
        auth = client.auth("crm", "alice", origins=resource.url)
        with httpx2.Client(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            assert http.post(f"{resource.url}/a", json={"n": 1}).status_code == 200
            assert [request.raw for request in resource.requests] == [b'{"n":1}'] * 2
            refuse_current(resource, alice)
            sent = http.post(f"{resource.url}/b", content=iter([b"x"]), headers={"content-length": "1"})
            assert sent.status_code == 401
            assert http.get(f"{resource.url}/c").status_code == 200  # the 401 was reported all the same


@pytest.mark.usefixtures("no_pauses")
def test_a_report_that_fails_is_raised(
    evergrant_clock: ManualClock, resource: Resource, alice: FakeConnection
):
    resource.accepts = lambda token: False
    alice.refuses_refresh = True
    with Evergrant(clock=evergrant_clock) as client:
        auth = client.auth("crm", "alice", origins=resource.url)
        with (
            httpx2.Client(auth=auth, trust_env=False, timeout=PATIENCE_S) as http,
            pytest.raises(ProviderUnavailable),
        ):
            http.get(f"{resource.url}/a")


@pytest.mark.parametrize(
    "origins",
    [(), "", "api.example.com", "http://a.example", "https://a.example/v1", "https://u@a.example", "ftp://a"],
)
def test_only_origins_are_allowed(fake_evergrant: FakeEvergrant, origins: Any):
    with Evergrant() as client, pytest.raises(BadRequest) as refused:
        client.auth("crm", "alice", origins=origins)
    assert refused.value.code == "origin_invalid"


async def test_each_auth_is_for_its_own_kind_of_http_client(fake_evergrant: FakeEvergrant):
    with Evergrant() as client:
        blocking = client.auth("crm", "alice", origins="https://a.example")
    async with AsyncEvergrant() as other:
        asynchronous = other.auth("crm", "alice", origins="https://a.example")
    with (
        httpx2.Client(auth=asynchronous, timeout=PATIENCE_S) as http,
        pytest.raises(RuntimeError, match="AsyncClient"),
    ):
        http.get("https://a.example")
    async with httpx2.AsyncClient(auth=blocking, timeout=PATIENCE_S) as http:
        with pytest.raises(RuntimeError, match="AsyncEvergrant"):
            await http.get("https://a.example")


@pytest.mark.parametrize("nonce", [None, "n-1"])
def test_each_request_has_a_proof_of_the_token_it_carries(
    get: Get, resource: Resource, alice: FakeConnection, reports: Callable[[], list[Any]], nonce: str | None
):
    """RFC 9449. The grant is refreshed between two requests, which the cached lease doesn't show."""
    alice.token_type = "DPoP"
    resource.proves, resource.nonce = alice, nonce
    urls = (f"{resource.url}/a", f"{resource.url}/b")
    assert get(*urls, origins=resource.url, between=alice.rotate) == [200, 200]
    # The nonce costs one more request, once; a proof of another generation costs none.
    assert len(resource.requests) == (2 if nonce is None else 3)
    assert reports() == []


def test_a_proof_is_made_for_a_bound_token_only(
    fake_evergrant: FakeEvergrant, evergrant_clock: ManualClock, alice: FakeConnection
):
    alice.token_type = "DPoP"
    with Evergrant(clock=evergrant_clock) as client:
        proof = client.proof(alice.id, "get", "https://api.example/me#top", nonce="n")
        assert isinstance(proof, Proof)
        assert (proof.proof, proof.generation) == ("1 GET https://api.example/me n", 1)
        assert proof.proof not in repr(proof)
        alice.token_type = "Bearer"
        with pytest.raises(BadRequest):
            client.proof(alice.id, "GET", "https://api.example/me")


def test_rfc6750_3_1_a_403_for_lack_of_a_scope_leads_to_a_consent_for_it(
    alice: FakeConnection, evergrant_clock: ManualClock
):
    """It is sent again with a newer grant alone: a server that is never content gets no further request."""
    tokens: list[str] = []
    demanded = "files:write"

    def respond(request: RecordedRequest) -> ScriptedResponse:
        tokens.append(request.headers["authorization"].removeprefix("Bearer "))
        challenge = {"www-authenticate": f'Bearer error="insufficient_scope", scope="{demanded}"'}
        content = demanded in alice.scopes and tokens[-1] == alice.token and request.path == "/a"
        return ScriptedResponse(200, "") if content else ScriptedResponse(403, "", challenge)

    with served(respond) as url, Evergrant(clock=evergrant_clock) as client:
        auth = client.auth("crm", "alice", origins=url)
        with httpx2.Client(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            with pytest.raises(ReconnectNeeded) as needed:
                http.get(f"{url}/a")
            assert (needed.value.code, needed.value.connect_url is not None) == ("scope_not_granted", True)
            before, alice.scopes = alice.token, (demanded,)
            after = alice.rotate()  # the subject has consented
            assert http.get(f"{url}/a").status_code == 200
            assert http.get(f"{url}/never-content").status_code == 403
    assert tokens == [before, before, after, after]
