"""The two files from which other commands learn where `dev` runs Evergrant. Neither holds a secret.

`dev.env` in the data folder has the settings of the server, for its other commands, such as `doctor`.
`evergrant.env` in the working directory has the API's address and the admin key's file, for `evergrant`.
"""

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from evergrant_server.cli.machine import write_private
from evergrant_server.cli.process import settings_environment
from evergrant_server.settings import SETTINGS_FILE, Settings, load_settings
from evergrant_server.settings.types import without_password

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
_OF_THE_PROCESSES = ("EVERGRANT_LOG_LEVEL", "EVERGRANT_LOG_FORMAT", "EVERGRANT_API_WORKERS")
_OTHER_TEMPORAL = ("TEMPORAL_ADDRESS", "TEMPORAL_PROFILE")
_WRITTEN = "# Written by `dev` of Evergrant; the next start writes it anew.\n"


def server_file(data_dir: Path) -> Path:
    return data_dir / "dev.env"


def write(settings: Settings) -> Path | None:
    """Write both files (mode 0600). Returns the second; None where a file of the operator's has its place.

    It is written where the data folder is in the working directory, as it is by default.
    """
    values = settings_environment(settings)
    url = values.get("EVERGRANT_DATABASE_URL", "")
    if without_password(url) != url:
        del values["EVERGRANT_DATABASE_URL"]  # each command gets it as this one did
    server = {name: value for name, value in values.items() if name not in _OF_THE_PROCESSES}
    server["EVERGRANT_TEMPORAL_UI_PORT"] = str(settings.temporal_ui_port)
    client = {
        "EVERGRANT_URL": local_url(settings),
        "EVERGRANT_GATEWAY_URL": local_gateway_url(settings),
        "EVERGRANT_API_KEY_FILE": str(settings.data_dir / "admin.key"),
    }
    _write(server_file(settings.data_dir), client | server)
    path = Path(SETTINGS_FILE).absolute()
    if settings.data_dir.parent != path.parent or not _is_ours(path):
        return None
    _write(path, client)
    return path


def _write(path: Path, values: dict[str, str]) -> None:
    write_private(
        path, _WRITTEN + "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    )


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8").startswith(_WRITTEN)
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def read(path: Path) -> dict[str, str]:
    """The variables of a file that `write` wrote."""
    lines = [line.partition("=") for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: "".join(shlex.split(value)) for name, equals, value in lines if equals and name[0] != "#"}


def with_remembered_hosts(settings: Settings) -> Settings:
    """With the hosts that `dev` was last allowed to reach, where this start names none. An empty
    EVERGRANT_EGRESS_ALLOW names none either, and forgets them.
    """
    path = server_file(settings.data_dir)
    if "egress_allow" in settings.model_fields_set or not _applies(path, settings):
        return settings
    hosts = read(path).get("EVERGRANT_EGRESS_ALLOW", "").split(",")
    return settings.__replace__(egress_allow=tuple(filter(None, hosts)))


def local_url(settings: Settings) -> str:
    """The API's address on this machine, for commands that run on it."""
    host = _ANY_ADDRESS.get(settings.host, settings.host)
    return f"http://{host}:{settings.port}"


def local_gateway_url(settings: Settings) -> str:
    """The gateway's address on this machine."""
    host = _ANY_ADDRESS.get(settings.gateway_host, settings.gateway_host)
    return f"http://{host}:{settings.gateway_port}"


def load_settings_of_dev(**flags: Any) -> Settings:
    """The settings of a command that works on the installation that `dev` runs here, where it does.

    Flags, the environment and the settings file of the working directory win over `dev.env`. Raises
    BadSettings.
    """
    settings = load_settings(**flags)
    path = server_file(settings.data_dir)
    return load_settings(**flags, _env_file=(path, SETTINGS_FILE)) if _applies(path, settings) else settings


def _applies(path: Path, settings: Settings) -> bool:
    """Whether the file is of this data folder, and no other user can have written it.

    A copy of the folder has the file of the original. Temporal's own variables name another server.
    """
    if any(os.environ.get(name) for name in _OTHER_TEMPORAL):
        return False
    with suppress(OSError, ValueError):
        facts = path.stat()
        private = facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
        return private and read(path).get("EVERGRANT_DATA_DIR") == str(settings.data_dir)
    return False
