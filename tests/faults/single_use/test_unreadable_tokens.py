"""Tokens that a definition can't read: kept, never asked for twice, and read once it is repaired."""

import asyncio
from pathlib import Path

import pytest

from activities.single_use import journal_replay
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.base import connection_workflow_id
from evergrant_server.core.secret import Secret
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import ErrorRule
from tests.conformance.store.samples import a_grant
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok, raw
from tests.faults.revocation.test_external_revocation import waits
from tests.faults.support.activities import Activities

STRICT = RefreshRules(rotation=Rotation.STRICT)


def repaired(spec: ProviderSpec) -> ProviderSpec:
    types = ("Bearer", "of another kind")
    return spec.model_copy(
        update={"response": spec.response.model_copy(update={"bearer_token_types": types})}
    )


async def test_an_unreadable_reply_is_set_aside_until_the_definition_is_repaired(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """The provider has rotated: what it said holds the only good token, and must not be dropped."""
    connection = await place.connect(idp)
    here, elsewhere = (Activities(place, (idp.allowance,), tmp_path / it) for it in ("here", "elsewhere"))
    idp.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    asked = idp.count("token")
    again = [await it.refresh(connection, 1, token_over=True) for it in (here, elsewhere)]
    assert [it.failure for it in again] == [ErrorCode.REPLY_UNREADABLE] * 2
    assert idp.count("token") == asked, "a second use would end what was made of the first"
    said = await place.actions(connection)
    assert await here.replayer.retry_set_aside() == 0
    assert await place.actions(connection) == said, "nothing new is known"
    place.parts.registry._specs["generic"] = repaired(place.parts.registry.get("generic"))
    assert await here.replayer.retry_set_aside() == 1
    assert (await place.row(connection)).generation == 2
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert list((tmp_path / "here").glob("*/*.set-aside")) == []


async def test_a_revocation_names_a_refresh_reply_set_aside(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    here = Activities(place, (idp.allowance,), tmp_path / "here")
    idp.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    (aside,) = (tmp_path / "here").glob("*/*.set-aside")
    await place.revoke(connection)
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    (said,) = await place.records(AuditAction.REVOKED)
    assert said.detail["unread_attempt"] == aside.stem
    assert await here.replayer.retry_set_aside() == 1
    assert not aside.exists(), "its keys are destroyed"


async def test_a_repaired_definition_ends_the_backoff(
    place: Installation, idp: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
):
    """The workflow had been told to wait for an admin, for a quarter of an hour at first."""
    connection = await place.connect(idp, STRICT)
    idp.script(ok(token_type="of another kind"))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REPLY_UNREADABLE
    monkeypatch.setattr(journal_replay, "_RETRY_SET_ASIDE_S", 0.1)
    get = Registry.get  # the worker has a catalogue of its own
    monkeypatch.setattr(Registry, "get", lambda self, name: repaired(get(self, name)))
    await place.until(connection, lambda row: row.generation == 2)
    async with asyncio.timeout(PATIENCE_S):
        while await waits(place, connection_workflow_id(TENANT, connection.id)):
            await asyncio.sleep(0.05)
    fresh = await place.ensure_fresh(connection, 2)
    assert (fresh.problem, fresh.generation) == (None, 3)


async def test_a_reply_set_aside_that_holds_no_tokens_is_dropped(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """An error behind a 200, which the definition didn't know of, beside something named like a token."""
    connection = await place.connect(idp, STRICT)
    here = Activities(place, (idp.allowance,), tmp_path / "here")
    idp.script(raw(b'{"status": "busy", "csrf_token": "abc"}', 200))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    spec = place.parts.registry.get("generic")
    knows = {"error_rules": (ErrorRule(path="status", values=("busy",)),), "retryable_error_codes": ("busy",)}
    place.parts.registry._specs["generic"] = spec.model_copy(update=knows)
    assert await here.replayer.retry_set_aside() == 1
    assert (await here.refresh(connection, 1)).generation == 2


async def test_a_newer_grant_drops_the_reply_set_aside(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    here = Activities(place, (idp.allowance,), tmp_path / "here")
    idp.script(ok(token_type="of another kind"))
    await here.refresh(connection, 1)
    async with place.store.write() as tx:
        row, tokens = await place.row(connection), TokenSet(access_token=Secret("at-new"))
        after = row.refreshed(place.parts.clock.now())
        await tx.grants.install(
            after, tokens, a_grant(after.generation), origin=Origin.REFRESH, expected=row.revision
        )
    assert await here.replayer.retry_set_aside() == 1
    assert list((tmp_path / "here").glob("*/*.set-aside")) == []


async def test_a_repeatable_reply_is_not_set_aside(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    """It would take the room of what may not, at every try."""
    connection = await place.connect(lenient, RefreshRules(rotation=Rotation.NONE))
    here = Activities(place, (lenient.allowance,), tmp_path / "here")
    lenient.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is ErrorCode.REPLY_UNREADABLE
    assert list((tmp_path / "here").glob("*/*.*")) == []
    assert (await here.refresh(connection, 1)).generation == 2
