"""The worker of `dev` waits for the keys and the schema that the API brings."""

from pathlib import Path

import pytest

import worker
from evergrant_server.cli.dev import services
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.settings import load_settings
from evergrant_server.store.database import schema


async def test_a_database_that_is_not_reached_at_once_ends_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: list[str] = []
    versions = [Failure(ErrorCode.STORE_UNAVAILABLE), None, schema.Stamp(schema.expected_version())]

    async def version(_: str) -> schema.Stamp | None:
        found = versions.pop(0)
        if isinstance(found, Failure):
            raise found
        return found

    async def ready(_: object) -> None:
        begun.append("namespace")

    async def work(_: object) -> None:
        begun.append("work")

    monkeypatch.setattr(schema, "read_stamp", version)
    monkeypatch.setattr(services, "_prepare_namespace", ready)
    monkeypatch.setattr(worker, "main", work)
    settings = load_settings(data_dir=tmp_path)
    settings.key_path.touch()
    await services.work(settings)
    assert (begun, versions) == (["namespace", "work"], [])
