"""A token that the app's platform keeps in a file: of Kubernetes, of a SPIFFE helper, of a CI job."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from evergrant.errors import BadRequest

_TYPE = "urn:ietf:params:oauth:client-assertion-type:"


class WorkloadToken:
    """Reads the file for every token request: platforms replace it before the token in it ends.

    A token whose subject is a SPIFFE ID is sent as a JWT-SVID. Raises BadRequest for an unreadable file.
    """

    def __init__(self, app_id: str, file: Path) -> None:
        self.app_id = app_id
        self._file = file

    def __repr__(self) -> str:
        return f"WorkloadToken({self.app_id!r}, {str(self._file)!r})"

    def __call__(self, issuer: str) -> Mapping[str, str]:
        token = self._read()
        kind = "jwt-spiffe" if _subject(token).startswith("spiffe://") else "jwt-bearer"
        return {"client_id": self.app_id, "client_assertion_type": _TYPE + kind, "client_assertion": token}

    def _read(self) -> str:
        try:
            token = self._file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a token"
            raise _unusable(f"{self._file}: {reason}") from None
        if token.count(".") != 2:
            raise _unusable(f"{self._file} holds no token")
        return token


def _subject(token: str) -> str:
    """The `sub` of a token, which nothing is believed about but its form."""
    payload = token.split(".")[1]
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return ""
    subject = cast("dict[str, Any]", claims).get("sub") if isinstance(claims, dict) else None
    return subject if isinstance(subject, str) else ""


def _unusable(reason: str) -> BadRequest:
    return BadRequest(
        f"the workload's token can't be used: {reason}",
        code="workload_token_unusable",
        repair="Let EVERGRANT_WORKLOAD_TOKEN_FILE name the file with the token of the app's platform.",
    )
