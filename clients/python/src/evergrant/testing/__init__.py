"""A fake Evergrant for your own tests: real HTTP on loopback, scripted, with a clock that the test moves.

Owns the fake (`FakeEvergrant`), its connections, and the pytest fixtures `fake_evergrant` and
`evergrant_clock`. Answers in the server's HTTP formats; owns no OAuth, no permits and no storage.
"""

from evergrant.testing.connections import FakeConnection, ManualClock
from evergrant.testing.fake import FakeEvergrant
from evergrant.testing.serving import Request

__all__ = ["FakeConnection", "FakeEvergrant", "ManualClock", "Request"]
