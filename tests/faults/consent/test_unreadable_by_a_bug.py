"""A bug of Evergrant's meets the reply to a code: what came is kept sealed, and the page says what to do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from providers import quirks
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from tests.fakes.platform.skipped_time import TENANT, LoneWorker, lone_worker
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.providers.scripted_server import raw
from tests.fakes.rows import discovered

QUIRK = "token_under_authed_user"
USER_ONLY = b'{"ok": true, "authed_user": {"id": "U1", "access_token": "xoxp-1", "token_type": "bearer"}}'


@pytest_asyncio.fixture
async def idp() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as idp:
        yield idp


@pytest_asyncio.fixture
async def place(idp: ScriptedProvider, tmp_path: Path) -> AsyncIterator[LoneWorker]:
    spec = Registry.load().get("generic").model_dump(mode="json", exclude_unset=True)
    definition = ProviderSpec.model_validate({**spec, "quirks": [QUIRK]})
    async with lone_worker(
        tmp_path, idp.allowance, registry=Registry({definition.name: definition})
    ) as place:
        yield place


def entries(folder: Path) -> list[Path]:
    return list(folder.glob("journals/*/*.entry"))


def fail(body: bytes) -> bytes:
    raise RuntimeError("a bug")


async def the_integration(place: LoneWorker, idp: ScriptedProvider) -> Integration:
    return await place.integration(idp.client_secret, **discovered(idp))


async def test_what_came_is_kept_until_the_bug_is_mended(
    place: LoneWorker, idp: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    integration = await the_integration(place, idp)
    idp.script(raw(USER_ONLY, 200, {"Content-Type": "application/json"}))
    with monkeypatch.context() as broken:
        broken.setitem(quirks.QUIRKS, QUIRK, quirks.Quirk(first_reply=fail))  # pyright: ignore[reportArgumentType]  # the table is read-only for the product
        result, consent = await place.exchange(integration, {})
        assert await place.replayer.sweep() == 0, "it is tried again"
    assert result.failure is ErrorCode.INTERNAL
    assert (consent.status, consent.failure) == (ConsentStatus.FAILED, ErrorCode.INTERNAL)
    assert len(entries(tmp_path)) == 1
    assert await place.replayer.sweep() == 1
    assert entries(tmp_path) == []
    async with place.store.read() as tx:
        connection = await tx.connections.get(TENANT, consent.connection_id)
        ended = await tx.consents.get(TENANT, consent.id)
        assert connection is not None
        assert ended is not None
        token = await tx.grants.access_token(connection)
    assert (connection.state, ended.status) == (LifecycleState.ACTIVE, ConsentStatus.DONE)
    assert token.reveal() == "xoxp-1"


async def test_a_user_only_reply_is_installed(place: LoneWorker, idp: ScriptedProvider):
    integration = await the_integration(place, idp)
    idp.script(raw(USER_ONLY, 200, {"Content-Type": "application/json"}))
    result, consent = await place.exchange(integration, {})
    assert (result.failure, consent.status) == (None, ConsentStatus.DONE)
