"""A program `docker` for the commands of the guides: `docker compose …` with the services as processes here.

    async with site(folder, idp) as place:
        await place.shell("docker compose up --build --detach")

The program hands its words and its input on to the test's process, which starts, stops and runs what they
name. A command that isn't known here fails: a page can't say what no test does.
"""

import asyncio
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.fakes.databases import postgres
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.compose import Compose, Running, image_entrypoint
from tests.fakes.platform.warm import ROOT, WarmProcess, warm_python
from tests.fakes.ports import free_port
from tests.fakes.postgresql.program import postgresql_programs
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import TemporalServer, running_temporal

SERVED = ("api", "gateway", "worker-1", "worker-2")  # of the file's services those that run on
_ROLES = ("worker", "api", "gateway")
_SECRETS = ("secrets", *(f"secrets-{name}" for name in (*_ROLES, "postgres", "temporal")))
_VOLUMES = (*(f"keys/{name}" for name in _ROLES), *_SECRETS)
_ELSEWHERE = (
    "postgres",
    "temporal",
    "temporal-schema",
    "temporal-ui",
    "otel-collector",
)  # they run here already
_CLIENT = """#!{python} -IS
import json, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
line.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
if "-T" in sys.argv:
    line.sendall(sys.stdin.buffer.read())
line.shutdown(socket.SHUT_WR)
with line.makefile("rb") as reply:
    status, errors = json.loads(reply.readline())
    sys.stdout.buffer.write(reply.read())
sys.stderr.write(errors)
sys.exit(status)
"""


class Ended(NamedTuple):
    """A command that was run to its end."""

    status: int
    output: bytes = b""
    errors: str = ""


class UnknownCommand(Exception):
    """No page says this, so nothing here does it."""


@dataclass
class Site:
    """PostgreSQL and Temporal as the file's services find them, and the volumes as folders."""

    compose: Compose
    temporal: TemporalServer
    folder: Path
    database_socket: str
    port: int
    gateway_port: int
    authorities: Path | None  # the processes trust them, and no other
    running: dict[str, Running] = field(default_factory=dict)
    beside_init: list[set[str]] = field(default_factory=list)  # what ran while `init` did, each time
    outdated: set[str] = field(default_factory=set)  # what runs with an image that was built anew
    has_database: bool = False
    ports: dict[str, int] = field(default_factory=dict)  # of metrics, by service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def own(self, service: str) -> dict[str, str]:
        """The data folder that the image gives a service, which no setting of the file names."""
        folder = str(self.folder / f"data-{service}")
        trusted = {} if self.authorities is None else {"SSL_CERT_FILE": str(self.authorities)}
        metrics = self.ports.setdefault(service, free_port())  # of this machine, and not of a container
        settings = {"EVERGRANT_DATA_DIR": folder, "EVERGRANT_ALLOW_UNBOUND_CONSENT": "true"}
        return {**settings, "EVERGRANT_METRICS_PORT": str(metrics), **trusted}

    async def shell(self, block: str, *, status: int = 0) -> str:
        """Run the lines of a page as an operator does, in a folder of their own; what they printed."""
        desk = self.folder / "desk"
        desk.mkdir(exist_ok=True)
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
        child = await asyncio.create_subprocess_exec(
            "sh", "-euc", block, cwd=desk, env={"PATH": path}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        lines = block.count("\n") + 1
        output, errors = await asyncio.wait_for(child.communicate(), lines * PATIENCE_S)
        assert child.returncode == status, (
            f"{block}\nended with {child.returncode}:\n{(errors + output).decode()}"
        )
        return output.decode()

    async def command(self, words: Sequence[str], stdin: bytes) -> Ended:
        """Do what `docker` is told."""
        match list(words):
            case ["compose", "build"]:
                self.outdated = set(self.running)
            case ["compose", "up", *rest]:
                return await self._up(rest)
            case ["compose", "run", *rest]:
                return await self._run(rest, stdin)
            case ["compose", "exec", *rest]:
                return await self._exec(rest, stdin)
            case ["compose", "stop", *services]:
                await self._stop(services)
            case ["compose", "start", *services]:
                await self._start(services)
            case ["compose", "restart", *services]:
                await self._stop(services)
                await self._start(services)
            case ["compose", "cp", source, target]:
                path = source.partition(":")[2]
                shutil.copyfile(self.compose.here(path), self.folder / "desk" / target)
            case _:
                raise UnknownCommand(shlex.join(words))
        return Ended(0)

    async def _up(self, rest: Sequence[str]) -> Ended:
        """Those that run already are replaced where the image was built anew."""
        flags, services = (
            {word for word in rest if word.startswith("-")},
            [word for word in rest if word[0] != "-"],
        )
        _only(flags, {"--build", "--detach", "--no-deps", "--wait"})
        wanted = [name for name in services or SERVED if name not in _ELSEWHERE]
        needed = ("secrets", "init") if wanted else ("secrets",)
        if "--no-deps" not in flags and (before := await self._prepare(needed)).status:
            return before
        if "--build" in flags:
            self.outdated = set(self.running)
        replaced = self.outdated & set(wanted)
        self.outdated -= replaced
        await self._stop([name for name in wanted if name in replaced])
        await self._start([name for name in wanted if name in SERVED and name not in self.running])
        return Ended(0)

    async def _prepare(self, services: Sequence[str] = ("secrets", "init")) -> Ended:
        """What the others depend on."""
        for service in services:
            if service == "init":
                self.beside_init.append(set(self.running))
            ended = await self._finished(service, self.compose.arguments(service), {}, b"")
            if ended.status:
                return ended
            if not self.has_database:
                await self.first_start()
        return ended

    async def first_start(self) -> None:
        """What the image of PostgreSQL does with an empty volume: the script that the file mounts."""
        script = (ROOT / "deploy/postgresql/roles.sh").read_text(encoding="utf-8")
        here = script.replace("/run/evergrant", str(self.folder / "secrets"))
        path = f"{postgresql_programs()}:/usr/bin:/bin"
        ended = await _ended(["sh", "-c", here], {"PGHOST": self.database_socket, "PATH": path}, b"")
        assert ended.status == 0, ended.errors
        self.has_database = True

    async def without_database(self) -> None:
        """PostgreSQL's volume is lost."""
        server, self.has_database = postgres(), False
        await server.drop(server.url("evergrant"))
        roles = ("evergrant_worker", "evergrant_api", "evergrant_gateway", "evergrant", "temporal")
        await server.admin(*(f"DROP ROLE IF EXISTS {role}" for role in roles))

    async def _run(self, rest: Sequence[str], stdin: bytes) -> Ended:
        flags, environment, service, command = _parsed(rest, {"--rm", "-T", "--no-deps"})
        if "--no-deps" not in flags and service != "init" and (before := await self._prepare()).status:
            return before
        if service == "init" and not command:
            self.beside_init.append(set(self.running))
        whole = [*self.compose.entrypoint(service), *map(self.compose.here, command)]
        return await self._finished(
            service, whole if command else self.compose.arguments(service), environment, stdin
        )

    async def _exec(self, rest: Sequence[str], stdin: bytes) -> Ended:
        _, environment, service, command = _parsed(rest, {"-T"})
        if service == "postgres":
            return await self._of_postgresql(command, stdin)
        if service not in self.running:
            return Ended(1, errors=f'service "{service}" is not running\n')
        return await self._finished(service, [*map(self.compose.here, command)], environment, stdin)

    async def _of_postgresql(self, command: Sequence[str], stdin: bytes) -> Ended:
        """A program of the server's own, as in its container."""
        program, *arguments = command
        environment = {"PGHOST": self.database_socket, "HOME": str(self.folder)}
        return await _ended([str(postgresql_programs() / program), *arguments], environment, stdin)

    async def _finished(
        self, service: str, command: list[str], environment: dict[str, str], stdin: bytes
    ) -> Ended:
        env = {**self.compose.environment(service), **self.own(service), **environment}
        if service != "api":  # where its container is, localhost is no API
            env["EVERGRANT_PUBLIC_URL"] = "http://127.0.0.1:9"
        image = image_entrypoint()
        if stdin:
            return await _ended(command, env, stdin)
        if command[: len(image)] != image:
            return await _ended(command, {**env, "PATH": f"{warm_python()}:{env['PATH']}"}, stdin)
        with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            status = await (await WarmProcess.start(command[len(image) :], env, out, err)).wait()
            return Ended(status, out.read_bytes(), err.read_text(encoding="utf-8"))

    async def _start(self, services: Sequence[str]) -> None:
        for service in services:
            assert service in SERVED, f"no service {service}"
            if service in self.running:
                continue
            log = self.folder / f"{service}.log"
            log.write_bytes(b"")
            env = {**self.compose.environment(service), **self.own(service)}
            command = self.compose.arguments(service)[len(image_entrypoint()) :]
            child = await WarmProcess.start(command, env, log, log)
            self.running[service] = Running(service, child, log)
        for service in services:
            await self._until_ready(service)

    async def _until_ready(self, service: str) -> None:
        process = self.running[service]
        if service in ("api", "gateway"):
            port = self.port if service == "api" else self.gateway_port
            await process.until(lambda: answers(port))
        else:
            await process.says("worker ready")

    async def _stop(self, services: Sequence[str]) -> None:
        for service in services:
            assert service in SERVED, f"no service {service}"
        ended = [self.running.pop(service) for service in services if service in self.running]
        await asyncio.gather(*(process.stop() for process in ended))

    async def lose_volumes(self) -> None:
        """The host is lost, with what its services have written: not Temporal, nor the operator's desk."""
        await self._stop(list(self.running))
        await self.without_database()
        for name in (*_VOLUMES, *(f"data-{service}" for service in SERVED)):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in _VOLUMES:
            (self.folder / name).mkdir(mode=0o700, parents=True)

    async def end(self) -> None:
        await self._stop(list(self.running))


def _parsed(words: Sequence[str], known: set[str]) -> tuple[set[str], dict[str, str], str, list[str]]:
    """Flags, environment, service and command of `run` and `exec`."""
    flags, environment, rest = set[str](), dict[str, str](), list(words)
    while rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "-e":
            name, _, value = rest.pop(0).partition("=")
            environment[name] = value
        else:
            flags.add(word)
    _only(flags, known)
    return flags, environment, rest[0], rest[1:]


def _only(flags: set[str], known: set[str]) -> None:
    if flags - known:
        raise UnknownCommand(", ".join(sorted(flags - known)))


async def _ended(command: list[str], environment: dict[str, str], stdin: bytes) -> Ended:
    child = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await asyncio.wait_for(child.communicate(stdin), PATIENCE_S)
    assert child.returncode is not None
    return Ended(child.returncode, output, errors.decode())


async def answers(port: int, path: str = "/readyz") -> bool:
    """Whether this port says 200: the file's health checks ask the same of `/readyz`."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return (await reader.readline()).split(b" ")[1:2] == [b"200"]
    finally:
        writer.close()


@asynccontextmanager
async def _program(place: Site) -> AsyncIterator[None]:
    """Put `docker` into the folder of programs, and do what it is told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = json.loads(await reader.readline())
        try:
            ended = await place.command(words, await reader.read())
        except (AssertionError, UnknownCommand) as error:
            ended = Ended(125, errors=f"docker: {error}\n")
        writer.write(json.dumps([ended.status, ended.errors]).encode() + b"\n" + ended.output)
        await writer.drain()
        writer.close()

    address = str(Path(tempfile.mkdtemp(prefix="evergrant-docker-")) / "socket")
    client = place.folder / "bin/docker"
    client.parent.mkdir()
    client.write_text(_CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    client.chmod(0o755)
    server = await asyncio.start_unix_server(serve, address)
    try:
        async with server:
            yield
    finally:
        shutil.rmtree(Path(address).parent, ignore_errors=True)


@asynccontextmanager
async def site(folder: Path, idp: ScriptedProvider) -> AsyncIterator[Site]:
    """A host for the file's services, without any of them. They may call the provider."""
    server, port, gateway_port = postgres(), free_port(), free_port()
    for name in _VOLUMES:
        (folder / name).mkdir(mode=0o700, parents=True)
    database_socket = server.url("evergrant").partition("?host=")[2]
    async with running_temporal(folder) as temporal:
        replaced = {
            "@postgres/evergrant": f"@/evergrant?host={database_socket}",
            "temporal:7233": temporal.address,
            "/run/evergrant": str(folder / "secrets"),  # and those of the roles beside it
            "/keys/": f"{folder}/keys/",
            "0.0.0.0": "127.0.0.1",
            "localhost:8480": f"127.0.0.1:{port}",
            "127.0.0.1:8480": f"127.0.0.1:{port}",
            "8480": str(port),
            "8483": str(gateway_port),
            "otel-collector:4318": f"127.0.0.1:{free_port()}",
        }
        compose = Compose(replaced, {"EVERGRANT_EGRESS_ALLOW": idp.allowance}, folder / "desk")
        trusted = idp.tls.authorities if idp.tls else None
        place = Site(compose, temporal, folder, database_socket, port, gateway_port, trusted)
        await compose.run("secrets")
        try:
            await place.first_start()
            async with _program(place):
                yield place
        finally:
            await place.end()
            await place.without_database()


def blocks(page: Path, heading: str, tag: str) -> list[str]:
    """The blocks of a section of a page that are marked with this tag, in their order."""
    lines = iter(page.read_text(encoding="utf-8").split(f"\n{heading}\n")[1].splitlines())
    level, marked = heading.partition(" ")[0], list[str]()
    for line in lines:
        if line.startswith("#") and line.partition(" ")[0] <= level:
            break
        if line.strip() != f"```sh {tag}":
            continue
        indent, block = len(line) - len(line.lstrip()), list[str]()
        for inside in lines:
            if inside.strip() == "```":
                break
            block.append(inside[indent:])
        marked.append("\n".join(block))
    assert marked, f"{heading} has no block for {tag}"
    return marked
