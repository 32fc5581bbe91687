"""Keeps the HTTP libraries from logging URLs and headers at every log level."""

import logging

# httpx2 logs every URL at INFO, and some providers require the secret in the query of a GET.
# httpcore2 logs response headers at DEBUG. A filter is kept when a level is lowered again.
_NOISY = (
    "httpx2",
    "httpcore2.connection",
    "httpcore2.http11",
    "httpcore2.http2",
    "httpcore2.proxy",
    "httpcore2.socks",
)


def _warnings_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def silence_http_debug_logs() -> None:
    """Let the HTTP libraries log nothing below WARNING. Doing it twice changes nothing."""
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.addFilter(_warnings_only)
