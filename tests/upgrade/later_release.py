"""The release after the next: this code with one more migration, and a database that it has upgraded.

with later_release(tmp_path, 'op.add_column("app", …)'):
    await schema.upgrade(url)   # to 9999
# from here on this code is the release before
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evergrant_server.store.database import schema

LATER = "9999"
A_COLUMN = 'op.add_column("app", sa.Column("later", sa.String(), nullable=False, server_default="yes"))'
_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{later}", "{before}"


def upgrade() -> None:
    {body}
"""


@contextmanager
def later_release(folder: Path, *operations: str) -> Iterator[None]:
    """The code of this process has a migration with these operations of Alembic, while the block runs."""
    migrations, before = folder / "migrations", schema.MIGRATIONS
    if not migrations.exists():
        shutil.copytree(schema.MIGRATIONS, migrations)
    body = "\n    ".join(operations)
    written = _MIGRATION.format(later=LATER, before=schema.expected_version(), body=body)
    (migrations / "versions" / f"{LATER}_later.py").write_text(written, encoding="utf-8")
    try:
        schema.MIGRATIONS = migrations
        schema.known_versions.cache_clear()
        yield
    finally:
        schema.MIGRATIONS = before
        schema.known_versions.cache_clear()
