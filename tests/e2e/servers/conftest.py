"""One API over a real SQLite store, for tests that start a server over it."""

from tests.fakes.api import api

__all__ = ["api"]
