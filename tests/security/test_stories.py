"""The codec server opens stories for those who may read them, in the Temporal UI's page and nowhere else."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from temporalio.api.common.v1 import Payload
from temporalio.converter import WorkflowSerializationContext

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.temporal_link.stories import ENCODING, StoryCodec, StoryKeys
from tests.fakes.api import OTHER, PUBLIC_URL, TENANT, Api, running_api
from tests.security.console import at_console, person_at_console
from tests.security.people import put_session

UI = "https://temporal.evergrant.test"
PATH = "/temporal/decode"
SAID = {"reason": "alice has left"}
Json = dict[str, Any]


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path, temporal_ui_url=f"{UI}/") as running:
        yield running


@pytest.fixture
async def connection(api: Api) -> Connection:
    return await api.active(await api.integration())


def base64_of(value: bytes) -> str:
    return base64.b64encode(value).decode()


async def sealed(api: Api, connection: Connection) -> Json:
    """What the connection's workflow wrote, as Temporal's JSON has it."""
    workflow = connection_workflow_id(connection.tenant, connection.id)
    plain = Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(SAID).encode())
    context = WorkflowSerializationContext(api.parts.settings.temporal_namespace, workflow)
    (payload,) = await api.link.codec.with_context(context).encode([plain])
    assert payload.metadata["encoding"] == ENCODING
    metadata = {name: base64_of(value) for name, value in payload.metadata.items()}
    return {"metadata": metadata, "data": base64_of(payload.data)}


def read(answer: httpx2.Response) -> list[Any]:
    """What the payloads of an answer say."""
    assert answer.status_code == 200, answer.text
    return [json.loads(base64.b64decode(payload["data"])) for payload in answer.json()["payloads"]]


async def from_the_ui(browser: httpx2.AsyncClient, *payloads: Json, origin: str = UI) -> httpx2.Response:
    """As the page of the Temporal UI sends it, with the cookies of this browser."""
    headers = {"Origin": origin, "X-Namespace": "default"}
    return await browser.post(
        f"{PATH}?preserveStorageRefs=true", json={"payloads": list(payloads)}, headers=headers
    )


@pytest.mark.parametrize("role", list(PersonRole))
async def test_a_person_who_is_logged_in_reads_the_story_in_the_temporal_ui(
    api: Api, connection: Connection, role: PersonRole
):
    person = await person_at_console(api, role)
    answer = await from_the_ui(person.browser, await sealed(api, connection))
    assert read(answer) == [SAID]
    assert answer.headers["access-control-allow-origin"] == UI
    assert answer.headers["access-control-allow-credentials"] == "true"


async def test_a_key_that_was_pasted_into_the_console_reads_what_its_app_may(
    api: Api, connection: Connection
):
    browser = await at_console(api, await api.app_with("operator", Action.STORIES))
    assert read(await from_the_ui(browser.browser, await sealed(api, connection))) == [SAID]
    browser = await at_console(api, await api.app_with("pipeline", Action.TOKEN, Action.CONNECT))
    answer = await from_the_ui(browser.browser, await sealed(api, connection))
    assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")


async def test_without_a_session_nobody_reads(api: Api, connection: Connection):
    answer = await from_the_ui(api.browser(), await sealed(api, connection))
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["access-control-allow-origin"] == UI, "the UI can say why"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", UI.replace("https", "http"), f"{UI}:8443"]
)
@pytest.mark.parametrize("by", ["person", "key"])
async def test_another_sites_page_reads_nothing_with_the_sessions_of_its_visitor(
    api: Api, connection: Connection, origin: str, by: str
):
    admin = PersonRole.TENANT_ADMIN
    key = await api.app_with("operator", Action.STORIES)
    visitor = await (person_at_console(api, admin) if by == "person" else at_console(api, key))
    answer = await from_the_ui(visitor.browser, await sealed(api, connection), origin=origin)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site_request")
    assert "access-control-allow-origin" not in answer.headers
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert (await visitor.browser.request("OPTIONS", PATH, headers=asked)).status_code == 400


async def test_the_uis_page_may_ask_for_nothing_else(api: Api, connection: Connection):
    headers = {"Origin": UI, "Access-Control-Request-Method": "POST"}
    asked = headers | {"Access-Control-Request-Headers": "content-type,x-namespace"}
    answer = await api.client.request("OPTIONS", PATH, headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, UI)
    asked = headers | {"Access-Control-Request-Headers": "x-evil"}
    assert (await api.client.request("OPTIONS", PATH, headers=asked)).status_code == 400
    person = await person_at_console(api, PersonRole.TENANT_ADMIN)
    path = f"/v1/connections/{connection.id}"
    answer = await person.browser.get(path, headers={"Origin": UI})
    assert "access-control-allow-origin" not in answer.headers
    answer = await person.browser.post(f"{path}/revoke", json={"reason": "a"}, headers={"Origin": UI})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site_request")


async def test_without_the_uis_url_no_other_origin_reads(tmp_path: Path):
    async with running_api(tmp_path) as api:
        payload = await sealed(api, await api.active(await api.integration()))
        person = await person_at_console(api, PersonRole.TENANT_ADMIN)
        answer = await from_the_ui(person.browser, payload)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_site_request")
        assert read(await from_the_ui(person.browser, payload, origin=PUBLIC_URL)) == [SAID]
        _, bearer = await put_session(api, TENANT, PersonRole.STORY_READER)
        assert read(await api.post(PATH, bearer, {"payloads": [payload]})) == [SAID]


async def test_a_permit_reads_the_stories_of_its_subjects_and_integrations_alone(api: Api):
    integration = await api.integration()
    alices = await api.active(integration, subject="alice")
    bobs = await api.active(integration, "at-2", subject="bob")
    key = await api.app_with("operator", Action.STORIES, subjects=("alice",))
    both = {"payloads": [await sealed(api, alices), await sealed(api, bobs)]}
    opened, hidden = read(await api.post(PATH, key, both))
    assert opened == SAID
    assert "you may not read its story" in hidden
    answer = await api.post(PATH, key, {"payloads": both["payloads"][1:]})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_another_tenants_story_is_nobodys(api: Api):
    foreign = await api.active(await api.integration(tenant=OTHER))
    key = await api.app_with("operator", *Action)
    payload = await sealed(api, foreign)
    answer = await api.post(PATH, key, {"payloads": [payload]})
    mine = await api.active(await api.integration())
    assert read(await api.post(PATH, key, {"payloads": [payload, await sealed(api, mine)]}))[1] == SAID
    assert "alice" not in answer.text
    renamed = connection_workflow_id(Tenant(TENANT), foreign.id)  # as if it were the caller's own
    claimed = {**payload["metadata"], "evergrant-workflow": base64_of(renamed.encode())}
    answer = await api.post(PATH, key, {"payloads": [{**payload, "metadata": claimed}]})
    assert "alice" not in answer.text


async def test_an_erased_story_says_so(api: Api, connection: Connection):
    payload = await sealed(api, connection)
    async with api.worker.write() as tx:
        await tx.sealer.destroy_keys(connection.tenant, connection.id)
    api.link.codec = StoryCodec(StoryKeys(api.store), "default")  # a minute later
    key = await api.app_with("operator", Action.STORIES)
    (told,) = read(await api.post(PATH, key, {"payloads": [payload]}))
    assert "the connection was erased" in told


async def test_what_isnt_sealed_is_handed_back_as_it_is(api: Api):
    key = await api.app_with("operator", Action.STORIES)
    plain = {"metadata": {"encoding": base64_of(b"json/plain")}, "data": base64_of(b"1")}
    answer = await api.post(PATH, key, {"payloads": [plain, {}]})
    assert (answer.status_code, answer.json()["payloads"]) == (200, [plain, {}])


@pytest.mark.parametrize(
    "body",
    [{}, {"payloads": [1]}, {"payloads": [{"metadata": 1}]}, {"payloads": [{"data": 1}]}, {"a": []}, []],
)
async def test_nonsense_is_refused_by_name(api: Api, body: Any):
    key = await api.app_with("operator", Action.STORIES)
    answer = await api.post(PATH, key, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
