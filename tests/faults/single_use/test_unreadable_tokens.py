"""Tokens that a definition can't read, of a refresh or of a consent: kept, never asked for twice, and read
once it is repaired.
"""

import pytest

from activities.single_use import journal_replay
from evergrant_server.audit.provider_reports import apply_provider_report
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.provider_events import Certainty, ProviderReport, ReportSource
from evergrant_server.core.secret import Secret
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import ErrorRule
from tests.conformance.store.samples import a_grant
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, NEVER_ROTATES, STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok, raw
from tests.faults.integrations.test_secret_rotation import rotate
from tests.faults.revocation.test_external_revocation import waits
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import Slow


def repaired(spec: ProviderSpec) -> ProviderSpec:
    types = ("Bearer", "of another kind")
    return spec.model_copy(
        update={"response": spec.response.model_copy(update={"bearer_token_types": types})}
    )


def repair(place: Installation) -> None:
    place.parts.registry._specs["generic"] = repaired(place.parts.registry.get("generic"))


async def test_an_unreadable_reply_is_set_aside_until_the_definition_is_repaired(place: Installation):
    """The provider has rotated: what it said holds the only good token, and must not be dropped."""
    connection = await place.connect()
    here, elsewhere = (Activities(place, it) for it in ("here", "elsewhere"))
    place.idp.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    asked = place.idp.count("token")
    again = [await it.refresh(connection, 1, token_over=True) for it in (here, elsewhere)]
    assert [it.failure for it in again] == [ErrorCode.REPLY_UNREADABLE] * 2
    assert place.idp.count("token") == asked, "a second use would end what was made of the first"
    said = await place.actions(connection)
    assert await here.replayer.retry_set_aside() == 0
    assert await place.actions(connection) == said, "nothing new is known"
    repair(place)
    assert await here.replayer.retry_set_aside() == 1
    assert (await place.row(connection)).generation == 2
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert here.set_aside() == []


async def test_a_revocation_names_a_refresh_reply_set_aside(place: Installation):
    connection = await place.connect(STRICT)
    here = Activities(place)
    place.idp.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    (aside,) = here.set_aside()
    await place.revoked(connection)
    (said,) = await place.records(AuditAction.REVOKED)
    assert said.detail["unread_attempt"] == aside.stem
    assert await here.replayer.retry_set_aside() == 1
    assert not aside.exists(), "its keys are destroyed"


async def test_a_repaired_definition_ends_the_backoff(place: Installation, monkeypatch: pytest.MonkeyPatch):
    """The workflow had been told to wait for an admin, for a quarter of an hour at first."""
    connection = await place.connect(STRICT)
    place.idp.script(ok(token_type="of another kind"))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REPLY_UNREADABLE
    monkeypatch.setattr(journal_replay, "_RETRY_SET_ASIDE_S", 0.1)
    get = Registry.get  # the worker has a catalogue of its own
    monkeypatch.setattr(Registry, "get", lambda self, name: repaired(get(self, name)))
    await place.until(connection, lambda row: row.generation == 2)
    await eventually(lambda: waits(place, connection_workflow_id(TENANT, connection.id)), lambda it: not it)
    fresh = await place.ensure_fresh(connection, 2)
    assert (fresh.problem, fresh.generation) == (None, 3)


async def test_a_reply_set_aside_that_holds_no_tokens_is_dropped(place: Installation):
    """An error behind a 200, which the definition didn't know of, beside something named like a token."""
    connection = await place.connect(STRICT)
    here = Activities(place)
    place.idp.script(raw(b'{"status": "busy", "csrf_token": "abc"}', 200))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    spec = place.parts.registry.get("generic")
    knows = {"error_rules": (ErrorRule(path="status", values=("busy",)),), "retryable_error_codes": ("busy",)}
    place.parts.registry._specs["generic"] = spec.model_copy(update=knows)
    assert await here.replayer.retry_set_aside() == 1
    assert (await here.refresh(connection, 1)).generation == 2


async def test_a_newer_grant_drops_the_reply_set_aside(place: Installation):
    connection = await place.connect(STRICT)
    here = Activities(place)
    place.idp.script(ok(token_type="of another kind"))
    await here.refresh(connection, 1)
    after = (await place.row(connection)).refreshed(place.parts.clock.now())
    tokens = TokenSet(access_token=Secret("at-new"))
    await place.install(a_grant(after.generation), tokens, after, Origin.REFRESH)
    assert await here.replayer.retry_set_aside() == 1
    assert here.set_aside() == []


async def test_a_repeatable_reply_is_not_set_aside(place: Installation, lenient: ScriptedProvider):
    """It would take the room of what may not, at every try."""
    connection = await place.connect(NEVER_ROTATES)
    here = Activities(place)
    lenient.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    assert here.set_aside() == []
    assert (await here.refresh(connection, 1)).generation == 2


JSON = {"Content-Type": "application/json"}
UNREAD = ok(token_type="of another kind")


@pytest.fixture
def here(place: Installation) -> Activities:
    return Activities(place)


async def unread(place: Installation, here: Activities, connection: Connection) -> Consent:
    consent = await place.consent(connection, tell=False)
    place.idp.script(UNREAD)
    assert (await here.exchange(connection, consent)).failure is ErrorCode.REPLY_UNREADABLE
    return consent


async def test_unreadable_tokens_of_a_new_consent_replace_a_working_grant_after_the_repair(
    place: Installation, here: Activities
):
    """For more scopes, say. The provider may have ended the grant before with it."""
    connection = await place.connect()
    consent = await unread(place, here, connection)
    assert (await place.row(connection)).generation == 1
    repair(place)
    assert await here.replayer.retry_set_aside() == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 2)
    assert (await place.consent_of(consent)).status is ConsentStatus.DONE
    await place.until_described(connection, lambda it: it.generation == 2)
    assert (await place.ensure_fresh(connection, 2)).generation == 3


async def test_an_expiring_token_after_one_without_expiry_is_scheduled(place: Installation, here: Activities):
    """Nothing else would ever tell its workflow that something is due."""
    place.idp.script(raw(b'{"access_token": "at-1", "token_type": "Bearer"}', 200, JSON))
    connection = await place.connect()
    await unread(place, here, connection)
    repair(place)
    assert await here.replayer.retry_set_aside() == 1
    await place.until_described(connection, lambda it: it.generation == 2)
    assert (await place.ensure_fresh(connection, 2)).generation == 3


@pytest.mark.parametrize(
    ("before", "state"), [(False, LifecycleState.NEEDS_REAUTH), (True, LifecycleState.ACTIVE)]
)
async def test_first_tokens_read_after_the_grant_ended_are_verified(
    place: Installation, here: Activities, before: bool, state: LifecycleState
):
    """A security event says so of what there was before it, and nothing of a later consent."""
    connection = await place.connect()
    if before:
        await ended_elsewhere(place, connection)
    await unread(place, here, connection)
    if not before:
        await ended_elsewhere(place, connection)
        for family in place.idp.families:
            family.alive = False
    repair(place)
    assert await here.replayer.retry_set_aside() == 1
    if state is LifecycleState.NEEDS_REAUTH:
        await place.idp.until("token", 3)  # the refresh that verifies
    await place.until(connection, lambda row: row.state is state)
    assert (await place.row(connection)).generation == (2 if before else 1)


async def ended_elsewhere(place: Installation, connection: Connection) -> None:
    row = await place.row(connection)
    of = {"source": ReportSource.INTROSPECTION, "certainty": Certainty.ENDED}
    news = ProviderReport(kind="ended", generation=row.generation, **of)
    async with place.store.write() as tx:
        await apply_provider_report(tx, row, news, ASKED, place.parts.clock.now())
    await place.until(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)


async def test_unreadable_first_tokens_are_installed_after_the_repair(
    place: Installation, here: Activities, monkeypatch: pytest.MonkeyPatch
):
    connection = await place.begin()
    await unread(place, here, connection)
    get = Registry.get  # the worker has a catalogue of its own
    monkeypatch.setattr(Registry, "get", lambda self, name: repaired(get(self, name)))
    assert await here.replayer.retry_set_aside() == 1
    await place.until(connection, lambda row: row.state is LifecycleState.ACTIVE)
    await place.until_described(connection, lambda it: it.state is LifecycleState.ACTIVE)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert place.idp.count("token", grant_type="authorization_code") == 1


async def overtaken(place: Installation, connection: Connection) -> Slow:
    """A host that has spent the code, after another one was refused."""
    slow = Slow(place)
    await slow.is_overtaken(place, connection, await place.consent(connection, tell=False))
    return slow


async def came_late(place: Installation) -> list[tuple[str, bool]]:
    records = await place.records(AuditAction.LATE_TOKENS_RECEIVED)
    return [(it.detail["state"], it.detail["revoked"]) for it in records]


async def test_a_late_code_reply_during_a_revocation_is_revoked_with_it(place: Installation):
    connection = await place.begin()
    slow = await overtaken(place, connection)
    await place.revoke(connection, tell=False)
    await slow.answered()
    assert await came_late(place) == [(LifecycleState.REVOKING, False)], "not yet"
    await place.tell_revoke(connection)
    await place.until(connection, lambda it: it.state is LifecycleState.REVOKED)
    assert not any(it.alive for it in place.idp.families)


async def test_a_late_code_reply_beside_a_working_grant_is_recorded(place: Installation):
    """Revoking it might end that grant, too."""
    connection = await place.connect()
    slow = await overtaken(place, connection)
    await slow.answered()
    assert await came_late(place) == [(LifecycleState.ACTIVE, False)]
    assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_a_late_reply_is_verified_with_either_secret(place: Installation):
    """Ours was rotated first, and no refresh has noticed that the provider takes the old one yet."""
    connection = await place.begin()
    slow = await overtaken(place, connection)
    await rotate(place, await place.integration_of(connection), "new-secret")
    await slow.answered()
    row = await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)
    assert row.generation == 1
