"""A worker registers us at an issuer once, whichever host began; and reads its metadata again, unweakened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.integrations.discovery import DiscoveryActivities
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import new_id
from evergrant_server.core.integrations import NO_CLIENT, Integration, IntegrationState, RegistrationMethod
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.core.messages.maintenance import RereadMetadata, RereadMetadataResult
from evergrant_server.core.provider_words import REDACTED
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation, installation
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.providers.scripted_provider import (
    ScriptedProvider,
    drop,
    drop_after_commit,
    echo,
    error,
    status,
)
from tests.fakes.rows import an_integration
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT


@pytest.fixture(autouse=True)
def registers(idp: ScriptedProvider) -> None:
    """Its metadata names where."""
    idp.metadata["registration_endpoint"] = idp.url("register")


async def wanted(
    place: Installation,
    how: RegistrationMethod = RegistrationMethod.DYNAMIC,
    initial: str | None = None,
    issuer: str = "",
) -> Integration:
    """What `PUT /v1/integrations/crm` with a registration writes."""
    said = {"client_id": "", "issuer": issuer or place.idp.issuer, "registration": how}
    now, state = place.parts.clock.now(), IntegrationState.DISCOVERING
    integration = an_integration(TENANT, now, **said, state=state)
    async with place.store.write() as tx:
        added = await tx.integrations.put(integration, None, expected=None)
        return await tx.integrations.request_registration(added, Secret(initial) if initial else None)


async def discovered(place: Installation, integration: Integration) -> DiscoveryResult:
    request = DiscoverEndpoints(tenant=TENANT, integration_id=integration.id, context=ASKED)
    return await place.parts.link.run_job(jobs.DISCOVER_ENDPOINTS, request, timeout=PATIENCE_S)


async def test_rfc7591_a_registered_client_connects(place: Installation):
    integration = await wanted(place)
    assert (await discovered(place, integration)).failure is None
    ready = await place.integration_now(integration.id)
    assert (ready.state, ready.client_id, ready.client_auth) == (
        IntegrationState.READY,
        place.idp.client_id,
        "client_secret_post",
    )
    assert place.idp.redirect_uris[0].endswith(f"/oauth/callback/{integration.id}")
    connection = await place.begin(ready)
    await place.consent(connection)
    await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert await place.actions_on(integration.id) == [
        AuditAction.CLIENT_REGISTERED,
        AuditAction.INTEGRATION_DISCOVERED,
    ]


async def test_a_checked_issuer_waits_for_its_client(place: Installation):
    """What it publishes is there for whoever registers one by hand; no consent begins before."""
    said = {"client_id": "", "issuer": place.idp.issuer, "state": IntegrationState.DISCOVERING}
    async with place.store.write() as tx:
        row = an_integration(TENANT, place.parts.clock.now(), **said)
        integration = await tx.integrations.put(row, None, expected=None)
    assert (await discovered(place, integration)).failure is None
    now = await place.integration_now(integration.id)
    assert (now.state, now.problem) == (IntegrationState.FAILED, NO_CLIENT)
    assert now.endpoints is not None
    assert place.idp.count("register") == 0


async def test_rfc7591_3_an_initial_access_token_is_sent_once_whatever_comes_of_it(place: Installation):
    place.idp.script(drop_after_commit(), at="register")
    integration = await wanted(place, initial="iat-1")
    await discovered(place, integration)
    lost = await discovered(place, integration)
    assert lost.failure is ErrorCode.CLIENT_REJECTED
    assert "initial access token" in lost.detail
    assert place.idp.count("register") == 1
    (sent,) = (call for call in place.idp.calls if call.endpoint == "register")
    assert sent.headers["authorization"] == "Bearer iat-1"
    assert (await place.integration_now(integration.id)).state is IntegrationState.FAILED


async def test_the_admin_reads_what_the_server_said_about_a_refused_registration(place: Installation):
    place.idp.script(echo("invalid_software_statement"), at="register")
    integration = await wanted(place, initial="iat-1")
    await discovered(place, integration)
    (record,) = await place.records(AuditAction.INTEGRATION_DISCOVERED)
    said = record.detail["provider_said"]
    assert (said["error"], said["description"]) == (
        "invalid_software_statement",
        f"Not {REDACTED}, [31m it was revoked",
    )


class _Dies(Exception):
    """The process, in this instant."""


async def died_with_the_answer(place: Installation, integration: Integration) -> Activities:
    """A worker of the shared host that has the answer in its journal."""
    dies = Activities(place, "shared")

    async def at_the_commit(*_: Any) -> DiscoveryResult:
        raise _Dies

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiscoveryActivities, "_commit_registration", at_the_commit)
        with pytest.raises(_Dies):
            await dies.discover(integration)
    dies.journal.release()
    return dies


@pytest.mark.parametrize("initial", [None, "iat-1"])
async def test_a_registration_reply_is_replayed_after_its_worker_died(
    place: Installation, initial: str | None
):
    """Else the registered client is lost, and an open issuer registers a second one."""
    integration = await wanted(place, initial=initial)
    await died_with_the_answer(place, integration)
    assert (await place.integration_now(integration.id)).client_id == ""
    second = Activities(place, "shared")
    assert await second.replayer.sweep() == 1
    assert second.journal.count_waiting() == (0, 0)
    ready = await place.integration_now(integration.id)
    assert (ready.state, ready.client_id) == (IntegrationState.READY, place.idp.client_id)
    assert (await second.discover(integration)).failure is None
    assert place.idp.count("register") == 1
    assert await second.replayer.sweep() == 0


async def test_a_second_discovery_waits_for_the_replay(place: Installation):
    integration = await wanted(place)
    await died_with_the_answer(place, integration)
    second = Activities(place, "shared")
    again = asyncio.create_task(second.discover(integration))
    await place.idp.until("metadata", 2)
    await second.replayer.sweep()
    assert (await again).failure is None
    assert place.idp.count("register") == 1


async def test_a_superseded_registration_reply_changes_nothing(place: Installation):
    integration = await wanted(place)
    await died_with_the_answer(place, integration)
    now = await place.integration_now(integration.id)
    async with place.store.write() as tx:  # a `PUT` asks for another one
        asked_anew = await tx.integrations.request_registration(now, None)
    second = Activities(place, "shared")
    assert await second.replayer.sweep() == 1
    assert await place.integration_now(integration.id) == asked_anew


async def test_no_plain_secret_lies_in_the_journal(place: Installation):
    integration = await wanted(place)
    dies = await died_with_the_answer(place, integration)
    (entry,) = dies.journal.folder.glob("*/*.entry")
    assert place.idp.client_secret.encode() not in entry.read_bytes()


async def test_a_registration_that_was_not_sent_is_sent_again(place: Installation):
    integration = await wanted(place, initial="iat-1")
    nowhere = place.idp.url("register").replace(str(place.idp.port), "9")
    place.idp.metadata["registration_endpoint"] = nowhere
    assert (await discovered(place, integration)).failure is not None
    place.idp.metadata["registration_endpoint"] = place.idp.url("register")
    assert (await discovered(place, integration)).failure is None


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (error("invalid_redirect_uri"), ErrorCode.CLIENT_REJECTED),
        (status(503), ErrorCode.PROVIDER_ERROR),
        (drop(), ErrorCode.PROVIDER_UNREACHABLE),
    ],
)
async def test_a_refused_registration_says_so(place: Installation, answer: Any, code: ErrorCode):
    place.idp.script(answer, at="register")
    integration = await wanted(place)
    assert (await discovered(place, integration)).failure is code
    failed = await place.integration_now(integration.id)
    assert (failed.state, failed.client_id) == (IntegrationState.FAILED, "")


async def test_a_metadata_document_needs_a_server_that_reads_them(place: Installation):
    integration = await wanted(place, RegistrationMethod.METADATA_DOCUMENT)
    assert (await discovered(place, integration)).failure is ErrorCode.CLIENT_REJECTED
    place.idp.metadata["client_id_metadata_document_supported"] = True
    assert (await discovered(place, integration)).failure is None
    assert place.idp.count("register") == 0


async def reread(place: Installation) -> RereadMetadataResult:
    """What the schedule starts, with nothing too young for it."""
    return await place.parts.client.execute_workflow(
        jobs.REREAD_METADATA.name,
        RereadMetadata(older_than_s=-1),
        id=new_id("out"),
        task_queue=place.parts.settings.temporal_task_queue,
        result_type=RereadMetadataResult,
    )


async def test_weaker_metadata_is_refused_once_and_the_pinned_one_stays(place: Installation):
    integration = await wanted(place)
    await discovered(place, integration)
    pinned = (await place.integration_now(integration.id)).endpoints
    place.idp.metadata["token_endpoint"] = place.idp.url("v2/token")
    place.idp.metadata["revocation_endpoint"] = None
    assert (await reread(place)).refused == 1
    after = await place.integration_now(integration.id)
    assert after.endpoints == pinned
    assert after.state is IntegrationState.READY
    assert "revoked" in (after.problem or "")
    assert (await reread(place)).refused == 0  # told once
    actions = await place.actions_on(integration.id)
    assert actions.count(AuditAction.METADATA_REFUSED) == 1


async def test_a_harmless_change_is_taken_over(place: Installation):
    integration = await wanted(place)
    await discovered(place, integration)
    place.idp.metadata["token_endpoint"] = place.idp.url("v2/token")
    assert await reread(place) == RereadMetadataResult(read=1, changed=1, refused=0)
    endpoints = (await place.integration_now(integration.id)).endpoints
    assert endpoints is not None
    assert endpoints.token_endpoint == place.idp.url("v2/token")


async def test_django_oauth_toolkit_registers_us_and_knows_our_secret(
    temporal_address: str, database_url: str, tmp_path: Path
):
    """An independent server: it refuses the code, so it has accepted the client."""
    async with (
        running_authorization_server(tmp_path / "server", "--registration") as server,
        installation(
            temporal_address, database_url, tmp_path / "here", allow=(_host(server.issuer),)
        ) as place,
    ):
        integration = await wanted(place, issuer=server.issuer)
        assert await discovered(place, integration) == DiscoveryResult()
        ready = await place.integration_now(integration.id)
        assert ready.endpoints is not None
        async with place.store.read() as tx:
            secret = await tx.integrations.client_secret(ready)
        assert secret is not None
        said = {}
        for known, password in ((True, secret.reveal()), (False, "wrong")):
            async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
                answer = await http.post(
                    ready.endpoints.token_endpoint,
                    data={"grant_type": "authorization_code", "code": "none", "redirect_uri": "https://e/"},
                    auth=(ready.client_id, password),
                )
            said[known] = answer.json()["error"]
        assert said == {True: "invalid_grant", False: "invalid_client"}


def _host(issuer: str) -> str:
    return issuer.removeprefix("http://")


async def test_a_registration_on_another_host_is_waited_for(place: Installation):
    """Neither sees the other's journals: a second client at the issuer would stay unused."""
    integration = await wanted(place)
    slow, second = (Activities(place, host) for host in ("slow", "second"))
    async with place.idp.in_flight(slow.discover(integration), at="register") as first:
        again = asyncio.create_task(second.discover(await place.integration_now(integration.id)))
        await place.idp.until("metadata", 2)
        await asyncio.sleep(0.5)
    assert (await first).failure is None
    assert (await again).failure is None
    assert place.idp.count("register") == 1
    assert (await place.integration_now(integration.id)).state is IntegrationState.READY


async def test_a_registration_on_another_host_is_taken_over_when_its_answer_can_t_come_any_more(
    place: Installation,
):
    integration = await wanted(place)
    slow, second = (Activities(place, host, SHORT) for host in ("slow", "second"))
    async with place.idp.in_flight(slow.discover(integration), at="register"):
        assert (await second.discover(await place.integration_now(integration.id))).failure is None
        assert place.idp.count("register") == 2
        ready = await place.integration_now(integration.id)
    assert await place.integration_now(integration.id) == ready


async def test_a_lost_commit_reply_does_not_stop_a_registration(place: Installation):
    """The commit is tried again, and finds the intent: it is its own, and no other worker's. Else its
    initial access token would count as used, and no byte has left."""
    integration = await wanted(place, initial="iat-1")
    store = await Store.open(place.parts.settings.database_url, place.parts.ring, place.parts.clock)
    write, lost = store.write, [Failure(ErrorCode.STORE_UNAVAILABLE, "its answer was lost")]

    @asynccontextmanager
    async def unheard_once(keys: UnwrappedKeys | None = None) -> AsyncIterator[Transaction]:
        async with write(keys) as tx:
            yield tx
        if lost:
            raise lost.pop()

    store.write = unheard_once  # type: ignore[method-assign]  # the commit is real, its answer is lost
    news = await Activities(place, store=store).discover(integration)
    await store.close()
    assert lost == []
    assert news.failure is None
    (sent,) = (call for call in place.idp.calls if call.endpoint == "register")
    assert sent.headers["authorization"] == "Bearer iat-1"


async def test_a_registration_dated_in_the_future_is_waited_for_from_now(place: Installation):
    """The other host's clock was an hour ahead, and it died."""
    integration = await wanted(place)
    async with place.store.write() as tx:
        later = place.parts.clock.now() + timedelta(hours=1)
        ahead = integration.model_copy(update={"registration_sent_at": later})
        await tx.integrations.replace(ahead, expected=integration.revision)
    assert (await Activities(place, "here", SHORT).discover(integration)).failure is None
    assert place.idp.count("register") == 1
