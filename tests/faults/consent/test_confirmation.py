"""What an app doesn't confirm is undone whatever dies meanwhile, and nothing of it is exchanged."""

import asyncio
import os
import signal
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest

from evergrant_server.api.connections.consents import signal_returned
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.confirmation import await_confirm
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import new_id
from examples.demo.forms import read_forms, read_refresh
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.installation import ASKED, Installation
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.faults.support.activities import Activities

BACK = "http://127.0.0.1:9/back"


async def returned(
    place: Installation, connection: Connection, seconds: float = 0, *, tell: bool = True
) -> Consent:
    """What the callback of a bound consent writes, with a code of the real server.

    In two steps here: a run that began from the store between them would exchange the code.
    """
    await place.until_started(connection)
    consent = await place.consent(connection, tell=False, binding=Binding.APP, app_id=new_id("app"))
    now = place.parts.clock.now()
    waiting, _ = await_confirm(consent, now)
    waiting = waiting.model_copy(update={"confirm_by": now + timedelta(seconds=seconds)})
    async with place.store.write() as tx:
        waiting = await tx.consents.replace(waiting, expected=consent.revision)
        if tell:
            await signal_returned(tx, connection, waiting, ASKED, now)
    place.parts.relay.notify()
    return waiting


async def assert_undone(place: Installation, connection: Connection, consent: Consent) -> None:
    """Its link works again, without the code, and the provider wasn't asked."""
    after = await eventually(
        lambda: place.consent_of(consent), lambda it: it.status is not ConsentStatus.CONFIRMING
    )
    assert after.status is ConsentStatus.OPEN
    async with place.store.read() as tx:
        with fails(ErrorCode.NOT_FOUND):
            await tx.consents.code(after)
    assert place.idp.count("token") == 0
    assert len(await place.audited(connection, AuditAction.CONSENT_UNCONFIRMED)) == 1
    assert (await place.row(connection)).state is LifecycleState.PENDING_CONSENT


async def test_what_is_not_confirmed_in_time_is_undone_and_the_next_consent_is_granted(place: Installation):
    connection = await place.begin()
    await assert_undone(place, connection, await returned(place, connection))
    assert (await place.granted(connection)).generation == 1


async def test_a_run_that_begins_from_the_store_knows_what_waits(place: Installation):
    """The workflow was lost, and the message with it."""
    connection = await place.begin()
    await place.until_started(connection)
    consent = await returned(place, connection, tell=False)
    await place.terminate(connection)
    await place.parts.reconciler.reconcile_all(compare=False)
    await assert_undone(place, connection, consent)


async def test_undone_twice_is_undone_once_and_never_before_its_time(place: Installation):
    """The first worker died after its commit."""
    connection, worker = await place.begin(), Activities(place)
    early = await returned(place, connection, 60, tell=False)
    assert (await worker.lapse(connection, early)).confirm_by == early.confirm_by
    assert (await place.consent_of(early)).status is ConsentStatus.CONFIRMING
    consent = await returned(place, connection, 0, tell=False)
    for _ in range(2):
        assert (await worker.lapse(connection, consent)).confirm_by is None
    await assert_undone(place, connection, consent)


async def test_a_message_alone_exchanges_nothing(place: Installation):
    """A signal says that the consent is granted; the store says that the app hasn't confirmed it."""
    connection = await place.begin()
    consent = await returned(place, connection, 60)
    result = await Activities(place).exchange(connection, consent)
    assert (result.failure, result.consent_over) == (ErrorCode.CALLBACK_INVALID, True)
    assert place.idp.count("token") == 0
    assert (await place.consent_of(consent)).status is ConsentStatus.CONFIRMING


async def test_a_connection_that_ends_leaves_no_code(place: Installation):
    connection = await place.begin()
    consent = await returned(place, connection, 60, tell=False)
    assert await Activities(place).end_consent(connection) is None
    assert (await place.consent_of(consent)).status is ConsentStatus.FAILED
    async with place.store.read() as tx:
        with fails(ErrorCode.NOT_FOUND):
            await tx.consents.code(consent)


# --- API and worker as processes ----------------------------------------------------------


class Browser:
    """The subject's, at a provider that consents by itself."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def consents(self, link: str) -> dict[str, str]:
        """From the link to the app's page; returns what it is told there."""
        (form,) = read_forms((await self._http.get(link)).text)
        leaving = await self._http.post(link, data=form.fields)
        where = read_refresh(leaving.text)
        assert where is not None, leaving.text
        for _ in range(2):
            where = (await self._http.get(where)).headers["location"]
        assert where.startswith(BACK), where
        return dict(parse_qsl(urlsplit(where).query))


async def kill(platform: RunningPlatform, *names: str) -> None:
    """With their own children: granian's would go on serving."""
    for name in names:
        with suppress(ProcessLookupError):
            os.killpg(platform.children[name].pid, signal.SIGKILL)
        await platform.children[name].wait()


async def start_both(platform: RunningPlatform) -> None:
    for log in platform.logs.iterdir():
        log.unlink()
    await platform.start("worker", "evergrant_server", "worker")
    await platform.start("api", "evergrant_server", "serve")
    await platform.until_ready()


@pytest.mark.soak
async def test_attack_5_confirmed_late_while_api_and_worker_were_killed(
    tmp_path: Path, temporal_address: str, tls: Any
):
    """Nothing is exchanged, the link works again; and a confirmation is carried out over a crash."""
    async with (
        ScriptedProvider(tls=tls) as idp,
        running_platform(
            tmp_path, temporal_address, allow=(idp.allowance,), env={"SSL_CERT_FILE": str(tls.authorities)}
        ) as platform,
        httpx2.AsyncClient(verify=tls.trust, trust_env=False, timeout=PATIENCE_S) as http,
    ):
        key, browser = await bound_app(platform, idp), Browser(http)
        idp.calls.clear()  # the check of its definition has asked, too
        async with platform.caller(key) as app:
            body = {"integration": "crm", "subject": "user-1", "return_to": BACK}
            begun = (await app.post("/v1/connections", json=body)).json()
            told = await browser.consents(begun["connect_url"])
            await kill(platform, "api", "worker")
            await asyncio.sleep(_CODE_LIVES_S)
            await start_both(platform)
            path = f"/v1/connections/{begun['id']}/confirm"
            late = await app.post(path, json={"code": told["evergrant_code"], "subject": "user-1"})
            assert (late.status_code, late.json()["code"]) == (409, "confirm_expired"), late.text
            assert idp.count("token") == 0

            assert "evergrant_code" in await browser.consents(begun["connect_url"])

            begun = (await app.post("/v1/connections", json={**body, "integration": "erp"})).json()
            told = await browser.consents(begun["connect_url"])
            path, confirm = (
                f"/v1/connections/{begun['id']}/confirm",
                {"code": told["evergrant_code"], "subject": "user-1"},
            )
            await kill(platform, "worker")
            confirming = asyncio.create_task(app.post(path, json=confirm))
            await eventually(lambda: consent_confirmed(platform), bool)
            confirming.cancel()
            await asyncio.gather(confirming, return_exceptions=True)
            await kill(platform, "api", "worker")
            await start_both(platform)
            # its answer is as a GET's: pending, until the message of the killed relay is claimed again
            await eventually(
                lambda: app.post(path, json=confirm),
                lambda it: (it.status_code, it.json().get("state")) == (200, "active"),
            )
            assert idp.count("token") == 1


_CODE_LIVES_S = 2


async def bound_app(platform: RunningPlatform, idp: ScriptedProvider) -> str:
    """An integration whose codes live for seconds, one whose don't, and an app with web sessions.

    Returns the app's key.
    """
    document = {
        "name": "acme-short",
        "display_name": "Acme",
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": idp.url("authorize"),
        "token_endpoint": idp.url("token"),
        "code_lifetime_s": _CODE_LIVES_S * 2,
    }
    async with platform.client() as admin:

        async def version(wanted: str) -> bool:
            (found,) = (await admin.get("/v1/providers/acme-short/versions")).json()["items"]
            assert found["state"] != "unsound", found["findings"]
            return found["state"] == wanted

        await admin.post("/v1/providers", json={"definition": document})
        await eventually(lambda: version("waiting"), bool)
        approved = {"version": 1, "accept_hosts": True}
        await admin.post("/v1/providers/acme-short/approve", json=approved)
        await eventually(lambda: version("active"), bool)
        body = {"provider": "acme-short", "client_id": idp.client_id, "client_secret": idp.client_secret}
        answer = await admin.put("/v1/integrations/crm", json={**body, "default_scopes": ["read"]})
        assert answer.status_code == 201, answer.text
        await platform.integration("erp", idp, binding="app")
        key = await platform.app("web", "*", "connect", "token")
        await admin.put("/v1/apps/web", json={"return_to": [BACK]})
    return key


async def consent_confirmed(platform: RunningPlatform) -> bool:
    async with platform.client() as admin:
        found = (await admin.get("/v1/audit?limit=100")).json()["items"]
    return any(it["action"] == AuditAction.CONSENT_CONFIRMED for it in found)
