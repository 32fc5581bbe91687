"""The API of `dev`: makes the keys, the schema and the admin key where they are missing, then serves."""

import asyncio

from evergrant_server.cli import operate
from evergrant_server.cli.dev import DATABASE_MADE_ANEW, DATABASE_READY
from evergrant_server.cli.serve import serve_api
from evergrant_server.settings import Settings
from evergrant_server.store.database import schema


def serve(settings: Settings) -> None:
    asyncio.run(_prepare(settings))
    print(DATABASE_READY, flush=True)
    serve_api(settings)


async def _prepare(settings: Settings) -> None:
    if not settings.key_path.exists():
        await operate.create_keys(settings)
    admin_key = settings.data_dir / "admin.key"
    key = admin_key.read_text().strip() if admin_key.exists() else ""
    if await schema.upgrade(settings.database_url) is None and key:
        print(DATABASE_MADE_ANEW, flush=True)
    if not await operate.is_valid_key(settings, key):  # missing, expired, or another database's
        await operate.make_admin_key(settings, again=True, out=admin_key)
