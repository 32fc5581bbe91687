"""The API, the worker and the gateway of `dev`: each prepares the half that it needs, then serves.

The API makes the keys, the schema and the admin key where they are missing; the worker prepares Temporal's
namespace. Each imports only what it serves with, since a later start of it is a process of its own.
"""

import asyncio

from evergrant_server.cli.dev import DATABASE_MADE_ANEW, DATABASE_READY, NAMESPACE_READY
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.keyfile import key_file_error
from evergrant_server.process import quick_imports
from evergrant_server.settings import Settings
from evergrant_server.store.database import schema

_WAIT_LIMIT_S = 180
_WRONG_KEYS = (
    "As a rule it is another installation's: set EVERGRANT_KEY_FILE to the key file that filled this "
    "database, or restore that file."
)
_POLL_S = 0.1


def serve_api(settings: Settings) -> None:
    with quick_imports():
        from evergrant_server.cli import serve

    asyncio.run(_prepare_api(settings))
    print(DATABASE_READY, flush=True)
    serve.serve_api(settings)


async def work(settings: Settings) -> None:
    with quick_imports():
        import worker

    async with asyncio.timeout(_WAIT_LIMIT_S):
        await _prepare_namespace(settings)
        print(NAMESPACE_READY, flush=True)
    await _wait_for_api(settings)
    await worker.main(settings)


def serve_gateway(settings: Settings) -> None:
    with quick_imports():
        from evergrant_server.cli import serve_gateway as gateway

    asyncio.run(_wait_for_api(settings))
    gateway.serve_gateway(settings)


async def _prepare_api(settings: Settings) -> None:
    from evergrant_server.cli import keys

    if settings.uses_key_file and not settings.key_path.exists():
        await keys.create_keys(settings)
    admin_key = settings.data_dir / "admin.key"
    key = admin_key.read_text().strip() if admin_key.exists() else ""
    if await schema.upgrade(settings.database_url) is None and key:
        print(DATABASE_MADE_ANEW, flush=True)
    if settings.key_service != "file":
        await keys.create_wrapped_keys(settings)
    await _require_own_keys(settings)
    try:
        if not await keys.is_valid_key(settings, key):  # missing, expired, or another database's
            await keys.make_admin_key(settings, again=True, out=admin_key)
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN or not settings.uses_key_file:
            raise
        why = f"didn't write the database's row of the app admin ({failure.detail})"
        raise key_file_error(settings.key_path, why, _WRONG_KEYS) from None


async def _require_own_keys(settings: Settings) -> None:
    """Raise Failure KEY_UNAVAILABLE where the keys open nothing of the database."""
    from evergrant_server.crypto.keyring import Role
    from evergrant_server.store.store import require_matching_key_ring
    from evergrant_server.wiring.platform import open_store

    async with open_store(settings, Role.OPERATOR) as (store, _):
        await require_matching_key_ring(store, store.ring)


async def _prepare_namespace(settings: Settings) -> None:
    from evergrant_server.temporal_link.connect import connect, prepare_namespace

    while True:
        try:
            return await prepare_namespace(await connect(settings), settings.history_retention)
        except Failure as failure:
            if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE:
                raise
        await asyncio.sleep(_POLL_S)


async def _wait_for_api(settings: Settings) -> None:
    """Until the API has brought the keys and the schema."""
    from evergrant_server.cli import roots

    async with asyncio.timeout(_WAIT_LIMIT_S):
        while not (
            (settings.key_path.exists() or not settings.uses_key_file)
            and await _has_schema(settings)
            and (settings.key_service == "file" or await roots.has_rows(settings))
        ):
            await asyncio.sleep(_POLL_S)


async def _has_schema(settings: Settings) -> bool:
    """False also while the database can't be reached: whether `dev` ends for that, the API decides."""
    try:
        stamp = await schema.read_stamp(settings.database_url)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_UNAVAILABLE:
            raise
        return False
    return stamp is not None and stamp.suits
