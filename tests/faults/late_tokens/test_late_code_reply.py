"""The answer to a code that comes when the code was written off: nothing of what came with it is lost."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import FollowUp, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.secret import Secret
from tests.fakes.certificates import loopback_tls
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.platform.installation import Installation, installation
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, error, hold_answer
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT, left, outcome

A_DAY_S = 86_400


class SaysMoreAtFirst(ScriptedProvider):
    """Its answer to a code says how long the refresh token lives, and for how long no refresh does."""

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        code, headers, data = super()._act(call)
        if data is not None and call.params.get("grant_type") == "authorization_code":
            data = {**data, "refresh_lives": A_DAY_S}
        return code, headers, data


@pytest_asyncio.fixture
async def idp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SaysMoreAtFirst]:
    tls = loopback_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authorities))
    async with SaysMoreAtFirst(tls=tls) as provider:
        provider.aliases = {"eu/token": "token", "us/token": "token"}
        yield provider


@pytest_asyncio.fixture
async def place(temporal_address: str, tmp_path: Path, idp: SaysMoreAtFirst) -> AsyncIterator[Installation]:
    await migrated_sqlite(tmp_path)
    allow, url = (idp.allowance,), sqlite_url(tmp_path)
    async with installation(temporal_address, url, tmp_path, allow=allow, limits=SHORT) as here:
        yield here


async def integration(place: Installation, idp: ScriptedProvider, **more: Any) -> Integration:
    """At a provider whose callback says where its tokens are, and for which company."""
    document = {
        "name": f"acme-{new_id('def')[-6:]}",
        "display_name": "Acme",
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": idp.url("authorize"),
        "token_endpoint": idp.url("{dc}/token"),
        "template_params": {"dc": {"source": "callback", "callback_param": "dc", "pattern": "^[a-z]{2}$"}},
        "callback_metadata_params": ["realmId"],
        "callback_patterns": {"realmId": "^[0-9]{1,9}$"},
        "response": {"refresh_expires_in_path": "refresh_lives"},
        "post_auth": [{"url": idp.url("accounts"), "metadata": {"name": "name"}}],
        "refresh_rotates": True,
        **more,
    }
    return await place.integration_with(idp, document)


async def consented(
    place: Installation, idp: ScriptedProvider, at: Integration, connection: Connection, **facts: str
) -> Consent:
    endpoint = f"{facts['dc']}/token"
    consent = await place.consent(idp, at, connection, tell=False, endpoint=endpoint)
    async with place.store.write() as tx:
        told = consent.model_copy(update={"facts": facts, "scopes": ("read", "write")})
        return await tx.consents.replace(told, expected=consent.revision)


async def came_late(
    place: Installation, idp: ScriptedProvider, connection: Connection, consent: Consent, folder: Path
) -> None:
    """Another host takes over from a slow one, and is refused; then the slow one's answer comes."""
    slow, quick = (Activities(place, (idp.allowance,), folder / host, SHORT) for host in ("slow", "quick"))
    gate = asyncio.Event()
    idp.script(hold_answer(gate), error("invalid_grant"))
    exchange = await left(idp, partial(slow.exchange, connection, consent))
    with pytest.raises(Failure) as waits:
        await quick.exchange(connection, consent)
    assert waits.value.code is ErrorCode.REFRESH_PENDING
    assert (await outcome(partial(quick.exchange, connection, consent))).failure is ErrorCode.OUTCOME_UNKNOWN
    gate.set()
    assert (await exchange).failure is ErrorCode.OUTCOME_UNKNOWN


async def test_a_late_code_reply_keeps_the_facts_of_its_consent(
    place: Installation, idp: SaysMoreAtFirst, tmp_path: Path
):
    """It is verified at the host that the callback named, and counts as the consent that it is."""
    at = await integration(place, idp)
    connection = await place.begin(at)
    consent = await consented(place, idp, at, connection, dc="eu", realmId="1")
    await came_late(place, idp, connection, consent, tmp_path)
    back = await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    _, grant = await place.grant(connection)
    assert grant.metadata == {"dc": "eu", "realmId": "1"}
    assert grant.refresh_expires_at is not None
    lives = grant.refresh_expires_at - place.parts.clock.now()
    assert timedelta(hours=23) < lives < timedelta(days=1)
    assert (back.requested_scopes, back.follow_up) == (("read", "write"), FollowUp.LOOKING_UP)
    done = await place.consent_of(consent)
    assert (done.status, done.failure) == (ConsentStatus.DONE, None)
    (refresh,) = (it for it in idp.calls if it.params.get("grant_type") == "refresh_token")
    assert refresh.target == "/eu/token"
    (installed,) = await place.records(AuditAction.GRANT_INSTALLED)
    assert installed.detail["consent"] == consent.id, "which makes `connection.created`"
    assert await place.records(AuditAction.CONNECTION_RECOVERED) == [], "it had never failed"


async def test_a_late_code_reply_replaces_the_facts_of_the_previous_consent(
    place: Installation, idp: SaysMoreAtFirst, tmp_path: Path
):
    """Another company was chosen, at another host: the old one's id beside its tokens would be a lie."""
    at = await integration(place, idp)
    connection = await place.begin(at)
    first = await consented(place, idp, at, connection, dc="eu", realmId="1", plan="gold")
    await place.tell_consent(connection, first)
    await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    idp.script(error("invalid_grant"))
    await place.ensure_fresh(connection, 1)
    connection = await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    consent = await consented(place, idp, at, connection, dc="us", realmId="2")
    await came_late(place, idp, connection, consent, tmp_path)
    await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert (await place.grant(connection))[1].metadata == {"dc": "us", "realmId": "2"}
    assert len(await place.records(AuditAction.CONNECTION_RECOVERED)) == 1, "as after any consent"
    assert (await place.ensure_fresh(connection, 2)).generation == 3, "at the new host"
    assert [it.target for it in idp.calls if it.endpoint == "token"][-1] == "/us/token"


async def verified(place: Installation, idp: SaysMoreAtFirst, folder: Path, flow: Flow) -> GrantResult:
    """What comes of a late answer with a refresh token, where the definition knows this flow alone."""
    at = await integration(
        place,
        idp,
        auth_modes=[flow],
        token_endpoint=idp.url("token"),
        device_authorization_endpoint=idp.url("device"),
        template_params={},
        post_auth=[],
    )
    connection = await place.begin(at)
    given = idp.grant()
    tokens = TokenSet(access_token=Secret("at-late"), refresh_token=Secret(given["refresh_token"]))
    async with place.store.write() as tx:
        changed = connection.model_copy(update={"flow": flow})
        connection = await tx.connections.replace(changed, expected=connection.revision)
    late = await place.keep_late(connection, tokens)
    return await Activities(place, (idp.allowance,), folder / "here").verify(connection, late.attempt_id)


async def test_a_late_device_reply_is_verified(place: Installation, idp: SaysMoreAtFirst, tmp_path: Path):
    """Its definition would refuse to be asked for a flow with a code."""
    news = await verified(place, idp, tmp_path, Flow.DEVICE_CODE)
    assert (news.failure, news.generation) == (None, 1)


async def test_a_subject_token_is_not_used_as_a_refresh_token(
    place: Installation, idp: SaysMoreAtFirst, tmp_path: Path
):
    """It is kept with refresh tokens, and nothing is lost without the late reply: another is requested."""
    news = await verified(place, idp, tmp_path, Flow.TOKEN_EXCHANGE)
    assert (news.failure, news.consent_over) == (ErrorCode.CONSENT_REQUIRED, False)
    assert idp.count("token") == 0
