"""How a command reaches its server: its options, the folder's `evergrant.env`, and what a refusal names."""

import os
import shlex
import socket
import stat
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Annotated, Any, TypeVar, Unpack

import httpx2
from cyclopts import Parameter
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from evergrant.api.attempts import transport_error
from evergrant.cli.tables import Format
from evergrant.errors import BadRequest, EvergrantError
from evergrant.identity.session_file import CREDENTIALS, token_for
from evergrant.origins import ServerAddress, is_loopback, origin_of, read_key_file
from evergrant.retries import DEADLINE
from evergrant.sync_client import Evergrant
from evergrant.transport import ClientOptions

SETTINGS_FILE = "evergrant.env"
_ADDRESSES = ("EVERGRANT_URL", "EVERGRANT_GATEWAY_URL")
_KEYS = ("EVERGRANT_API_KEY", "EVERGRANT_API_KEY_FILE")


def environment(url: str | None = None) -> Mapping[str, str]:
    """The process's variables; where none names a server, and no `url`, also those of `evergrant.env`.

    The file's URL has to be of this machine: a credential from elsewhere is sent there too. Its own
    credential counts where the process has none. Raises BadRequest for a file that others can read.
    """
    env = dict(os.environ)
    path = Path(SETTINGS_FILE)
    if url or env.get("EVERGRANT_URL") or not path.is_file():
        return env
    values, status = _read(path)
    if "EVERGRANT_URL" not in values:
        return env  # the settings of a server
    _require_own(path, status)
    addresses = {name: values[name] for name in _ADDRESSES if name in values}
    for url in addresses.values():
        _require_this_machine(path, url)
    if any(env.get(name) for name in CREDENTIALS):
        return env | addresses
    return env | addresses | {name: values[name] for name in _KEYS if name in values}


def _read(path: Path) -> tuple[Mapping[str, str], os.stat_result]:
    """Lines of NAME=VALUE, as a shell reads them; `export` may stand before. And whose file was read."""
    values: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            for line in file:
                name, equals, value = line.strip().removeprefix("export ").partition("=")
                if equals and not name.startswith("#"):
                    values[name.strip()] = "".join(shlex.split(value, comments=True))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a line is not NAME=VALUE"
        why = f"{path.absolute()} can't be read: {reason}"
        repair = "Correct or remove it, or set EVERGRANT_URL."
        raise BadRequest(why, code="settings_file_unreadable", repair=repair) from None
    return values, status


def _require_own(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.getuid(), 0):
        why = f"{path.absolute()} belongs to another user"
        repair = "Set EVERGRANT_URL, or run the command in another folder."
        raise BadRequest(why, code="settings_file_open", repair=repair)
    if stat.S_IMODE(status.st_mode) & 0o077:
        why = f"other users can read {path.absolute()}"
        raise BadRequest(why, code="settings_file_open", repair=f"Run: chmod 600 {SETTINGS_FILE}")


def _require_this_machine(path: Path, url: str) -> None:
    try:
        host = httpx2.URL(url).host
    except httpx2.InvalidURL:
        host = ""
    if not is_loopback(host):
        why = f"{path.absolute()} names the server {url}, which is not this machine"
        repair = f"If it is meant, run: export EVERGRANT_URL={url}"
        raise BadRequest(why, code="settings_file_elsewhere", repair=repair)


_CONNECT_S = 5.0


def require_listener(url: str) -> None:
    """Raise Unreachable at once where no connection can be made: a command doesn't wait for a server."""
    _, host, port = origin_of(httpx2.URL(url))
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError as error:
        failed = httpx2.ConnectError("")
        failed.__cause__ = error
        raise transport_error(failed, url) from None


def line_to_copy(program: str, *arguments: str) -> str:
    """A command: with the path of this environment's program, if that is in the working folder."""
    installed = Path(sys.executable).with_name(program)
    beside = installed.is_relative_to(Path.cwd()) and installed.exists()
    return shlex.join([str(installed.relative_to(Path.cwd())) if beside else program, *arguments])


Found = TypeVar("Found")


def if_there(read: Callable[..., Found], *names: str) -> Found | None:
    """What has these names; None where nothing has. Raises EvergrantError."""
    try:
        return read(*names)
    except BadRequest as missing:
        if missing.code != "not_found":
            raise
        return None


_MOST = 500
_OF_AN_APP = {"permit": "permits ls", "key": "apps keys ls", "credential": "apps credentials ls"}


def name_what_is_missing(client: Evergrant, error: EvergrantError, key_file: Path | None) -> None:
    """Say which name of the call doesn't exist, for an admin; for others, which permit would be needed."""
    listed: dict[str, Callable[[], Iterable[Any]]] = {
        "app": client.apps,
        "integration": client.integrations,
        "webhook": client.webhooks,
        "issuer": client.trusted_issuers,
    }
    for kind, names_of in listed.items():
        name = error.context.get(kind)
        if not isinstance(name, str):
            continue
        try:
            known = [listed_one.name for listed_one in islice(names_of(), _MOST)]
        except EvergrantError:
            _name_the_permit(error, key_file)
            return
        if not known:  # to an app without the action admin
            _name_the_permit(error, key_file)
            return
        if name in known:
            continue
        near = get_close_matches(name, known, n=1)
        error.detail = f"there is no {kind} {name}"
        error.repair = f"Did you mean {near[0]}?" if near else f"evergrant {kind}s ls lists them."
        return
    for kind, list_them in _OF_AN_APP.items():
        if isinstance(name := error.context.get(kind), str) and (app := error.context.get("app")):
            error.detail = f"{app} has no {kind} {name}"
            error.repair = f"evergrant {list_them} {app} lists them."


def _name_the_apps_key(error: EvergrantError) -> None:
    """Name the key files beside `evergrant.env`, whose own key is an admin's: it leases no token."""
    if not Path(SETTINGS_FILE).exists() or any(os.environ.get(name) for name in _KEYS):
        return
    own = environment().get("EVERGRANT_API_KEY_FILE", "")
    files = sorted(path.name for path in Path.cwd().glob("*.key") if path.name != Path(own).name)
    if files:
        error.repair = f"With the app's own key: --api-key-file {files[0]}. {error.repair}"


def _name_the_permit(error: EvergrantError, key_file: Path | None) -> None:
    """Name the command that gives the permit. `init` and `apps key` write the key of an app into APP.key."""
    integration, subject = error.context.get("integration"), error.context.get("subject")
    app = key_file.stem if key_file is not None and key_file.suffix == ".key" else "APP"
    if isinstance(integration, str) and isinstance(subject, str):
        command = line_to_copy("evergrant", "apps", "permit", app, integration, "--subject", subject)
        error.repair = f"Check the names. If the app lacks a permit, an admin gives it: {command}"


def note_missing_integration(client: Evergrant, name: str) -> None:
    """Say on stderr that an integration isn't there yet, which is no failure."""
    if "*" in name:
        return
    try:
        known = [integration.name for integration in islice(client.integrations(), _MOST)]
    except EvergrantError:
        return
    if known and name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        print(f"evergrant: there is no integration {name} yet{meant}", file=sys.stderr)


_SAID_AT_S = 2.0


def _say(details: RetryDetails) -> None:
    """Tell on stderr that a call is tried again: the reader learns why the command takes its time."""
    until = details.waited_so_far + details.wait_for
    if details.waited_so_far < _SAID_AT_S <= until:
        limit = f"{DEADLINE.total_seconds():.0f} s"
        print(f"evergrant: trying for up to {limit}: {details.caused_by}", file=sys.stderr, flush=True)


_OTHER_SERVER = (
    f"Set EVERGRANT_API_KEY_FILE; or unset EVERGRANT_URL, and the server of {SETTINGS_FILE} is meant."
)


def show_error(error: EvergrantError) -> None:
    """One line on stderr: code, detail, repair, and the seconds to wait if the server named them."""
    line = f"evergrant: {error}"
    if error.retry_after is not None and "Try again in " not in line:
        line += f" Try again in {ceil(error.retry_after)} seconds."
    print(line, file=sys.stderr)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """The API key itself is no option: every process of the machine could read it."""

    output: Annotated[Format, Parameter(name=["--output", "-o"])] = Format.TABLE
    "As a table for people, as JSON or as YAML."

    url: str | None = None
    "Evergrant's URL; by default EVERGRANT_URL, or that of evergrant.env in this folder."

    api_key_file: Path | None = None
    "File with the app's API key; by default EVERGRANT_API_KEY(_FILE), evergrant.env or login."

    @contextmanager
    def client(self, **settings: Unpack[ClientOptions]) -> Generator[Evergrant]:
        """The client, once its server has accepted a connection. Raises EvergrantError."""
        with self._connected(settings) as client:
            try:
                yield client
            except EvergrantError as error:
                if error.code == "not_found":
                    name_what_is_missing(client, error, self.api_key_file)
                if error.code == "not_permitted" and self.api_key_file is None:
                    _name_the_apps_key(error)
                raise

    def _connected(self, settings: ClientOptions) -> Evergrant:
        url = self.address()
        require_listener(url)
        set_on_retry_hooks([_say])
        env = environment(self.url)
        key = read_key_file(self.api_key_file.expanduser()) if self.api_key_file else token_for(url, env)
        try:
            server = ServerAddress.from_settings(url, key, environ=env)
        except BadRequest as error:
            if error.code == "api_key_missing" and Path(SETTINGS_FILE).exists():
                error.repair = _OTHER_SERVER
            raise
        key, identity = server.api_key or None, server.identity
        known = ClientOptions(identity=identity, issuer=server.issuer, allow_plain_http=True)
        return Evergrant(server.url, key, **{**known, **settings})

    def address(self) -> str:
        """The server's URL alone, for commands that send no credential."""
        env = environment(self.url)
        return ServerAddress.from_settings(self.url, "none", environ=env).url


DEFAULTS = Options()
