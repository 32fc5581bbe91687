"""What an admin works with in the filled tenant: webhooks that fail, own definitions, imports."""

from datetime import datetime, timedelta
from typing import Any

from evergrant_server.core.definition import CheckLevel, CheckResult, DefinitionState
from evergrant_server.core.webhooks import DeliveryProblem, DeliveryStatus
from tests.fakes.api import TENANT, Api

_GRANT = {"access_token": "at", "refresh_token": "rt", "expires": "unknown"}
_ACME: dict[str, Any] = {
    "name": "acme-crm",
    "display_name": "Acme CRM",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://crm.acme.example/authorize",
    "token_endpoint": "https://crm.acme.example/token",
    "default_scopes": ["read"],
}
_CHANGED = {
    "token_endpoint": "https://login.acme.example/oauth2/v2/token",
    "default_scopes": ["read", "write"],
}
_HOSTS = CheckResult(
    check="hosts",
    level=CheckLevel.WARNING,
    detail="client secrets and tokens would be sent to login.acme.example",
)


async def fill_work(api: Api, key: str, now: datetime) -> tuple[str, str]:
    """The ids of an import that is rehearsed, and of one that is ordered."""

    async def made(method: str, path: str, body: Any = None) -> Any:
        answer = await api.call(method, path, key, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    for name, url in (
        ("crm-events", "https://crm.acme.example/evergrant?token=x"),
        ("pager", "https://p.example/"),
    ):
        await made("PUT", f"/v1/webhooks/{name}", {"url": url})
    for _ in range(3):
        await made("POST", "/v1/webhooks/crm-events/test")
    await _webhook_fails(api, now)
    await made("POST", "/v1/providers", {"definition": _ACME})
    await _definition(api, 1, now, state=DefinitionState.ACTIVE, share=1.0)
    await made("POST", "/v1/providers", {"definition": _ACME | _CHANGED})
    await _definition(api, 2, now)
    jobs = []
    for subjects in (("nina@acme.example", "omar@acme.example"), ("pia@acme.example",)):
        items = [{"integration": "crm", "subject": subject, **_GRANT} for subject in subjects]
        lost = {"integration": "payroll", "subject": "quentin@acme.example", **_GRANT}
        jobs.append((await made("POST", "/v1/imports", {"items": [*items, lost]}))["id"])
    await made("POST", f"/v1/imports/{jobs[1]}/begin")
    return jobs[0], jobs[1]


async def _webhook_fails(api: Api, now: datetime) -> None:
    """What a worker writes of a receiver that answers 503, the first event given up."""
    async with api.worker.write() as tx:
        webhook = await tx.webhooks.by_name(TENANT, "crm-events")
        assert webhook is not None
        failing = webhook.failed(now - timedelta(hours=5), None, timedelta(days=5))
        await tx.webhooks.replace(failing, expected=webhook.revision)
        for number, delivery in enumerate(await tx.deliveries.page(TENANT, webhook.id)):
            failed = delivery.failed(503, DeliveryProblem.REFUSED, now)
            over = {"status": DeliveryStatus.FAILED, "next_at": None, "ended_at": now}
            after = failed.__replace__(**over) if number else delivery.delivered(204, now)
            await tx.deliveries.replace(after, expected=delivery.revision)


async def _definition(api: Api, number: int, now: datetime, **changes: Any) -> None:
    """What a worker writes after its checks."""
    async with api.worker.write() as tx:
        definition = await tx.definitions.version(TENANT, "acme-crm", number)
        assert definition is not None
        checked = definition.with_checks([_HOSTS] if number > 1 else [], now)
        await tx.definitions.replace(checked.__replace__(**changes), expected=definition.revision)
