"""A staged definition misreads the answer that brings a connection's first tokens: none is lost.

An authorization code is used once, and so is the poll that a device code's approval answers.
"""

import json
from typing import Any

import pytest

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.device_code import DevicePoll
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.activities import GrantResult
from tests.fakes.certificates import LoopbackTls
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import Answer, ScriptedProvider, error, ok, raw, status
from tests.faults.support.activities import Activities

MISREADS = {"response": {"access_token_path": "data.token"}}
TOKENS = raw(
    json.dumps({"access_token": "at-1", "token_type": "Bearer", "expires_in": 60}).encode(),
    headers={"Content-Type": "application/json"},
)


def a_code(device_code: str = "dc-1") -> Answer:
    body = {
        "device_code": device_code,
        "user_code": "WDJB-MJHT",
        "verification_uri": "https://example.com/device",
        "expires_in": 600,
        "interval": 0,
    }
    return raw(json.dumps(body).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def with_worker() -> bool:
    return False


@pytest.fixture
def provider(tls: LoopbackTls) -> ScriptedProvider:
    return ScriptedProvider(tls=tls)


class Staged:
    """A good version that serves all, and a staged one for practically every connection."""

    def __init__(self, place: Installation) -> None:
        self.place, self.idp = place, place.idp
        self.worker = Activities(place)

    async def begin(self, flow: Flow, **wrong: Any) -> Connection:
        document = self.place.document(
            name="acme-crm",
            auth_modes=["authorization_code", "client_credentials", "device_code"],
            device_authorization_endpoint=self.idp.url("device"),
            pkce="S256",
        )
        integration = await self.place.integration_with(document)
        stays = {"state": DefinitionState.STAGED, "share": 0.999999}
        await self.place.define(document | wrong, version=2, **stays)
        return await self.place.change(await self.place.begin(integration), flow=flow)

    async def exchanged(
        self, endpoint: str = "token", **wrong: Any
    ) -> tuple[Connection, Consent, GrantResult]:
        connection = await self.begin(Flow.AUTHORIZATION_CODE, **wrong)
        consent = await self.place.consent(connection, tell=False, endpoint=endpoint)
        return connection, consent, await self.worker.exchange(connection, consent)

    async def counted(self) -> tuple[int, int]:
        async with self.place.store.read() as tx:
            versions = await tx.definitions.serving(TENANT, "acme-crm")
        (it,) = (it for it in versions if it.state is DefinitionState.STAGED)
        return it.succeeded, it.failed


@pytest.fixture
def staged(place: Installation) -> Staged:
    return Staged(place)


async def test_a_code_whose_answer_a_staged_version_misreads_is_read_as_before(staged: Staged):
    connection, _, news = await staged.exchanged(**MISREADS)
    assert (news.failure, (await staged.place.row(connection)).state) == (None, LifecycleState.ACTIVE)
    assert staged.idp.count("token") == 1
    assert await staged.counted() == (0, 1)


async def test_a_code_that_is_read_well_counts_for_the_version(staged: Staged):
    _, _, news = await staged.exchanged(display_name="Acme")
    assert news.failure is None
    assert await staged.counted() == (1, 0)


@pytest.mark.parametrize("answer", [error("invalid_grant"), status(500)])
async def test_a_code_that_a_staged_endpoint_refuses_goes_to_the_one_before(staged: Staged, answer: Answer):
    staged.idp.script(answer, at="broken")
    connection, _, news = await staged.exchanged("broken", token_endpoint=staged.idp.url("broken"))
    assert (news.failure, (await staged.place.row(connection)).state) == (None, LifecycleState.ACTIVE)
    assert (staged.idp.count("broken"), staged.idp.count("token")) == (1, 1)
    assert await staged.counted() == (0, 1)


async def test_a_code_goes_to_no_endpoint_of_another_server(staged: Staged):
    """RFC 9700 section 4.4: it was given at an endpoint that the version before doesn't name."""
    staged.idp.script(error("invalid_grant"), error("invalid_grant"), at="broken")
    _, _, news = await staged.exchanged(
        "broken",
        token_endpoint=staged.idp.url("broken"),
        authorization_endpoint=staged.idp.url("v2/authorize"),
    )
    assert news.failure is not None
    assert staged.idp.count("token") == 0


async def test_a_refusal_by_both_ends_the_consent(staged: Staged):
    staged.idp.script(error("invalid_grant"), error("invalid_grant"))
    _, consent, news = await staged.exchanged(display_name="Acme")
    ended = await staged.place.consent_of(consent)
    assert (ended.status, ended.failure) == (ConsentStatus.FAILED, news.failure)
    assert await staged.counted() == (0, 0)


async def test_an_answer_that_said_yes_and_that_neither_reads_is_not_asked_for_again(staged: Staged):
    """It is set aside, and a second use of the code would end its tokens (RFC 6749 section 4.1.2)."""
    staged.idp.script(raw(b'{"other": "tokens"}', headers={"Content-Type": "application/json"}))
    _, _, news = await staged.exchanged(**MISREADS)
    assert news.failure is ErrorCode.REPLY_UNREADABLE
    assert staged.idp.count("token") == 1
    assert staged.worker.journal.count_waiting()[1] == 1


async def test_a_client_grant_that_a_staged_version_misreads_is_read_as_before(staged: Staged):
    connection = await staged.begin(Flow.CLIENT_CREDENTIALS, **MISREADS)
    staged.idp.script(TOKENS)
    news = await staged.worker.mint(
        connection, await staged.place.unasked(connection, ConsentKind.CLIENT_GRANT)
    )
    assert (news.failure, (await staged.place.row(connection)).state) == (None, LifecycleState.ACTIVE)
    assert await staged.counted() == (0, 1)


async def test_a_staged_version_that_gets_no_token_ends_no_consent(staged: Staged):
    staged.idp.script(error("unauthorized_client"), at="broken")
    staged.idp.script(TOKENS)
    connection = await staged.begin(Flow.CLIENT_CREDENTIALS, token_endpoint=staged.idp.url("broken"))
    news = await staged.worker.mint(
        connection, await staged.place.unasked(connection, ConsentKind.CLIENT_GRANT)
    )
    assert (news.failure, await staged.counted()) == (None, (0, 1))


@pytest.mark.parametrize(("wrong", "asked"), [("misreads", ok()), ("elsewhere", status(500))])
async def test_a_poll_that_a_staged_version_gets_wrong_is_asked_as_before(
    staged: Staged, wrong: str, asked: Answer
):
    idp = staged.idp
    changes = MISREADS if wrong == "misreads" else {"token_endpoint": idp.url("broken")}
    idp.script(a_code(), at="device")
    idp.script(asked, at="broken")
    idp.script(error("authorization_pending"), TOKENS) if wrong == "misreads" else idp.script(TOKENS)
    connection = await staged.begin(Flow.DEVICE_CODE, **changes)
    consent = await staged.place.unasked(connection, ConsentKind.DEVICE)
    assert (await staged.worker.poll(connection, consent)).device_poll is DevicePoll.STARTED
    if wrong == "misreads":
        assert (await staged.worker.poll(connection, consent)).device_poll is DevicePoll.PENDING
    news = await staged.worker.poll(connection, consent)
    assert (news.failure, (await staged.place.row(connection)).state) == (None, LifecycleState.ACTIVE)
    assert await staged.counted() == (0, 1)
