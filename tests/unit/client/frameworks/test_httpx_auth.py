"""`auth().for_httpx()`: the same flow for httpx's clients, on which MCP clients before 2.0 are built."""

from collections.abc import Iterator

import httpx
import pytest
from evergrant import AsyncEvergrant, Evergrant
from evergrant.testing import FakeConnection, FakeEvergrant

from tests.fakes.patience import PATIENCE_S
from tests.unit.client.scripted_evergrant import RecordedRequest, ScriptedResponse, served


class Resource:
    """Refuses the token that is alice's at first, and accepts every other."""

    def __init__(self, refused: str) -> None:
        self.requests: list[RecordedRequest] = []
        self.refused = f"Bearer {refused}"

    def respond(self, request: RecordedRequest) -> ScriptedResponse:
        self.requests.append(request)
        return ScriptedResponse(401 if request.headers.get("authorization") == self.refused else 200, "")


@pytest.fixture
def alice(fake_evergrant: FakeEvergrant) -> FakeConnection:
    return fake_evergrant.connect("crm", "alice")


@pytest.fixture
def resource(alice: FakeConnection) -> Iterator[tuple[str, Resource]]:
    made = Resource(alice.token)
    with served(made.respond) as url:
        yield url, made


def test_a_401_is_reported_and_a_body_in_memory_is_sent_again(resource: tuple[str, Resource]):
    url, api = resource
    with Evergrant() as client:
        auth = client.auth("crm", "alice", origins=url).for_httpx()
        with httpx.Client(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            assert http.post(f"{url}/a", json={"n": 1}).status_code == 200
            assert [request.raw for request in api.requests] == [b'{"n":1}'] * 2


async def test_a_stream_is_not_sent_again_and_the_next_request_has_the_newer_token(
    resource: tuple[str, Resource],
):
    url, _ = resource

    async def stream():
        yield b"x"

    async with AsyncEvergrant() as client:
        auth = client.auth("crm", "alice", origins=url).for_httpx()
        async with httpx.AsyncClient(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            sent = await http.post(f"{url}/b", content=stream(), headers={"content-length": "1"})
            assert sent.status_code == 401
            assert (await http.get(f"{url}/c")).status_code == 200
            with pytest.raises(RuntimeError, match="AsyncClient"):
                httpx.Client(auth=auth, timeout=PATIENCE_S).get(url)
