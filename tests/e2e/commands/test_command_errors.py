"""Mistakes in settings, keys, database, Temporal and checkout: each is answered with its repair.

One message that names what is wrong and what to do, the right exit status (1 failed with a code,
2 wrong usage or settings), no traceback, and nothing half-written.
"""

import asyncio
import json
import shutil
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from tests.fakes.databases import Postgres, migrated_sqlite, postgres, sqlite_url
from tests.fakes.platform.command_errors import IN_SETTINGS, ROOT, Mistake, Told, carried_out
from tests.fakes.ports import free_port
from tests.fakes.rows import an_integration
from tests.fakes.temporal import TemporalServer, running_temporal

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOGETHER = 2  # how many run at a time
SERVER_URL, DIAGNOSED = "EVERGRANT_DATABASE_URL", "doctor -o json"
Row = tuple[Path, Mistake]  # its data folder
Answers = dict[str, tuple[Mistake, Told]]


class Place:
    """Folders with a sound installation each, to be spoilt in one way."""

    def __init__(self, root: Path, temporal: TemporalServer, server: Postgres) -> None:
        self.root = root
        self.temporal = temporal
        self.server = server

    async def sound(self, name: str) -> Path:
        """Keys, and a database with the newest schema and one sealed value."""
        folder = self.root / name
        folder.mkdir(mode=0o700)
        KeyRing.create(folder / "keys.json")
        await migrated_sqlite(folder)
        return folder

    async def filled(self, name: str) -> Path:
        folder = await self.sound(name)
        ring = KeyRing.open(folder / "keys.json", Role.WORKER)
        store = await Store.open(sqlite_url(folder), ring, SystemClock())
        now = datetime.now(UTC)
        integration = an_integration(Tenant("default"), now, provider="github")
        async with store.write() as tx:
            await tx.integrations.put(integration, Secret("the client's secret"), expected=None)
        await store.close()
        return folder


async def keys(place: Place) -> AsyncIterator[Row]:
    folder = await place.sound("no-keys")
    (folder / "keys.json").unlink()
    yield folder, Mistake("no key file", "serve", 1, (f"{folder}/keys.json", "keys create"))

    folder = await place.sound("open-keys")
    (folder / "keys.json").chmod(0o640)
    yield folder, Mistake("a key file that a group reads", "worker", 1, (f"chmod 600 {folder}/keys.json",))

    folder = await place.sound("short-keys")
    whole = (folder / "keys.json").read_bytes()
    (folder / "keys.json").write_bytes(whole[: len(whole) // 2])
    yield folder, Mistake("a truncated key file", "serve", 1, (f"{folder}/keys.json", "malformed", "backup"))

    for command in ("serve", "worker"):
        folder = await place.filled(f"other-keys-{command}")
        (folder / "keys.json").unlink()
        KeyRing.create(folder / "keys.json")
        said = ("key_unavailable", "doesn't open this database's keys", "EVERGRANT_KEY_FILE")
        yield folder, Mistake(f"another database's keys, {command}", command, 1, said)

    folder = await place.sound("api-keys")
    KeyRing.open(folder / "keys.json", Role.OPERATOR).export(folder / "api.json", Role.API)
    env = {"EVERGRANT_KEY_FILE": str(folder / "api.json")}
    said = ("no refresh purpose", "full key file")
    yield folder, Mistake("the API's key file given to a worker", "worker", 1, said, env)
    yield folder, Mistake("rotating the API's key file", "keys rotate lease", 1, ("full key file",), env)
    said = ("tokens", "lease, refresh, intake")
    yield folder, Mistake("an unknown key purpose", "keys rotate tokens", 2, said)
    yield folder, Mistake("keys made twice", "keys create", 1, ("exists already", "keys.json"))


async def databases(place: Place) -> AsyncIterator[Row]:
    folder = await place.sound("empty")
    (folder / "evergrant.db").unlink()
    yield folder, Mistake("no database yet", "worker", 1, ("empty", "python -m evergrant_server db upgrade"))

    folder = await place.sound("no-sqlite")
    (folder / "evergrant.db").write_bytes(b"something else entirely, for long enough. " * 40)
    yield folder, Mistake("a file that is no database", "serve", 1, ("no SQLite database", SERVER_URL))

    folder = await place.sound("postgresql")
    for name, url, said in (
        ("no server there", f"postgresql+asyncpg://evergrant@127.0.0.1:{free_port()}/x", "nothing listens"),
        ("a wrong password", await _refusing(place.server), "refused the user or the password"),
        ("no such database", place.server.url("nowhere"), "no database of that name"),
    ):
        says = ("store_unavailable", said, SERVER_URL)
        yield folder, Mistake(name, "db upgrade", 1, says, {SERVER_URL: url})

    folder = await place.sound("twice")
    await carried_out(Mistake("", "keys bootstrap", 0, ()), folder)
    yield folder, Mistake("bootstrap twice", "keys bootstrap", 1, ("already_exists", "bootstrap --again"))

    (place.root / "file").write_text("not a folder")
    env, said = {"EVERGRANT_DATA_DIR": str(place.root / "file/data")}, ("file/data", "can't be")
    yield folder, Mistake("a data folder that can't be written", "keys create", 1, said, env)


async def _refusing(server: Postgres) -> str:
    """A URL whose user must give a password, and gives another."""
    folder = Path(str(server.url("x").partition("host=")[2]))
    rules = folder / "pg_hba.conf"
    rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
    await server.admin("CREATE ROLE guarded LOGIN PASSWORD 'right'", "SELECT pg_reload_conf()")
    return server.url("postgres").replace("postgres@", "guarded:wrong@")


async def temporals(place: Place) -> AsyncIterator[Row]:
    folder = await place.sound("temporal")
    here, address = place.temporal.address, "EVERGRANT_TEMPORAL_ADDRESS"
    nowhere = {address: f"127.0.0.1:{free_port()}"}
    for command in ("worker", "reconcile"):
        said = ("temporal_unavailable", address)
        yield folder, Mistake(f"no Temporal, {command}", command, 1, said, nowhere)
    env = {address: here, "EVERGRANT_TEMPORAL_NAMESPACE": "nowhere"}
    yield folder, Mistake("no such namespace", "worker", 1, ("nowhere doesn't exist", "db upgrade"), env)
    env = {address: here}
    said = ("search attributes", "EvergrantTenant", "db upgrade")
    yield folder, Mistake("search attributes missing", "worker", 1, said, env)
    for name, wrong, said in (
        ("closed runs kept for a day", "retention", ("24 h", "db upgrade")),
        ("no worker runs", "workers", ("evergrant_server worker",)),
    ):
        yield folder, Mistake(name, DIAGNOSED, 1, said, env, wrong=wrong)
    env = {"EVERGRANT_TEMPORAL_PROFILE": "staging"}
    yield folder, Mistake("an unknown profile", "worker", 2, ("EVERGRANT_TEMPORAL_PROFILE", "staging"), env)

    url = await place.server.fresh()
    name = url.partition("?")[0].rpartition("/")[2]
    await place.server.admin(
        "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        "$$SELECT pg_catalog.clock_timestamp() + interval '5 min'$$",
        f"ALTER DATABASE {name} SET search_path = public, pg_catalog",
        database=name,
    )
    said, env = ("ahead of", "timedatectl"), {SERVER_URL: url}
    yield folder, Mistake("a clock that is wrong", DIAGNOSED, 1, said, env, wrong="clock, database")


async def checkouts(place: Place) -> AsyncIterator[Row]:
    folder = await place.sound("checkout")
    foreign = place.root / "site-packages"
    (foreign / "workflows").mkdir(parents=True)
    (foreign / "workflows/__init__.py").write_text('"""Another distribution."""\n')
    env = {"PYTHONPATH": f"{foreign}:{ROOT}"}
    said = ("'workflows'", str(foreign / "workflows"), "PYTHONPATH")
    yield folder, Mistake("another distribution's workflows", "worker", 2, said, env, python=("-P",))

    copy = place.root / "copy"
    for name in ("evergrant_server", "workflows", "activities", "providers", "migrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "providers/catalog/acme.yaml").write_text("name: acme\ntoken_endpoint: not a url\n")
    said = ("acme", "acme.yaml", "token")
    yield folder, Mistake("a malformed provider", "serve", 1, said, cwd=copy)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Every mistake carried out, two at a time, and those of one folder in turn: each lists what it left."""
    root, turn = tmp_path_factory.mktemp("mistakes"), asyncio.Semaphore(TOGETHER)
    alone = defaultdict[Path, asyncio.Lock](asyncio.Lock)

    async def answer(folder: Path, mistake: Mistake) -> tuple[Mistake, Told]:
        async with alone[folder], turn:
            return mistake, await carried_out(mistake, folder)

    (root / "temporal-data").mkdir()
    async with AsyncExitStack() as stack:
        temporal = await stack.enter_async_context(running_temporal(root / "temporal-data"))
        await temporal.keep_closed_runs(timedelta(days=1))
        taken = stack.enter_context(socket.socket())
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # a second API would share it unseen
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = Place(root, temporal, postgres())
        settings = await place.sound("settings")
        said = ("EVERGRANT_PORT", str(port), "another port")
        in_use = Mistake("a port in use", f"serve --port {port}", 2, said)
        table = [(settings, mistake) for mistake in (*IN_SETTINGS, in_use)]
        for seed in (keys, databases, temporals, checkouts):
            table += [row async for row in seed(place)]
        told = await asyncio.gather(*(answer(*row) for row in table))
    return {mistake.name: (mistake, it) for mistake, it in told}


def _wrongs(mistake: Mistake, told: Told) -> list[str]:
    """What is not as it should be in an answer: its status, words, length, and what it left behind."""
    text, lines = _finding(mistake, told) if mistake.wrong else told.err, told.err.splitlines()
    short = bool(lines) and lines[0].startswith("evergrant: ") and len(lines) <= 3
    checks = {
        f"status {told.status}": told.status == mistake.status,
        "long": not lines if mistake.wrong else short,
        "a traceback": "Traceback" not in told.err + told.out,
        f"left {set(told.after ^ told.before)}": told.after == told.before,
        **{f"doesn't say {words!r}": words in text for words in mistake.says},
    }
    return [wrong for wrong, good in checks.items() if not good]


async def test_each_is_answered_with_its_repair_in_short_and_leaves_nothing_half_written(
    answers: Answers,
) -> None:
    found = {name: (_wrongs(*it), it[1].err) for name, it in answers.items()}
    assert {name: it for name, it in found.items() if it[0]} == {}


async def test_the_doctor_fails_the_check_that_is_meant(answers: Answers) -> None:
    diagnosed = [(mistake, told) for mistake, told in answers.values() if mistake.wrong]
    assert diagnosed
    for mistake, told in diagnosed:
        found = {it["check"]: it["ok"] for it in json.loads(told.out)}
        assert found[mistake.wrong] is False
        assert found["key file"] is found["database"] is found["migrations"] is True, "one hides another"


def _finding(mistake: Mistake, told: Told) -> str:
    found = {it["check"]: it for it in json.loads(told.out)}
    return f"{found[mistake.wrong]['detail']} -> {found[mistake.wrong]['repair']}"
