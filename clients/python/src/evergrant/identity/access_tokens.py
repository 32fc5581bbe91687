"""Access tokens of the token endpoint (RFC 6749 section 4.4): one for a client, renewed before its end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from httpx2 import Response

from evergrant.api.call import error_from
from evergrant.api.fields import Fields
from evergrant.errors import BadRequest, EvergrantError, ProtocolError

TOKEN_PATH = "/oauth/token"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
GRANT: Mapping[str, str] = {"grant_type": "client_credentials"}
_RENEW_BEFORE_S = 60.0


@dataclass(frozen=True, slots=True)
class AccessToken:
    """`renew_at` is of the monotonic clock: a minute before the end, or half-way of a shorter life."""

    value: str = field(repr=False)
    renew_at: float


class TokenHolder:
    """The token in use. Threads may share one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._token: AccessToken | None = None

    def current(self) -> str | None:
        """The token, unless it is due for renewal."""
        token = self._token
        return token.value if token is not None and self._clock() < token.renew_at else None

    def keep(self, response: Response, asked_at: float) -> str:
        """The token of a response to a request sent at `asked_at`. Raises EvergrantError."""
        if response.status_code != 200:
            raise _refusal(response)
        body = Fields.of_json(response.content, "access token")
        value, lifetime = body.text("access_token"), body.read("expires_in", float)
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ProtocolError("the access token can't stand in a header")
        self._token = AccessToken(value, asked_at + max(lifetime - _RENEW_BEFORE_S, lifetime / 2))
        return value

    def now(self) -> float:
        return self._clock()

    def drop(self, refused: str) -> None:
        """Forget a token that the API refused, unless a newer one is there."""
        with self._lock:
            if self._token is not None and self._token.value == refused:
                self._token = None


def _refusal(response: Response) -> EvergrantError:
    """The error of RFC 6749 section 5.2, or what else the response says."""
    try:
        body = Fields.of_json(response.content, "refusal")
        error = body.text("error")
    except ProtocolError:
        return error_from(response)
    return BadRequest(
        body.text_or_none("error_description") or "",
        code=error,
        repair="Check the app's id, its key, the credential that is registered for it, and the issuer.",
        status=response.status_code,
    )
