"""One Temporal server for a run (or for each of its processes), the order of the tests, and the run's end."""

import gc
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from httpx2._config import DEFAULT_TIMEOUT_CONFIG
from httpx2._transports import default
from hypothesis import settings
from pydantic import BaseModel

from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.egress.transport import default_tls_context
from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.fakes.patience import PATIENCE_S

# Files of the first folders wait for timers and other processes, those of the second compute. Side by side
# they leave no core idle; in each of the two, the slow ones come first.
_WAIT = ("e2e", "workflows", "faults", "cells")
_COMPUTE = ("unit/repo", "security", "conformance", "unit")
_HERE = Path(__file__).parent

_ended: list[int] = []

# A property is tried with the same examples in every run, for as long as they take: `make soak` seeks others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", max_examples=1_000, deadline=None)
settings.load_profile("same")

# A request that names no limit has one of five seconds, for which a busy machine stands still.
vars(DEFAULT_TIMEOUT_CONFIG).update(httpx2.Timeout(PATIENCE_S).as_dict())

# Each client reads the system's authorities, for five milliseconds, and most of those here speak plain http.
# So does each `Egress`: one that presents certificates makes contexts of its own for them.
_ssl_context = default.create_ssl_context
_system_authorities = cache(_ssl_context)


def _trusted() -> tuple[str | None, str | None]:
    return os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")


_TRUSTED = _trusted()


def _shared_ssl_context(**options: Any) -> ssl.SSLContext:
    usual = options.get("verify") is True and not options.get("cert") and _trusted() == _TRUSTED
    return _system_authorities() if usual else _ssl_context(**options)


default.create_ssl_context = _shared_ssl_context

_egress = Egress.__init__
_authorities_of_egress = cache(default_tls_context)


def _egress_with_shared_context(self: Egress, policy: EgressPolicy, **options: Any) -> None:
    if options.get("tls") is None and _trusted() == _TRUSTED and policy.ca_file is None:
        options["tls"] = _authorities_of_egress()
    _egress(self, policy, **options)


Egress.__init__ = _egress_with_shared_context

# httpx2 looks for it at each request to an app in this process, in every folder of the path.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # what is None there is no module

# What tests write ends with them, and a disk that others use lets each of thousands of these wait.
os.fsync = lambda _: None


def pytest_configure(config: pytest.Config) -> None:
    leftovers.watch()
    gc.disable()  # until all is collected: a module and its items live as long as the process


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.markexpr:  # a run that chooses by marks chooses for itself
        slow = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=slow)

    paths = dict.fromkeys(item.path for item in items)
    order = dict.fromkeys(paths, 1.0)
    for folders in (_WAIT, _COMPUTE):
        inside = [path for folder in folders for path in paths if path.is_relative_to(_HERE / folder)]
        inside = list(dict.fromkeys(inside))  # `unit/repo` is a part of `unit`
        order |= {path: place / len(inside) for place, path in enumerate(inside)}
    items.sort(key=lambda item: order[item.path])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Ten thousand items and their modules live as long as the process: no collection looks through them."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)  # what a test leaves in circles is little, and looked for after it
    gc.enable()


@pytest.fixture
def limit_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that limits of requests count by: they stand still until the test changes them."""
    from evergrant_server.access import limits  # half a second that others save

    seconds = [0.0]
    monkeypatch.setattr(limits, "monotonic", lambda: seconds[0])
    return seconds


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def temporal_address() -> AsyncIterator[str]:
    """The address of a server with the namespace that an installation needs: tests share it."""
    from evergrant_server.temporal_link.connect import prepare_namespace  # half a second that others save
    from tests.fakes.temporal import running_temporal

    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        async with running_temporal(Path(folder)) as server:
            await prepare_namespace(await server.client(), timedelta(days=365))
            yield server.address


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    _ended.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: Any) -> None:
    """After the summary: leave as every command of ours does (see `evergrant_server.process`)."""
    if _ended and "MUTANT_UNDER_TEST" not in os.environ:  # mutmut goes on after it
        exit_process(_ended[0])


_model_copy = BaseModel.model_copy


def _copy_of_known_fields(self: BaseModel, *, update: Any = None, deep: bool = False) -> BaseModel:
    """pydantic takes any name in `update`; a name that is no field is a mistake here."""
    unknown = set(update or {}) - set(type(self).model_fields)
    assert not unknown, f"{type(self).__name__} has no field {sorted(unknown)}"
    return _model_copy(self, update=update, deep=deep)


BaseModel.model_copy = _copy_of_known_fields
