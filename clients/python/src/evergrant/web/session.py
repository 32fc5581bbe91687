"""What the pieces share: the verifier in the app's session, and what a browser is answered."""

import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypedDict
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from evergrant.api.models import Connection
from evergrant.errors import EvergrantError, ReconnectNeeded
from evergrant.models import State, challenge_of, new_verifier
from evergrant.web.settings_page import Notice, Offer, connections_body, failure

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


class Headers(Protocol):
    """A request's headers in any framework; their names have no case."""

    def get(self, name: str, /) -> str | None: ...


class Asks(TypedDict):
    """The options of `connect` with which a piece begins a consent."""

    label: str
    return_to: str
    challenge: str


class Reply(NamedTuple):
    """A response: `body` for a script of the page, `location` for a browser that has sent a form."""

    status: int
    body: Mapping[str, Any] | None = None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class AppPages:
    """Two pages of the app: where a consent ends, with what is offered there, and where a person logs in."""

    after: str
    login: str
    offers: Sequence[Offer] = ()

    def refused(self, headers: Headers, person: str | None) -> Reply | None:
        """The answer to a request of another site's page, or of a browser without a login; else None."""
        if is_cross_site(headers):
            return Reply(403, Notice("failed", None, "The request came from another site.")._asdict())
        if person:
            return None
        login = self.logging_in(self.after)
        if not _is_script(headers):
            return Reply(303, location=login)
        return Reply(401, {**Notice("failed", None, "Your login is over.")._asdict(), "url": login})

    def shown(
        self,
        connections: Iterable[Connection],
        query: Mapping[str, str],
        sent_back: Mapping[str, str] | None = None,
    ) -> Reply:
        """What the page shows. `sent_back` are headers that its script sends with each POST."""
        return Reply(200, connections_body(self.offers, connections, query.get("evergrant"), sent_back))

    def opened(self, connection: Connection, headers: Headers) -> Reply:
        """Where the person goes on: to the connect link, or back where there is nothing to consent to."""
        return _leading_to(connection.connect_url or self.ended(connection), headers)

    def not_opened(self, error: EvergrantError, integration: str, headers: Headers) -> Reply:
        """Why no consent was begun, or no connection ended."""
        url = self.failed(error)
        if not _is_script(headers) or url == _connect_page(error):
            return _leading_to(url, headers)
        return self.trouble(error, integration)

    def disconnected(self, headers: Headers) -> Reply:
        """A script lists the connections again; a form leads back to the page."""
        return Reply(204) if _is_script(headers) else Reply(303, location=self.after)

    def trouble(self, error: EvergrantError, integration: str | None = None) -> Reply:
        """What a script of the page tells the person of an error."""
        status = 409 if isinstance(error, ReconnectNeeded) else 503
        return Reply(status, failure(error, self.offers, integration)._asdict())

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
        return _connect_page(error) or _with(self.after, evergrant=error.code)

    def logging_in(self, path: str) -> str:
        """The login page. `path` is where to come back to, with its query."""
        return _with(self.login, next=path)


def is_to_end(connection: Connection, label: str) -> bool:
    """Whether a person who disconnects this label means the connection."""
    return connection.label == label and not (connection.state.final or connection.state is State.REVOKING)


def is_cross_site(headers: Headers) -> bool:
    """Whether a page of another origin sends the request. Browsers say so with every POST: by Sec-Fetch-Site,
    or where that is missing by Origin. What names neither is no browser."""
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc != headers.get("Host")


def _connect_page(error: EvergrantError) -> str | None:
    return error.connect_url if isinstance(error, ReconnectNeeded) else None


def _is_script(headers: Headers) -> bool:
    return "application/json" in (headers.get("Accept") or "")


def _leading_to(url: str, headers: Headers) -> Reply:
    """A script is given the address: a policy for forms would apply to the redirect."""
    return Reply(200, {"url": url}) if _is_script(headers) else Reply(303, location=url)


def _with(url: str, **added: str) -> str:
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *added.items()])
    return urlunsplit(parts._replace(query=query))
