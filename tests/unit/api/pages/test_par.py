"""The connect page while a worker pushes its request: what comes of each end (RFC 9126, ADR 0016)."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.connections.consent import Consent, ConsentStatus, PushedAuthorization
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.integrations import PushAuthorizationRequest
from evergrant_server.core.messages.jobs import PUSH_AUTHORIZATION_REQUEST
from tests.fakes.api import Api
from tests.fakes.patience import eventually
from tests.fakes.visitor import Visitor, consent_of

ISSUER = "https://idp.example"
REFERENCE = "urn:ietf:params:oauth:request_uri:1"


class Waiting:
    """A browser at the page of a provider with an endpoint for pushed requests, and its worker."""

    def __init__(self, api: Api, link: str) -> None:
        self.api = api
        self.link = link
        self.visitor = Visitor(api)

    async def goes_on(self, outcome: PushedAuthorization) -> httpx2.Response:
        """Press the button, and have the worker end with `outcome`."""
        before = (await consent_of(self.api, self.link)).revision
        going = asyncio.create_task(self.visitor.go_on(self.link))
        await self.settle(await self.started(after=before), outcome)
        return await going

    async def started(self, after: int = 0) -> Consent:
        return await eventually(
            lambda: consent_of(self.api, self.link),
            lambda it: it.status is ConsentStatus.STARTED and it.revision > after,
        )

    async def settle(self, consent: Consent, outcome: PushedAuthorization) -> None:
        async with self.api.worker.write() as tx:
            await tx.consents.replace(consent, expected=consent.revision, request=outcome)


async def waiting(api: Api, scopes: list[str] | None = None, **endpoints: Any) -> Waiting:
    known = Endpoints(
        issuer=ISSUER,
        authorization_endpoint=f"{ISSUER}/authorize",
        token_endpoint=f"{ISSUER}/token",
        pushed_authorization_request_endpoint=f"{ISSUER}/par",
        **endpoints,
    )
    await api.integration(provider="generic", issuer=ISSUER, endpoints=known)
    key = await api.app_with("asker", Action.CONNECT)
    body = {"integration": "crm", "subject": "user-1"} | ({"scopes": scopes} if scopes else {})
    made = await api.post("/v1/connections", key, body)
    assert made.status_code == 201, made.text
    return Waiting(api, made.json()["connect_url"])


def reference(api: Api, lives_s: float = 60) -> PushedAuthorization:
    return PushedAuthorization(request_uri=REFERENCE, expires_at=api.clock.now() + timedelta(seconds=lives_s))


async def test_the_browser_leaves_with_the_reference_and_the_worker_was_told_no_secret(api: Api):
    page = await waiting(api, scopes=["openid"])
    going = asyncio.create_task(page.visitor.go_on(page.link))
    consent = await page.started()
    sent = await api.outbox()
    async with api.worker.read() as tx:
        pushed = dict((await tx.consents.pushed_request(consent)).fields)
    (payload,) = [it.payload for it in sent if it.name == PUSH_AUTHORIZATION_REQUEST.name]
    order = PushAuthorizationRequest.model_validate(payload)
    assert (order.consent_id, order.revision) == (consent.id, consent.revision)
    assert consent.nonce_hash == hash_of_nonce(pushed["nonce"])
    assert not any(pushed[name] in str(sent) for name in ("state", "nonce"))
    await page.settle(consent, reference(api))
    assert (await going).status_code == 200
    assert page.visitor.sent == {"client_id": "client-1", "request_uri": REFERENCE}


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    ("code", "says_no"),
    [
        (ErrorCode.PROVIDER_UNREACHABLE, False),
        (ErrorCode.PROVIDER_ERROR, False),
        (ErrorCode.REPLY_UNREADABLE, False),
        (ErrorCode.CLIENT_REJECTED, True),
        (ErrorCode.EGRESS_REFUSED, True),
    ],
)
async def test_where_it_is_a_choice_only_a_no_keeps_the_browser_here(
    api: Api, code: ErrorCode, says_no: bool, required: bool
):
    page = await waiting(api, pushed_requests_required=required)
    answer = await page.goes_on(PushedAuthorization.failed(Failure(code, "said so")))
    if says_no or required:
        assert (code.value in answer.text, page.visitor.provider_url) == (True, "")
    else:
        assert answer.status_code == 200
        assert page.visitor.sent["code_challenge_method"] == "S256"
    again = await page.goes_on(reference(api))  # the link is as good as before
    assert (again.status_code, page.visitor.sent["request_uri"]) == (200, REFERENCE)


@pytest.mark.parametrize("required", [False, True])
async def test_rfc9126_2_2_a_reference_that_is_over_is_not_used(api: Api, required: bool):
    page = await waiting(api, pushed_requests_required=required)
    answer = await page.goes_on(reference(api, lives_s=0))
    assert answer.status_code == (503 if required else 200)
    assert "request_uri" not in page.visitor.provider_url


async def test_a_second_click_takes_the_place_of_the_first(api: Api):
    page = await waiting(api)
    first = asyncio.create_task(page.visitor.go_on(page.link))
    begun = await page.started()
    second = asyncio.create_task(page.visitor.go_on(page.link))
    newer = await page.started(after=begun.revision)
    await page.settle(newer, reference(api))
    answers = [(await first).status_code, (await second).status_code]
    assert answers == [400, 200]
