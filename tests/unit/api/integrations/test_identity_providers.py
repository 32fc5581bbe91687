"""An integration whose subjects' identity provider grants access (ID-JAG), and its connections."""

from datetime import UTC, datetime
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.integrations import Endpoints
from tests.fakes.api import TENANT, Api
from tests.fakes.providers.enterprise import EnterpriseIdp, EnterpriseMcp
from tests.fakes.providers.mcp_worker import McpWorker

ROUTE = "/v1/integrations/tools"
CLIENT = {"client_id": "by-hand", "client_secret": "hush-hush"}
BODY = {"provider": "generic", "issuer": "https://tools.example", **CLIENT, "identity_provider": "staff"}
ASKED = {"integration": "tools", "subject": "user-1"}


async def tools(api: Api, **more: Any) -> None:
    """Both integrations, as workers leave them."""
    await api.integration(name="staff", provider="generic", issuer="https://login.example")
    known = Endpoints(issuer="https://tools.example", token_endpoint="https://tools.example/token")
    there = {"name": "tools", "provider": "generic", "issuer": known.issuer, "endpoints": known}
    await api.integration(**{**there, "identity_provider": "staff", **more})


async def test_who_names_an_identity_provider_administers_it_as_well(api: Api):
    await api.integration(name="staff", provider="generic", issuer="https://login.example")
    narrow = await api.app_with("narrow", Action.ADMIN, integration="tools")
    refused = await api.call("PUT", ROUTE, narrow, json=BODY)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    wide = await api.app_with("wide", Action.ADMIN)
    made = await api.call("PUT", ROUTE, wide, json=BODY)
    assert made.status_code in (201, 424, 503), "the worker of this test reads no metadata"
    assert (await api.get(ROUTE, wide)).json()["identity_provider"] == "staff"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"identity_provider": "tools"}, "identity_provider"),
        ({"identity_provider": "unknown"}, "identity_provider"),
        ({"provider": "github", "issuer": None}, "identity_provider"),
        ({"client_id": None, "client_secret": None, "registration": "dynamic"}, "client_id"),
        ({"client_secret": None, "client_auth": "none"}, "client_id"),
    ],
)
async def test_bad_input_is_refused(api: Api, changes: dict[str, Any], field: str):
    await api.integration(name="staff", provider="generic", issuer="https://login.example")
    admin = await api.app_with("admin", Action.ADMIN)
    refused = await api.call("PUT", ROUTE, admin, json=BODY | changes)
    assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text


async def test_a_connection_needs_an_identity_and_no_consent(api: Api):
    await tools(api)
    app = await api.app_with("agent", Action.CONNECT)
    needed = await api.post("/v1/connections", app, ASKED)
    assert (needed.status_code, needed.json()["code"]) == (403, "identity_needed")
    assert needed.json()["identity_provider"] == "staff"
    async with api.worker.read() as tx:
        staff = await tx.integrations.by_name(TENANT, "staff")
    assert staff is not None
    await api.active(staff)
    for more, field in (({"flow": "authorization_code"}, "flow"), ({"audience": "another"}, "audience")):
        refused = await api.post("/v1/connections", app, ASKED | more)
        assert (refused.status_code, refused.json()["field"]) == (400, field)
    made = await api.post("/v1/connections", app, ASKED)
    assert (made.status_code, made.json()["flow"], made.json()["connect_url"]) == (201, "id_jag", None)


async def test_no_app_chooses_the_flow(api: Api):
    await tools(api, identity_provider=None)
    app = await api.app_with("agent", Action.CONNECT)
    refused = await api.post("/v1/connections", app, {**ASKED, "flow": "id_jag"})
    assert (refused.status_code, refused.json()["field"]) == (400, "flow")


@pytest.mark.parametrize("listed", [True, False])
async def test_id_jag_7_2_an_issuer_that_lists_other_profiles_is_a_problem(api: Api, listed: bool):
    idp = EnterpriseIdp(lambda: datetime.now(UTC))
    other = {} if listed else {"authorization_grant_profiles_supported": ["urn:other"]}
    async with EnterpriseMcp(idp, **other) as server:
        worker = McpWorker(api, server)
        put = await worker.put(**{"client_id": "by-hand", "identity_provider": "staff"})
        await worker.discovered(put)
        after = await worker.now(put)
    assert after.state == ("ready" if listed else "failed")
    assert listed or "takes no grants of identity providers" in (after.problem or "")
