"""`evergrant.env`: where the server of this folder is, and a credential for it. `make dev` writes it."""

import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

import httpx2

from evergrant.errors import BadRequest
from evergrant.identity.session_file import CREDENTIALS
from evergrant.origins import is_loopback

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
    found, status = _read(path)
    if "EVERGRANT_URL" not in found:
        return env  # the settings of a server
    _require_own(path, status)
    addresses = {name: found[name] for name in _ADDRESSES if name in found}
    for url in addresses.values():
        _require_this_machine(path, url)
    if any(env.get(name) for name in CREDENTIALS):
        return env | addresses
    return env | addresses | {name: found[name] for name in _KEYS if name in found}


def _read(path: Path) -> tuple[Mapping[str, str], os.stat_result]:
    """Lines of NAME=VALUE, as a shell reads them; `export` may stand before. And whose file was read."""
    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            for line in file:
                name, equals, value = line.strip().removeprefix("export ").partition("=")
                if equals and not name.startswith("#"):
                    found[name.strip()] = "".join(shlex.split(value, comments=True))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a line is not NAME=VALUE"
        why = f"{path.absolute()} can't be read: {reason}"
        repair = "Correct or remove it, or set EVERGRANT_URL."
        raise BadRequest(why, code="settings_file_unreadable", repair=repair) from None
    return found, status


def _require_own(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.getuid(), 0):
        why = f"{path.absolute()} belongs to another user"
        repair = "Set EVERGRANT_URL, or run evergrant in another folder."
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
