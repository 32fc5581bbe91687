"""The sessions of `evergrant login`, one for each server, in a file that its user alone can read."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from typing import cast

from evergrant.errors import BadRequest

CREDENTIALS = ("EVERGRANT_API_KEY", "EVERGRANT_API_KEY_FILE", "EVERGRANT_APP_ID")  # an app's go first


def session_file() -> Path:
    """`evergrant/sessions.json` in the user's folder of configurations."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "evergrant" / "sessions.json"


def token_for(url: str | None, environ: Mapping[str, str]) -> str | None:
    """The token of the login at this server, unless the environment names an app's credential."""
    if any(environ.get(name) for name in CREDENTIALS):
        return None
    return _read().get((url or "").rstrip("/"))


def keep_token(url: str, token: str | None) -> None:
    """Keep the token of a login, in place of the one before; None: forget it."""
    kept = {name: value for name, value in _read().items() if name != url}
    if token is not None:
        kept[url] = token
    path = session_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = mkstemp(dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(kept, indent=2) + "\n")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _read() -> Mapping[str, str]:
    """Raises BadRequest for a file that other users can read or change."""
    path = session_file()
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise BadRequest(
                    f"other users can read {path}",
                    code="session_file_open",
                    repair=f"Run: rm {path}; evergrant login",
                )
            tokens: object = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        tokens = None
    if not isinstance(tokens, dict):
        why = f"{path} can't be read"
        raise BadRequest(why, code="session_file_unreadable", repair=f"Run: rm {path}; evergrant login")
    entries = cast(dict[str, object], tokens)
    return {name: value for name, value in entries.items() if isinstance(value, str)}
