"""A database that can't be used: the failure says why, and the repair is the one for that reason."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.database import engine, schema
from evergrant_server.store.database.errors import translate_errors

ADDRESS = "EVERGRANT_DATABASE_URL=sqlite:///"


async def _refused(url: str) -> Failure:
    with pytest.raises(Failure) as refused:
        await schema.upgrade(url) if url.endswith("newer.db") else await schema.current_version(url)
    return refused.value


async def test_the_path_that_can_not_be_used_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    missing = await _refused(f"sqlite:///{tmp_path}/none/x.db")
    assert f"mkdir -p {tmp_path}/none" in missing.repair
    folder = await _refused(f"sqlite:///{tmp_path}")
    assert f"{tmp_path} is a folder" in folder.detail
    assert f"{ADDRESS}{tmp_path}/evergrant.db" in folder.repair
    monkeypatch.setattr(schema.os, "access", lambda path, mode: False)  # tests may run as root
    closed = await _refused(f"sqlite:///{tmp_path}/x.db")
    assert f"can't write into the folder {tmp_path}" in closed.detail


async def test_a_newer_database_is_not_told_to_upgrade(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "newer.db")) as database:
        database.executescript(
            "CREATE TABLE alembic_version (version_num); INSERT INTO alembic_version VALUES ('9999')"
        )
    newer = await _refused(f"sqlite:///{tmp_path}/newer.db")
    assert newer.code is ErrorCode.SCHEMA_MISMATCH
    assert "newer release" in newer.repair
    assert "db upgrade" not in newer.repair


def test_libpq_s_words_in_a_url_are_understood_or_refused():
    given = "postgresql://u:canary@db/x?sslmode=require"
    assert engine.sqlite_path(given) is None
    assert engine._parse_url(given).query == {"ssl": "require"}  # pyright: ignore[reportPrivateUsage]  # no socket
    with pytest.raises(Failure, match="channel_binding isn't known here") as refused:
        engine.sqlite_path(f"{given}&channel_binding=require")
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said", "repair"),
    [
        ("SQLITE_BUSY", "another process holds it", "fuser"),
        ("SQLITE_IOERR_SHMSIZE", "disk is full", "Make room"),
    ],
)
def test_what_sqlite_meets_has_its_own_repair(name: str, said: str, repair: str):
    error = sqlite3.OperationalError("canary")
    error.sqlite_errorname = name
    with pytest.raises(Failure) as refused, translate_errors():
        raise error
    assert said in refused.value.detail
    assert repair in refused.value.repair
