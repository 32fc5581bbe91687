"""Logs: one line each, with ids and codes. Libraries that log requests are kept quiet."""

import logging
import sys

_QUIET = ("httpx2", "httpcore2", "authlib", "aiosqlite", "asyncio", "sqlalchemy", "alembic", "_granian")


def configure_logging(level: str) -> None:
    """Log to standard error. Libraries speak from WARNING on: at DEBUG they print requests."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
