"""Cursors: opaque, signed, and good for the list they came from."""

import base64

import pytest

from evergrant_server.core.access import Action
from tests.fakes.api import OTHER, Api


async def a_list(api: Api) -> tuple[str, str]:
    """A list of three connections and the cursor after its first."""
    integration = await api.integration()
    for subject in ("a", "b", "c"):
        await api.connection(integration, subject=subject)
    key = await api.app_with("ours", *Action)
    page = (await api.get("/v1/connections?limit=1", key)).json()
    return key, page["next_cursor"]


async def test_forged_cursors_and_those_of_another_tenant_or_app_are_refused(api: Api):
    key, cursor = await a_list(api)
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    edited = base64.urlsafe_b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode().rstrip("=")
    unsigned = base64.urlsafe_b64encode(b"\0" * 16 + b"con_0").decode().rstrip("=")
    for forged in (edited, unsigned, "x", "con_0000000000000000000000", "%00", "a" * 1999, ""):
        answer = await api.get(f"/v1/connections?cursor={forged}", key)
        assert (answer.status_code, answer.json()["field"]) == (400, "cursor"), forged
    for tenant in (OTHER, api.parts.settings.tenant):
        key = await api.app_with("another", *Action, tenant=tenant)  # type: ignore[arg-type]  # a tenant's name is text in settings
        assert (await api.get(f"/v1/connections?cursor={cursor}", key)).status_code == 400


@pytest.mark.parametrize("path", ["/v1/connections?subject=a", "/v1/apps", "/v1/audit", "/v1/integrations"])
async def test_a_cursor_of_another_list_or_filter_is_refused(api: Api, path: str):
    key, cursor = await a_list(api)
    separator = "&" if "?" in path else "?"
    answer = await api.get(f"{path}{separator}cursor={cursor}", key)
    assert (answer.status_code, answer.json()["field"]) == (400, "cursor")
