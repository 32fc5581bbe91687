"""`POST /v1/integrations/{i}/rotate-secret`: what it accepts, shows and records."""

import pytest

from evergrant_server import audit
from evergrant_server.api.apps.bootstrap import bootstrap_admin
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api

GITLAB = {"provider": "gitlab", "client_id": "client-1", "client_secret": "canary-one"}


@pytest.fixture
async def admin(api: Api) -> str:
    key = await bootstrap_admin(api.store, api.clock, TENANT)
    assert (await api.call("PUT", "/v1/integrations/crm", key, json=GITLAB)).status_code == 201
    return key


async def rotate(api: Api, admin: str, body: dict, **more: object):
    return await api.call("POST", "/v1/integrations/crm/rotate-secret", admin, json=body, **more)


async def secrets(api: Api) -> list[str | None]:
    async with api.worker.read() as tx:
        it = await tx.integrations.by_name(TENANT, "crm")
        assert it is not None
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
    async with api.store.read() as tx:
        said = [it.action for it in await audit.page(tx, TENANT, limit=100)]
    assert AuditAction.SECRET_ROTATED in said
    assert AuditAction.SECRET_ROLLED_BACK in said


async def test_the_same_command_twice_rotates_once(api: Api, admin: str):
    headers = {"Idempotency-Key": "rotation-1"}
    for _ in range(2):
        answer = await rotate(api, admin, {"client_secret": "canary-two"}, headers=headers)
        assert answer.status_code == 200
    assert await secrets(api) == ["canary-two", "canary-one"]


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
    await api.call("PUT", "/v1/integrations/crm", admin, json=public)
    assert (await rotate(api, admin, {"client_secret": "two"})).json()["field"] == "client_secret"


async def test_an_unknown_integration_is_not_found(api: Api, admin: str):
    answer = await api.call("POST", "/v1/integrations/other/rotate-secret", admin, json={"roll_back": True})
    assert answer.status_code == 404


async def test_the_secret_that_is_first_already_changes_nothing(api: Api, admin: str):
    await rotate(api, admin, {"client_secret": "canary-two"})
    assert (await rotate(api, admin, {"client_secret": "canary-two"})).status_code == 200
    assert await secrets(api) == ["canary-two", "canary-one"]
