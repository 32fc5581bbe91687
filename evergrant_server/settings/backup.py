"""Settings of backups: PostgreSQL's own programs, and how often a backup is tried out."""

from datetime import timedelta
from pathlib import Path

from pydantic import ConfigDict

from evergrant_server.core.model import CheckedModel
from evergrant_server.settings.types import Duration


class BackupSettings(CheckedModel):
    """What `backup` needs, and when `doctor` asks for a drill."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    postgres_bin: Path | None = None
    """The folder of PostgreSQL's own programs (`pg_basebackup`, `pg_ctl`, `pg_restore` and others), for
    `backup`; empty: Debian's folder of the backup's version, else where the shell finds them."""
    backup_drill_interval: Duration = timedelta(days=35)
    """How old the last `backup drill` that found nothing wrong may become before `doctor` asks for one."""
