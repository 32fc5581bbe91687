"""What the admin puts before the story begins: a definition, an integration, an app and its permit."""

from typing import Any

from examples.demo.authorization_server import AuthorizationServer
from examples.demo.claims import expect
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.waiting import wait_until

GRACE_S = 120


async def configure(admin: EvergrantApi, server: AuthorizationServer, suffix: str) -> str:
    """An integration, an app with a key and a permit. Returns the app's key."""
    integration, app, user = f"example-{suffix}", f"demo-{suffix}", f"{server.user}-{suffix}"
    await _define(admin, server, integration)
    body = {
        "provider": integration,
        "issuer": server.issuer,
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "default_scopes": ["read"],
        "binding": "none",  # the demo has no web app whose session would say who consents
        "refresh": {"rotation": "grace", "grace_s": GRACE_S},
    }
    made = await admin.put(f"/v1/integrations/{integration}", body)
    await server.register(made["redirect_uri"])

    async def discovered() -> dict[str, Any] | None:
        found = await admin.get(f"/v1/integrations/{integration}")
        expect(found["state"] != "failed", f"discovery failed: {found.get('problem')}")
        return found if found["state"] == "ready" else None

    await wait_until(discovered, "the issuer's metadata", 30)
    await admin.put(f"/v1/apps/{app}", {})
    key = await admin.post(f"/v1/apps/{app}/keys")
    permit = {"integration": integration, "subjects": [user], "actions": ["token", "connect"]}
    await admin.put(f"/v1/apps/{app}/permits/demo", {**permit, "scope_ceiling": ["read"]})
    return key["key"]


async def _define(admin: EvergrantApi, server: AuthorizationServer, name: str) -> None:
    """The catalogue's `generic`, and where the API is: the gateway sends tokens nowhere else."""
    definition = {
        "name": name,
        "display_name": "The demo's server",
        "auth_modes": ["authorization_code"],
        "discovery": True,
        "client_auth": "client_secret_basic",
        "api_base_url": server.api,
    }
    await admin.post("/v1/providers", {"definition": definition})
    for wanted in ("waiting", "active"):

        async def reached(wanted: str = wanted) -> bool | None:
            (found,) = (await admin.get(f"/v1/providers/{name}/versions"))["items"]
            expect(found["state"] != "unsound", f"the definition has problems: {found['findings']}")
            return found["state"] == wanted or None

        await wait_until(reached, f"a definition that is {wanted}", 60)
        if wanted == "waiting":
            await admin.post(f"/v1/providers/{name}/approve", {"version": 1, "accept_hosts": True})
