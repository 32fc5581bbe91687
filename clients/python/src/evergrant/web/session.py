"""What the pieces share: the verifier in the app's session, and the addresses that the browser is sent to."""

import logging
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from evergrant.api.models import Connection
from evergrant.errors import EvergrantError, ReconnectNeeded
from evergrant.models import State, challenge_of, new_verifier

log = logging.getLogger("evergrant.web")

VERIFIER = "evergrant_verifier"
_ERROR_CODE = re.compile("[a-z]{1,20}(_[a-z]{1,20}){0,4}")

Session = MutableMapping[str, Any]


def challenge_in(session: Session) -> str:
    """The challenge for `connect` or `reauthorize`, of the session's verifier.

    One verifier serves a whole session: consents in two tabs don't disturb each other.
    """
    if VERIFIER not in session:
        session[VERIFIER], _ = new_verifier()
    return challenge_of(session[VERIFIER])


@dataclass(frozen=True, slots=True)
class ConsentReturn:
    """What `confirm` needs, once the browser is back."""

    connection_id: str
    code: str
    verifier: str | None

    @classmethod
    def read(cls, query: Mapping[str, str], session: Session) -> "ConsentReturn | None":
        """None without a code: the subject declined, or the integration's `binding` is `oidc` or `none`."""
        code, connection_id = query.get("evergrant_code"), query.get("connection_id")
        if not code or not connection_id:
            return None
        return cls(connection_id, code, session.get(VERIFIER))


@dataclass(frozen=True, slots=True)
class AppPages:
    """Two pages of the app: where a consent ends, and where a person logs in."""

    after: str
    login: str

    def ended(self, connection: Connection) -> str:
        """The page after a consent: with `active`, or the state or reason that came instead."""
        return _with(self.after, evergrant=connection.reason or connection.state.value)

    def ended_without_code(self, query: Mapping[str, str]) -> str:
        """The page after a consent that needs no confirmation, was declined, or has failed: with the code of
        the failure, if the browser brings one. The query is untrusted."""
        state, code = query.get("state", ""), query.get("error", "")
        told = state if state in set(State) else code if _ERROR_CODE.fullmatch(code) else "failed"
        return _with(self.after, evergrant=told)

    def failed(self, error: EvergrantError) -> str:
        """The page after a consent, with the error's code; or the connect page, where that has more to say:
        to try again (`confirm_expired`), or which account came (`account_mismatch`).
        """
        log.warning("a consent failed: %s", error)
        if isinstance(error, ReconnectNeeded) and error.connect_url:
            return error.connect_url
        return _with(self.after, evergrant=error.code)

    def logging_in(self, path: str) -> str:
        """The login page. `path` is where to come back to, with its query."""
        return _with(self.login, next=path)


def _with(url: str, **added: str) -> str:
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *added.items()])
    return urlunsplit(parts._replace(query=query))
