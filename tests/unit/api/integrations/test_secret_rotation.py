"""`POST /v1/integrations/{i}/rotate-secret`: what it accepts, shows and records."""

import pytest

from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api
from tests.unit.api.integrations.test_integrations_and_apps import put, stored

GITLAB = {"provider": "gitlab", "client_id": "client-1", "client_secret": "canary-one"}


@pytest.fixture(autouse=True)
async def integration(api: Api, admin: str) -> None:
    assert (await put(api, admin, GITLAB)).status_code == 201


async def rotate(api: Api, admin: str, body: dict, **more: object):
    return await api.call("POST", "/v1/integrations/crm/rotate-secret", admin, json=body, **more)


async def secrets(api: Api) -> list[str | None]:
    it = await stored(api)
    async with api.worker.read() as tx:
        both = [await tx.integrations.client_secret(it), await tx.integrations.previous_secret(it)]
    return [secret and secret.reveal() for secret in both]


async def test_rotating_shows_the_overlap_and_never_a_secret(api: Api, admin: str):
    answer = await rotate(api, admin, {"client_secret": "canary-two", "overlap_s": 60})
    assert answer.status_code == 200
    assert answer.json()["previous_secret_until"] is not None
    assert answer.json()["secret_refused_at"] is None
    assert "canary" not in answer.text
    assert await secrets(api) == ["canary-two", "canary-one"]


async def test_rolling_back_is_recorded_as_that(api: Api, admin: str):
    await rotate(api, admin, {"client_secret": "canary-two"})
    answer = await rotate(api, admin, {"roll_back": True})
    assert answer.json()["previous_secret_until"] is None
    assert await secrets(api) == ["canary-one", None]
    said = await api.records(AuditAction.SECRET_ROTATED, AuditAction.SECRET_ROLLED_BACK)
    assert [it.action for it in said] == [AuditAction.SECRET_ROTATED, AuditAction.SECRET_ROLLED_BACK]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"client_secret": " "},
        {"client_secret": "two", "roll_back": True},
        {"client_secret": "two", "overlap_s": -1},
        {"client_secret": "two", "overlap": 5},
        {"roll_back": True},  # nothing was rotated yet
    ],
)
async def test_what_can_not_be_meant_is_refused(api: Api, admin: str, body: dict):
    answer = await rotate(api, admin, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert await secrets(api) == ["canary-one", None]


async def test_a_public_client_has_nothing_to_rotate(api: Api, admin: str):
    public = {"provider": "gitlab", "client_id": "client-1", "client_auth": "none"}
    await put(api, admin, public)
    assert (await rotate(api, admin, {"client_secret": "two"})).json()["field"] == "client_secret"


async def test_the_same_command_and_the_secret_that_is_first_already_change_nothing(api: Api, admin: str):
    for headers in ({"Idempotency-Key": "rotation-1"}, {"Idempotency-Key": "rotation-1"}, {}):
        answer = await rotate(api, admin, {"client_secret": "canary-two"}, headers=headers)
        assert answer.status_code == 200
    assert await secrets(api) == ["canary-two", "canary-one"]
