"""Where an integration's subjects log in is checked when it is put."""

from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.integrations import Endpoints
from tests.fakes.api import Api

ISSUER = "https://login.corp.example"
ENDPOINTS = Endpoints(
    issuer=ISSUER,
    authorization_endpoint=f"{ISSUER}/authorize",
    token_endpoint=f"{ISSUER}/token",
    jwks_uri=f"{ISSUER}/keys",
)


@pytest.mark.parametrize(
    ("login", "field", "why"),
    [
        (None, "login", "needs it"),
        ({"integration": "nowhere"}, "login.integration", "there is no integration of this name"),
        ({"integration": "crm"}, "login.integration", "it has no issuer"),
        ({"integration": "young"}, "login.integration", "names no jwks_uri"),
        ({"integration": "pushing"}, "login.integration", "RFC 9126"),
        ({"integration": "staff", "claim": "email"}, "login.domains", "needs domains"),
        ({"integration": "staff", "domains": ["corp.example"]}, "login.domains", "no other claim"),
        (
            {"integration": "staff", "claim": "email", "domains": ["*.example"]},
            "login.domains",
            "is no domain",
        ),
    ],
)
async def test_a_login_is_checked_when_it_is_put(
    api: Api, login: dict[str, Any] | None, field: str, why: str
):
    admin = await api.app_with("admin", Action.ADMIN)
    await api.integration()
    for name, lacking in (
        ("staff", {}),
        ("young", {"jwks_uri": None}),
        ("pushing", {"pushed_requests_required": True}),
    ):
        endpoints = ENDPOINTS.model_copy(update=lacking)
        await api.integration(name, provider="generic", issuer=ISSUER, endpoints=endpoints)
    body = {"provider": "gitlab", "client_id": "c", "client_secret": "s", "binding": "oidc", "login": login}

    async def put(**changes: Any) -> httpx2.Response:
        return await api.call("PUT", "/v1/integrations/bound", admin, json={**body, **changes})

    refused = await put()
    assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
    assert why in refused.json()["detail"]
    good = {"integration": "staff", "claim": "email", "domains": ["Corp.Example"]}
    kept = await put(login=good)
    assert kept.json()["login"] == {**good, "domains": ["corp.example"], "issuer": ISSUER}
    records = await api.records(AuditAction.INTEGRATION_PUT)
    assert [it.detail["login_issuer"] for it in records] == [ISSUER], "what it is pinned to"
    assert (await put(login=good, binding="app")).json()["field"] == "login"
    assert (await put(login=None, binding="app")).json()["login"] is None
