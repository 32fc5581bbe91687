"""The answer to a code that comes when the code was written off: nothing of what came with it is lost."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.certificates import LoopbackTls
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, error, ok
from tests.fakes.rows import token_set
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT, Slow

A_DAY_S = 86_400


class SaysMoreAtFirst(ScriptedProvider):
    """Its answer to a code says how long the refresh token lives, and for how long no refresh does."""

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        code, headers, data = super()._act(call)
        if data is not None and call.params.get("grant_type") == "authorization_code":
            data = {**data, "refresh_lives": A_DAY_S}
        return code, headers, data


@pytest.fixture
def provider(tls: LoopbackTls) -> SaysMoreAtFirst:
    made = SaysMoreAtFirst(tls=tls)
    made.aliases = {"eu/token": "token", "us/token": "token"}
    return made


@pytest.fixture
def limits() -> TimeLimits:
    return SHORT


async def integration(place: Installation, **more: Any) -> Integration:
    """At a provider whose callback says where its tokens are, and for which company."""
    document = {
        "token_endpoint": place.idp.url("{dc}/token"),
        "template_params": {"dc": {"source": "callback", "callback_param": "dc", "pattern": "^[a-z]{2}$"}},
        "callback_metadata_params": ["realmId"],
        "callback_patterns": {"realmId": "^[0-9]{1,9}$"},
        "response": {"refresh_expires_in_path": "refresh_lives"},
        "post_auth": [{"url": place.idp.url("accounts"), "metadata": {"name": "name"}}],
        **more,
    }
    return await place.integration_with(place.document(**document))


async def consented(place: Installation, connection: Connection, **facts: str) -> Consent:
    """With what the callback said."""
    endpoint, scopes = f"{facts['dc']}/token", ("read", "write")
    return await place.consent(connection, tell=False, endpoint=endpoint, facts=facts, scopes=scopes)


async def came_late(place: Installation, connection: Connection, consent: Consent) -> None:
    """Another host takes over from a slow one, and is refused; then the slow one's answer comes."""
    slow = Slow(place)
    await slow.is_overtaken(place, connection, consent)
    assert (await slow.answered()).failure is ErrorCode.OUTCOME_UNKNOWN


async def test_a_late_code_reply_keeps_the_facts_of_its_consent(place: Installation):
    """It is verified at the host that the callback named, and counts as the consent that it is."""
    connection = await place.begin(await integration(place))
    consent = await consented(place, connection, dc="eu", realmId="1")
    await came_late(place, connection, consent)
    back = await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    _, grant = await place.grant(connection)
    assert grant.metadata == {"dc": "eu", "realmId": "1"}
    assert grant.refresh_expires_at is not None
    lives = grant.refresh_expires_at - place.parts.clock.now()
    assert timedelta(hours=23) < lives < timedelta(days=1)
    assert (back.requested_scopes, back.follow_up) == (("read", "write"), FollowUp.LOOKING_UP)
    done = await place.consent_of(consent)
    assert (done.status, done.failure) == (ConsentStatus.DONE, None)
    (refresh,) = (it for it in place.idp.calls if it.params.get("grant_type") == "refresh_token")
    assert refresh.target == "/eu/token"
    (installed,) = await place.records(AuditAction.GRANT_INSTALLED)
    assert installed.detail["consent"] == consent.id, "which makes `connection.created`"
    assert await place.records(AuditAction.CONNECTION_RECOVERED) == [], "it had never failed"


async def test_a_late_code_reply_replaces_the_facts_of_the_previous_consent(place: Installation):
    """Another company was chosen, at another host: the old one's id beside its tokens would be a lie."""
    connection = await place.begin(await integration(place))
    first = await consented(place, connection, dc="eu", realmId="1", plan="gold")
    await place.tell_consent(connection, first)
    await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    place.idp.script(error("invalid_grant"))
    await place.ensure_fresh(connection, 1)
    connection = await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    consent = await consented(place, connection, dc="us", realmId="2")
    await came_late(place, connection, consent)
    await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert (await place.grant(connection))[1].metadata == {"dc": "us", "realmId": "2"}
    assert len(await place.records(AuditAction.CONNECTION_RECOVERED)) == 1, "as after any consent"
    assert (await place.ensure_fresh(connection, 2)).generation == 3, "at the new host"
    assert [it.target for it in place.idp.calls if it.endpoint == "token"][-1] == "/us/token"


async def test_a_late_code_reply_with_another_account_is_dropped(place: Installation):
    document = place.document(response={"metadata_paths": ["user"]}, account_id="user")
    connection = await place.begin(await place.integration_with(document))
    place.idp.script(ok(user="ann"))
    await place.granted(connection)
    place.idp.script(error("invalid_grant"))
    await place.ensure_fresh(connection, 1)
    connection = await place.until(connection, lambda c: c.state is LifecycleState.NEEDS_REAUTH)
    consent, slow = await place.consent(connection, tell=False), Slow(place, user="bob")
    await slow.is_overtaken(place, connection, consent)
    assert (await slow.answered()).failure is ErrorCode.OUTCOME_UNKNOWN
    await place.until_audited(connection, AuditAction.ACCOUNT_MISMATCH)
    assert await place.late_tokens(connection) == []
    assert (await place.row(connection)).state is LifecycleState.NEEDS_REAUTH
    assert (await place.consent_of(consent)).failure == ErrorCode.ACCOUNT_MISMATCH


async def verified(place: Installation, flow: Flow) -> GrantResult:
    """What comes of a late answer with a refresh token, where the definition knows this flow alone."""
    at = await integration(
        place,
        auth_modes=[flow],
        token_endpoint=place.idp.url("token"),
        device_authorization_endpoint=place.idp.url("device"),
        template_params={},
        post_auth=[],
    )
    connection = await place.change(await place.begin(at), flow=flow)
    late = await place.keep_late(connection, token_set(place.idp.grant()))
    return await Activities(place).verify(connection, late.attempt_id)


async def test_a_late_device_reply_is_verified(place: Installation):
    """Its definition would refuse to be asked for a flow with a code."""
    news = await verified(place, Flow.DEVICE_CODE)
    assert (news.failure, news.generation) == (None, 1)


async def test_a_subject_token_is_not_used_as_a_refresh_token(place: Installation):
    """It is kept with refresh tokens, and nothing is lost without the late reply: another is requested."""
    news = await verified(place, Flow.TOKEN_EXCHANGE)
    assert (news.failure, news.consent_over) == (ErrorCode.CONSENT_REQUIRED, False)
    assert place.idp.count("token") == 0
