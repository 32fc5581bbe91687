"""A crash between the subject's login and the provider leaves nothing half-bound."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from examples.demo.forms import read_forms, read_refresh
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.installation import Installation
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.faults.consent.test_confirmation import kill, start_both
from tests.faults.support.activities import Activities


async def test_a_message_exchanges_no_code_of_a_login(place: Installation):
    """A signal says that the consent is granted; the store says that its subject hasn't logged in."""
    connection = await place.begin()
    consent = await place.consent(connection, tell=False, binding=Binding.OIDC)
    waiting = consent.model_copy(update={"status": ConsentStatus.STARTED, "state_hash": None})
    async with place.store.write() as tx:
        consent = await tx.consents.replace(waiting, expected=consent.revision)
    result = await Activities(place).exchange(connection, consent)
    assert (result.failure, result.consent_over) == (ErrorCode.CALLBACK_INVALID, True)
    assert place.idp.count("token") == 0


@pytest.mark.soak
async def test_api_and_worker_killed_between_login_and_provider(
    tmp_path: Path, temporal_address: str, tls: Any
):
    """The browser goes on by the same link, and another one doesn't; the provider is asked once."""
    async with (
        LoginIssuer(SystemClock().now, tls=tls) as issuer,
        ScriptedProvider(tls=tls) as idp,
        running_platform(
            tmp_path,
            temporal_address,
            allow=(issuer.allowance, idp.allowance),
            env={"SSL_CERT_FILE": str(tls.authorities)},
        ) as platform,
        httpx2.AsyncClient(verify=tls.trust, trust_env=False, timeout=PATIENCE_S) as subject,
        httpx2.AsyncClient(verify=tls.trust, trust_env=False, timeout=PATIENCE_S) as victim,
    ):
        key = await bound_app(platform, issuer, idp)
        async with platform.caller(key) as app:
            body = {"integration": "crm", "subject": "user-1"}
            begun = (await app.post("/v1/connections", json=body)).json()
            back = await sent_back(subject, await pressed(subject, begun["connect_url"]))
            async with issuer.in_flight(answered(subject, back)):
                await kill(platform, "worker", "api")
            await start_both(platform)
            assert await pressed(victim, begun["connect_url"]) is None
            where = await pressed(subject, begun["connect_url"])
            if where is not None and where.startswith(issuer.issuer):
                where = read_refresh((await subject.get(await sent_back(subject, where))).text)
            assert where is not None
            assert where.startswith(idp.issuer), where
            await subject.get(await sent_back(subject, where))
            await eventually(
                lambda: app.get(f"/v1/connections/{begun['id']}"), lambda it: it.json()["state"] == "active"
            )
        assert idp.count("token") == 1
        async with platform.client() as admin:
            found = (await admin.get("/v1/audit?limit=100")).json()["items"]
        assert [it["action"] for it in found].count(AuditAction.CONSENT_CONFIRMED) == 1


async def bound_app(platform: RunningPlatform, issuer: LoginIssuer, idp: ScriptedProvider) -> str:
    """An integration whose subjects log in first, and an app without web sessions; returns its key."""
    async with platform.client() as admin:
        for name, server, more in (
            ("staff", issuer, {}),
            ("crm", idp, {"binding": "oidc", "login": {"integration": "staff"}}),
        ):
            client = {"client_id": server.client_id, "client_secret": server.client_secret}
            body = {
                "provider": "generic",
                "issuer": server.issuer,
                "default_scopes": ["read"],
                **client,
                **more,
            }
            answer = await admin.put(f"/v1/integrations/{name}", json=body)
            assert (answer.status_code, answer.json()["state"]) == (201, "ready"), answer.text
    return await platform.app("jobs", "crm", "connect", "token")


async def pressed(browser: httpx2.AsyncClient, link: str) -> str | None:
    """Where the connect page's button leads; None when the page is refused."""
    page = await browser.get(link)
    forms = read_forms(page.text)
    if page.status_code != 200 or not forms:
        return None
    return read_refresh((await browser.post(link, data=forms[0].fields)).text)


async def sent_back(browser: httpx2.AsyncClient, where: str | None) -> str:
    """The callback to which a server that needs no click sends the browser."""
    assert where is not None
    return (await browser.get(where)).headers["location"]


async def answered(browser: httpx2.AsyncClient, url: str) -> None:
    """Or not: the API is killed meanwhile."""
    await asyncio.gather(browser.get(url), return_exceptions=True)
