"""The check of a proposed definition names every new host of secrets."""

from typing import Any

import pytest

from evergrant_server.core.definition import CheckLevel, CheckResult
from evergrant_server.egress import Egress, EgressPolicy
from providers.definition.parsing import parse_definition
from providers.tools.definition_check import check_definition

BEFORE: dict[str, Any] = {
    "name": "acme-crm",
    "display_name": "Acme CRM",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://127.0.0.1/authorize",  # refused: nothing is sent anywhere
    "token_endpoint": "https://{region}/token",
    "refresh_endpoint": "https://127.0.0.1/refresh",
    "template_params": {
        "region": {"enum": ["127.0.0.2", "127.0.0.3"], "default": "127.0.0.2"},
    },
    "revocation_endpoint": "https://127.0.0.1/revoke",
    "pkce": "S256",
}


async def hosts(**changed: Any) -> CheckResult:
    before, after = parse_definition(BEFORE, "before"), parse_definition(BEFORE | changed, "after")
    findings = await check_definition(Egress(EgressPolicy()), after, before)
    (found,) = [it for it in findings if it.check == "hosts"]
    return found


@pytest.mark.parametrize(
    ("host", "changed"),
    [
        ("127.0.0.9", {"revocation": {"url": "https://127.0.0.9/revoke"}}),
        ("127.0.0.9", {"device_authorization_endpoint": "https://127.0.0.9/device"}),
        ("127.0.0.9", {"api_base_url": "https://127.0.0.9/v1"}),
        ("127.0.0.3", {"template_params": {"region": {"enum": ["127.0.0.3"], "default": "127.0.0.3"}}}),
    ],
)
async def test_new_host_of_secrets_named(host: str, changed: dict[str, Any]):
    found = await hosts(**changed)
    assert found.level is CheckLevel.WARNING
    assert host in found.detail


async def test_same_hosts_give_no_warning():
    assert (await hosts(display_name="Acme")).level is CheckLevel.OK
