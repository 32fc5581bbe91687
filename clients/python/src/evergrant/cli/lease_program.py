"""The program that `evergrant init` writes: one lease, and what to do without one. It holds no secret."""

import json
import os
import re
from pathlib import Path

from evergrant.errors import BadRequest

_FIRST_LINE = '"""Written by evergrant init'
_PROGRAM = '''{first}: one lease of a token. With a URL of the provider's API, it gets that too.

The app's key is in a file of its own.
"""

import sys
from datetime import timedelta
from pathlib import Path
from urllib.parse import urljoin

import httpx2

from evergrant import ConsentRequired, Evergrant, EvergrantError, Lease

NAMES = {name}, {subject}  # the integration, and the person who consented
KEY_FILE = Path(__file__).parent / {key}
CONNECT = {connect}

try:
    with Evergrant(
        {url},
        KEY_FILE.read_text().strip(),
        deadline=timedelta(seconds=5),
    ) as evergrant:
        match evergrant.lease(*NAMES):
            case Lease() as lease:
                # lease.access_token goes into the header Authorization: Bearer ...
                print("a token with", " ".join(lease.scopes) or "the server's own scopes")
                print("valid until", lease.expires_at or "it is revoked")
            case ConsentRequired() as needed:
                failed = "\\nIf one has failed, an admin sees why: evergrant connections get "
                sys.exit("no consent yet. Run: " + CONNECT + failed + needed.connection_id)
        for url in sys.argv[1:]:
            # with the token, and once more with a newer one after a 401
            answer = httpx2.get(url, auth=evergrant.auth(*NAMES, origins=urljoin(url, "/")))
            print(answer.status_code, answer.text[:1000])
except (EvergrantError, httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
    sys.exit(str(error))
'''


def written_program(url: str, key: str, name: str, subject: str, connect: str) -> str:
    """Python, with each value as a literal."""
    values = {"url": url, "key": key, "name": name, "subject": subject, "connect": connect}
    return _PROGRAM.format(
        first=_FIRST_LINE, **{name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    )


def _as_written() -> re.Pattern[str]:
    """Each program that `written_program` writes: the template with any literals as its values."""
    values = re.escape(written_program("@url@", "@key@", "@name@", "@subject@", "@connect@"))
    return re.compile(re.sub(r'"@\w+@"', lambda _: r'"(?:[^"\\]|\\.)*"', values))


_WRITTEN = _as_written()


def require_replaceable(path: Path) -> None:
    """Raise BadRequest for a file that this command did not write, or can't write."""
    if not os.access(path.parent, os.W_OK):
        why = f"{path.parent.absolute()} is no folder that you may write to"
        raise BadRequest(why, code="file_error", repair="Name another file: --out FOLDER/lease.py.")
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.startswith(_FIRST_LINE):
        why = f"{path} is there already, and evergrant init did not write it"
    elif not _WRITTEN.fullmatch(text):
        why = f"{path} has been changed since evergrant init wrote it, and stays as it is"
    else:
        return
    raise BadRequest(why, code="file_exists", repair="Name another file: --out other.py.")
