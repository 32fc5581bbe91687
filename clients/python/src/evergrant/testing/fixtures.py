"""pytest fixtures, loaded through an entry point where `evergrant` is installed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from evergrant.testing import FakeEvergrant, ManualClock

# The fixtures import the fake, not this module: pytest loads the module in every run.


@pytest.fixture
def evergrant_clock() -> "ManualClock":
    """The clock of `fake_evergrant`; pass it to the clients too: `Evergrant(clock=evergrant_clock)`."""
    from evergrant.testing import ManualClock

    return ManualClock()


@pytest.fixture
def fake_evergrant(
    evergrant_clock: "ManualClock", monkeypatch: pytest.MonkeyPatch
) -> "Iterator[FakeEvergrant]":
    """A fake Evergrant; EVERGRANT_URL and EVERGRANT_API_KEY point to it during the test."""
    from evergrant.testing import FakeEvergrant

    with FakeEvergrant(evergrant_clock) as fake:
        monkeypatch.setenv("EVERGRANT_URL", fake.url)
        monkeypatch.setenv("EVERGRANT_API_KEY", fake.api_key)
        monkeypatch.delenv("EVERGRANT_API_KEY_FILE", raising=False)
        yield fake
