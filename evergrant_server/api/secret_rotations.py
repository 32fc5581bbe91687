"""`/v1/keys/secrets`: secrets that others hold too, of which two are accepted while one replaces the other.

API keys of apps, client secrets of integrations, signing secrets of webhooks. A new one is made where it
belongs (`apps/…/keys`, `integrations/…/rotate-secret`, `webhooks/…/rotate-secret`); time ends the
older one. Here an admin sees which older ones are still accepted, and retires one that nothing uses.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.http.call import AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import Body, Page, Slug, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyId
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction

router = APIRouter(tags=["keys"])

_IDLE = timedelta(hours=1)  # an older API key that was used within it is in use
_PAGE = 100


class SecretKind(StrEnum):
    APP_KEY = "app_key"  # an app's older API key
    CLIENT_SECRET = "client_secret"  # an integration's, at its provider
    WEBHOOK_SECRET = "webhook_secret"  # with which a webhook's receiver verifies


class OlderSecretView(View):
    """A secret that was replaced and is still accepted, of the app, integration or webhook `name`.

    `in_use`: retiring it is refused. An API key is in use for an hour after its last use, and until the newer
    one is used; a client secret while the provider refuses the newer one. What a webhook's receiver verifies
    with isn't known here: `in_use` is false.
    """

    kind: SecretKind
    name: str
    key_id: str | None = None
    accepted_until: datetime | None
    last_used_at: datetime | None = None
    in_use: bool


class RetireSecretBody(Body):
    """Which one: of the app, integration or webhook `name`."""

    kind: SecretKind
    name: Slug


@router.get("/v1/keys/secrets")
async def list_older_secrets(call: AuditorCall) -> Page[OlderSecretView]:
    """Every secret that was replaced and is still accepted."""
    async with call.api.store.read() as tx:
        return Page(items=await _older_secrets(tx, call))


@router.post("/v1/keys/secrets/retire", response_model=OlderSecretView)
async def retire_secret(body: RetireSecretBody, call: AdminCommand) -> Response:
    """Retire an older secret before its time ends. Only the newer one is accepted from then on.

    Refused while the older one is in use.
    """

    async def retire(tx: Transaction) -> CommandResponse:
        named = (body.kind, body.name)
        older = [one for one in await _older_secrets(tx, call) if (one.kind, one.name) == named]
        if not older:
            raise Failure(ErrorCode.NOT_FOUND)
        if older[0].in_use:
            raise invalid_request("name", _why_in_use(older[0]))
        object_id = await _RETIRE[body.kind](tx, call, older[0])
        if body.kind is SecretKind.APP_KEY:
            await call.record(tx, AuditAction.KEY_REVOKED, object_id, app=body.name)
        else:
            await call.record(tx, AuditAction.SECRET_RETIRED, object_id, kind=body.kind, name=body.name)
        return CommandResponse.of(older[0].__replace__(accepted_until=call.now))

    return await call.run(body, retire)


async def _older_secrets(tx: Transaction, call: ApiCall) -> list[OlderSecretView]:
    return [
        *await _app_keys(tx, call),
        *await _client_secrets(tx, call),
        *await _webhook_secrets(tx, call),
    ]


async def _app_keys(tx: Transaction, call: ApiCall) -> list[OlderSecretView]:
    """Of apps with two live keys, the older one."""
    shown: list[OlderSecretView] = []
    for app in await tx.access.apps_with_two_keys(call.tenant, call.now):
        live = await tx.access.live_keys(call.tenant, app.id, call.now)
        uses = await tx.access.last_uses(call.tenant, app.id)
        older, newest, used_at = live[0], live[-1], uses.get(live[0].id)
        in_use = used_at is not None and (newest.id not in uses or call.now - used_at < _IDLE)
        shown.append(
            OlderSecretView(
                kind=SecretKind.APP_KEY,
                name=app.name,
                key_id=older.id,
                accepted_until=older.expires_at,
                last_used_at=used_at,
                in_use=in_use,
            )
        )
    return shown


async def _client_secrets(tx: Transaction, call: ApiCall) -> list[OlderSecretView]:
    return [
        OlderSecretView(
            kind=SecretKind.CLIENT_SECRET,
            name=integration.name,
            accepted_until=integration.previous_secret_until,
            in_use=integration.secret_refused_at is not None,
        )
        for integration in await tx.integrations.with_previous_secrets(call.tenant, _PAGE)
        if integration.previous_secret_is_usable(call.now)
    ]


async def _webhook_secrets(tx: Transaction, call: ApiCall) -> list[OlderSecretView]:
    return [
        OlderSecretView(
            kind=SecretKind.WEBHOOK_SECRET,
            name=webhook.name,
            accepted_until=webhook.previous_secret_until,
            in_use=False,
        )
        for webhook in await tx.webhooks.page(call.tenant, limit=_PAGE)
        if webhook.previous_secret_until is not None and webhook.previous_secret_until > call.now
    ]


async def _retire_app_key(tx: Transaction, call: ApiCall, older: OlderSecretView) -> str:
    assert older.key_id is not None
    return (await tx.access.revoke_key(call.tenant, KeyId(older.key_id), call.now)).id


async def _retire_client_secret(tx: Transaction, call: ApiCall, older: OlderSecretView) -> str:
    integration = await tx.integrations.by_name(call.tenant, older.name)
    assert integration is not None
    changed = integration.__replace__(changed_at=call.now)
    return (await tx.integrations.forget_previous_secret(changed, expected=integration.revision)).id


async def _retire_webhook_secret(tx: Transaction, call: ApiCall, older: OlderSecretView) -> str:
    webhook = await tx.webhooks.by_name(call.tenant, older.name)
    assert webhook is not None
    changed = webhook.__replace__(previous_secret_until=None, changed_at=call.now)
    return (await tx.webhooks.forget_previous_secret(changed, expected=webhook.revision)).id


_RETIRE = {
    SecretKind.APP_KEY: _retire_app_key,
    SecretKind.CLIENT_SECRET: _retire_client_secret,
    SecretKind.WEBHOOK_SECRET: _retire_webhook_secret,
}


def _why_in_use(older: OlderSecretView) -> str:
    if older.kind is SecretKind.CLIENT_SECRET:
        return "The provider refuses the newer secret: roll back, or register the newer one there."
    return (
        f"The key {older.key_id} is in use, last at {older.last_used_at:%Y-%m-%d %H:%M} UTC: give the app "
        "its newer key and wait for an hour, or revoke this one by its id."
    )
