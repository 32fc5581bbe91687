"""A tenant with a receiver whose transmitter's keys are pinned, and a connection that it knows."""

import json
from typing import Any

import httpx2

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from providers.events.keys import parse_jwks
from tests.fakes.api import Api
from tests.fakes.events.transmitter import ISSUER, MEDIA_TYPE, Transmitter, id_token

TRANSMITTER = Transmitter()
PUT = {"kind": "set", "issuer": ISSUER, "jwks_uri": "https://transmitter.example/keys"}
REFRESH = "1//0gdVnCNb3JLs3CgYIARAAGBASNwF-L9IrJ7Qk"


async def granted(api: Api, integration: Integration, sub: str = "account-1", **names: Any) -> Connection:
    """A connection whose id token names this account."""
    connection = await api.connection(integration, **names)
    now = api.clock.now()
    tokens = TokenSet(
        access_token=Secret("at-1"),
        refresh_token=Secret(REFRESH),
        id_token=Secret(id_token(sub, email=f"{sub}@example.com", email_verified=True)),
        expires_in=3600,
    )
    after = connection.granted(now)
    grant = Grant.from_tokens(tokens, generation=1, requested=("read_user",), at=now)
    async with api.worker.write() as tx:
        return await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=connection.revision)


async def receiver(api: Api, key: str, name: str = "crm", **changes: Any) -> str:
    """Its path, with the transmitter's keys pinned as a worker would."""
    answer = await api.call("PUT", f"/v1/integrations/{name}/security-events", key, json=PUT | changes)
    assert answer.status_code in (200, 201), answer.text
    path = answer.json()["url"].removeprefix(api.parts.settings.public_url)
    async with api.worker.write() as tx:
        found = await tx.receivers.find_in_any_tenant(answer.json()["id"])
        assert found is not None
        pinned = {"keys": parse_jwks(json.dumps(TRANSMITTER.jwks).encode()), "keys_at": api.clock.now()}
        await tx.receivers.replace(found.model_copy(update=pinned), expected=found.revision)
    return path


async def world(api: Api, **changes: Any) -> tuple[Connection, str, str]:
    key = await api.app_with("admin", Action.ADMIN, Action.TOKEN, Action.CONNECT)
    integration = await api.integration()
    connection = await granted(api, integration)
    path = await receiver(api, key, **changes)
    api.clock.advance(3000)
    return connection, path, key


def unix(api: Api) -> float:
    return int(api.clock.now().timestamp())


async def push(api: Api, path: str, token: bytes, media_type: str = MEDIA_TYPE) -> httpx2.Response:
    return await api.client.post(path, content=token, headers={"Content-Type": media_type})


async def state(api: Api, connection: Connection) -> LifecycleState:
    return (await api.row(connection.tenant, connection.id)).state


HEARD = (AuditAction.SECURITY_EVENT, AuditAction.REVOKED_AT_PROVIDER, AuditAction.PROVIDER_REPORT_RECEIVED)
