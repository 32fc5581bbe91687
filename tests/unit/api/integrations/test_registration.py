"""`PUT /v1/integrations/{i}` without a client id: registration by a worker, and the document about us."""

import pytest

from tests.fakes.api import Api
from tests.unit.api.integrations.test_integrations_and_apps import discovers, put, stored

ISSUER = "https://idp.example"
DYNAMIC = {"provider": "generic", "issuer": ISSUER, "registration": "dynamic"}
DOCUMENT = {**DYNAMIC, "registration": "metadata_document"}


async def test_a_client_id_comes_from_the_issuer(api: Api, admin: str):
    discovers(api, client_id="made-by-the-issuer")
    answer = await put(api, admin, {**DYNAMIC, "initial_access_token": "canary-iat"})
    assert answer.status_code == 201
    assert answer.json()["client_id"] == "made-by-the-issuer"
    assert answer.json()["registration"] == "dynamic"
    assert "canary" not in answer.text
    async with api.worker.read() as tx:
        initial = await tx.integrations.initial_access_token(await stored(api))
    assert initial is not None
    assert initial.reveal() == "canary-iat"


async def test_putting_it_again_keeps_the_registration_and_another_issuer_is_another(api: Api, admin: str):
    discovers(api, client_id="made-by-the-issuer")
    await put(api, admin, DYNAMIC)
    api.link.on_discover = None
    answer = await put(api, admin, {**DYNAMIC, "default_scopes": ["read"]})
    assert (answer.status_code, answer.json()["client_id"]) == (200, "made-by-the-issuer")
    discovers(api, client_id="made-by-the-second")
    answer = await put(api, admin, {**DYNAMIC, "issuer": "https://other.example"})
    assert answer.json()["client_id"] == "made-by-the-second"


async def test_a_document_about_us_is_at_our_client_id(api: Api, admin: str):
    discovers(api)
    client_id = (await put(api, admin, DOCUMENT)).json()["client_id"]
    assert client_id == f"{api.parts.settings.public_url}/oauth/client/{(await stored(api)).id}"
    shown = await api.get(client_id.removeprefix(api.parts.settings.public_url))
    assert shown.json()["client_id"] == client_id
    assert shown.json()["token_endpoint_auth_method"] == "none"
    assert shown.json()["redirect_uris"] == [api.parts.redirect_uri((await stored(api)).id)]
    assert shown.headers["cache-control"] == "public, max-age=3600"


async def test_no_other_integration_has_a_document(api: Api, admin: str):
    discovers(api, client_id="made-by-the-issuer")
    await put(api, admin, DYNAMIC)
    for what in ((await stored(api)).id, "int_0000000000000000000000", "nothing", "..%2Fkeys"):
        assert (await api.get(f"/oauth/client/{what}")).status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"client_id": "c"}, "client_id"),
        ({"registration": None}, "client_id"),
        ({"client_secret": "s"}, "client_secret"),
        ({"client_auth": "none"}, "client_auth"),
        ({"provider": "gitlab", "issuer": None}, "registration"),
        ({"registration": "metadata_document", "initial_access_token": "t"}, "initial_access_token"),
        ({"registration": None, "client_id": "c", "initial_access_token": "t"}, "initial_access_token"),
    ],
)
async def test_what_does_not_fit_a_registration_is_refused(api: Api, admin: str, changes: dict, field: str):
    answer = await put(api, admin, DYNAMIC | changes)
    assert (answer.status_code, answer.json()["field"]) == (400, field)
