"""Tokens that are bound to a key: `auth()` puts a proof on each request, and minds nonces (RFC 9449)."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant, BadRequest, Evergrant, Proof
from evergrant.testing import FakeConnection, FakeEvergrant, ManualClock


class Resource:
    """It wants a proof for each request, by the token it comes with, and its nonce in it."""

    def __init__(self, alice: FakeConnection, nonce: str | None) -> None:
        self.seen: list[str] = []
        resource = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                said = self.headers.get("dpop", "")
                resource.seen.append(said)
                wanted = f"{alice.generation} GET {resource.url}{self.path} {nonce}"
                good = (self.headers.get("authorization"), said) == (f"DPoP {alice.token}", wanted)
                self.send_response(200 if good else 401)
                if not good and nonce is not None and not said.endswith(f" {nonce}"):
                    self.send_header("www-authenticate", 'DPoP error="use_dpop_nonce"')
                    self.send_header("dpop-nonce", nonce)
                self.send_header("content-length", "0")
                self.end_headers()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self._thread.join()
        self.http.server_close()


@pytest.fixture
def alice(fake_evergrant: FakeEvergrant) -> FakeConnection:
    made = fake_evergrant.connect("crm", "alice")
    made.token_type = "DPoP"
    return made


@pytest.fixture(params=[None, "n-1"], ids=["plain", "nonce"])
def resource(alice: FakeConnection, request: pytest.FixtureRequest) -> Iterator[Resource]:
    made = Resource(alice, request.param)
    yield made
    made.stop()


async def fetched(kind: str, clock: ManualClock, resource: Resource, alice: FakeConnection) -> list[int]:
    """Two requests; the grant is refreshed between them, which the cached lease doesn't know."""
    if kind == "asyncio":
        async with AsyncEvergrant(clock=clock) as client:
            auth: Any = client.auth("crm", "alice", origins=resource.url)
            async with httpx2.AsyncClient(auth=auth, trust_env=False) as http:
                first = await http.get(f"{resource.url}/a")
                alice.rotate()
                return [first.status_code, (await http.get(f"{resource.url}/b")).status_code]

    def blocking() -> list[int]:
        with Evergrant(clock=clock) as client:
            auth = client.auth("crm", "alice", origins=resource.url)
            with httpx2.Client(auth=auth, trust_env=False) as http:
                first = http.get(f"{resource.url}/a")
                alice.rotate()
                return [first.status_code, http.get(f"{resource.url}/b").status_code]

    return await asyncio.to_thread(blocking)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
async def test_each_request_has_a_proof_of_the_token_it_carries(
    kind: str,
    fake_evergrant: FakeEvergrant,
    evergrant_clock: ManualClock,
    resource: Resource,
    alice: FakeConnection,
):
    assert await fetched(kind, evergrant_clock, resource, alice) == [200, 200]
    asked_for_a_nonce = [said for said in resource.seen if said.endswith("None")]
    # the nonce costs one more request, once; a proof that doesn't fit the lease costs none at all
    assert len(resource.seen) == (3 if len(asked_for_a_nonce) == 1 else 2)
    assert fake_evergrant.called("POST", f"/v1/connections/{alice.id}/refresh") == 0


def test_a_proof_by_itself(
    fake_evergrant: FakeEvergrant, evergrant_clock: ManualClock, alice: FakeConnection
):
    with Evergrant(clock=evergrant_clock) as client:
        made = client.proof(alice.id, "get", "https://api.example/me#top", nonce="n")
        assert (made.proof, made.generation) == ("1 GET https://api.example/me n", 1)
        assert isinstance(made, Proof)
        assert made.proof not in repr(made)
        alice.token_type = "Bearer"
        with pytest.raises(BadRequest):
            client.proof(alice.id, "GET", "https://api.example/me")
