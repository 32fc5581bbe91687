"""The end of a test run: its status must be the tests', not that of an SDK's threads."""

from typing import Any

import pytest

from evergrant_server.leaving import leave

_ended: list[int] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    _ended.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: Any) -> None:
    """After the summary: leave as every command of ours does (see `evergrant_server.leaving`)."""
    if _ended:
        leave(_ended[0])
