"""One API over a real SQLite store for each test."""

from tests.fakes.api import api

__all__ = ["api"]
