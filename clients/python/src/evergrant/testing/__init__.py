"""A fake Evergrant for your own tests: real HTTP on loopback, scripted, with a clock that you move.

Owns the fake (`FakeEvergrant`), what it can be told, and the pytest fixtures `fake_evergrant` and
`evergrant_clock`. Speaks the server's HTTP shapes; owns no OAuth, no permits and no storage.
"""

from evergrant.testing.clock import ManualClock
from evergrant.testing.connections import FakeConnection
from evergrant.testing.fake import FakeEvergrant, Request

__all__ = ["FakeConnection", "FakeEvergrant", "ManualClock", "Request"]
