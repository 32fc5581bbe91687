"""A database, a provider and an installation for each test, on the Temporal server of the run.

A file says what is different about them by fixtures of its own: `provider`, `limits`, `settings`, `allow`,
`with_worker`.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.single_use.attempt import LIMITS, TimeLimits
from tests.fakes.certificates import LoopbackTls, loopback_tls
from tests.fakes.databases import clock, key_path, lent, postgres_server, ring, store  # noqa: F401  # fixtures
from tests.fakes.platform.installation import Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider

ON_BOTH = {
    "test_takeover",
    "test_delivery_rounds",
    "test_outbox_relay",
}
"""What leans on a database's own ways: compare-and-set, queues, queries over many rows."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """SQLite, and PostgreSQL as well for the files above or in `make soak`: it takes twice the time, and the
    store's own tests run on both (tests/conformance/store)."""
    if "database_url" in metafunc.fixturenames and not hasattr(metafunc.module, "database_url"):
        marks = () if metafunc.definition.path.stem in ON_BOTH else pytest.mark.soak
        kinds = ["sqlite", pytest.param("postgresql", marks=marks)]
        metafunc.parametrize("database_url", kinds, indirect=True)


@pytest_asyncio.fixture
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database with the newest schema and no rows, of the kind that is asked for."""
    async with lent(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackTls:
    """A certificate that this process trusts, for definitions of a tenant's own: they need https."""
    made = loopback_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authorities))
    return made


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider()


@pytest_asyncio.fixture
async def idp(provider: ScriptedProvider) -> AsyncIterator[ScriptedProvider]:
    async with provider:
        yield provider


@pytest.fixture
def lenient(idp: ScriptedProvider) -> ScriptedProvider:
    """The same, and its refresh tokens stay good."""
    idp.rotation = "none"
    return idp


@pytest.fixture
def limits() -> TimeLimits:
    return LIMITS


@pytest.fixture
def settings() -> dict[str, Any]:
    return {}


@pytest.fixture
def allow() -> tuple[str, ...]:
    """Who may be called besides the provider."""
    return ()


@pytest.fixture
def with_worker() -> bool:
    """False where the tests run every activity themselves: a workflow that begins late would run it too."""
    return True


@pytest_asyncio.fixture
async def place(
    temporal_address: str,
    database_url: str,
    tmp_path: Path,
    idp: ScriptedProvider,
    limits: TimeLimits,
    settings: dict[str, Any],
    allow: tuple[str, ...],
    with_worker: bool,
) -> AsyncIterator[Installation]:
    where = (temporal_address, database_url, tmp_path, idp)
    more = {"allow": allow, "limits": limits, "with_worker": with_worker}
    async with installation(*where, **more, **settings) as here:
        yield here
