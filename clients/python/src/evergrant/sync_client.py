"""`Evergrant`: the blocking client. A thin shell around `calls`, `replies` and `patience`."""

import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import httpx2

from evergrant import calls
from evergrant.calls import Answer, Call
from evergrant.models import App, AuditItem, Connection, ConsentRequired, Lease, Provider, State
from evergrant.patience import DEADLINE, Patience, has_settled
from evergrant.replies import Page
from evergrant.sending import failure_of_transport, reply_of, request_of
from evergrant.target import Target


class Evergrant:
    """Evergrant over HTTP, for code that blocks. A context manager; threads may share one.

    `url` and `api_key` default to EVERGRANT_URL and EVERGRANT_API_KEY (or the file named by
    EVERGRANT_API_KEY_FILE). `deadline` bounds each call with all its attempts. Plain http is
    for this machine only, unless `allow_plain_http`. Every method raises `EvergrantError`.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        deadline: timedelta = DEADLINE,
        tls: ssl.SSLContext | None = None,
        allow_plain_http: bool = False,
    ) -> None:
        self._target = Target.find(url, api_key, allow_plain_http=allow_plain_http)
        self._deadline = deadline
        # Neither a proxy nor a .netrc of the environment gets to see the API key.
        self._http = httpx2.Client(verify=tls or True, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def lease(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        min_ttl: timedelta | None = None,
        scopes: tuple[str, ...] | None = None,
    ) -> Lease | ConsentRequired:
        """A token that is valid for at least `min_ttl`, or where to send the subject."""
        return self._do(calls.lease(integration, subject, label=label, min_ttl=min_ttl, scopes=scopes))

    def connect(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        scopes: tuple[str, ...] | None = None,
        return_to: str | None = None,
    ) -> Connection:
        """Open a consent. The subject finishes it at the connection's `connect_url`."""
        return self._do(calls.connect(integration, subject, label=label, scopes=scopes, return_to=return_to))

    def connection(self, connection_id: str) -> Connection:
        return self._do(calls.connection(connection_id))

    def connections(
        self,
        *,
        integration: str | None = None,
        provider: str | None = None,
        subject: str | None = None,
        state: State | None = None,
        expiring_before: datetime | None = None,
    ) -> Iterator[Connection]:
        """Every connection this app may see, page by page as it is read."""
        return self._items(
            calls.connections(
                integration=integration,
                provider=provider,
                subject=subject,
                state=state,
                expiring_before=expiring_before,
            )
        )

    def refresh(self, connection_id: str) -> Connection:
        """Make the grant newer than it is now."""
        return self._do(calls.refresh(connection_id))

    def reauthorize(
        self, connection_id: str, *, scopes: tuple[str, ...] | None = None, return_to: str | None = None
    ) -> Connection:
        """Open a new consent for the same connection; what it holds stays until that is given."""
        return self._do(calls.reauthorize(connection_id, scopes=scopes, return_to=return_to))

    def revoke(self, connection_id: str, reason: str) -> Connection:
        """Revoke. From the answer on no lease leaves; the state is `revoked` once the provider agrees."""
        return self._do(calls.revoke(connection_id, reason))

    def wait_for_consent(
        self,
        connection_id: str,
        timeout: timedelta,
        *,
        newer_than: int = 0,
        every: timedelta = timedelta(seconds=2),
    ) -> Connection:
        """The connection, once the subject has consented.

        After `reauthorize`, pass its `generation` as `newer_than`. Raises TimeoutError after
        `timeout`, ReconnectNeeded when the consent was denied, expired or the connection revoked.
        """
        patience = Patience(timeout)
        while True:
            found = self.connection(connection_id)
            if has_settled(found, newer_than):
                return found
            time.sleep(patience.pause(every))

    def audit(self, connection_id: str) -> Iterator[AuditItem]:
        """The connection's audit records, page by page as they are read."""
        return self._items(calls.audit(connection_id))

    def providers(self) -> Iterator[Provider]:
        return self._items(calls.providers())

    def apps(self) -> Iterator[App]:
        return self._items(calls.apps())

    def _do(self, call: Call[Answer]) -> Answer:
        patience = Patience(self._deadline)
        for attempt in patience.attempts():
            with attempt:
                try:
                    response = self._http.request(**request_of(call, self._target, patience))
                except httpx2.RequestError as error:
                    raise failure_of_transport(error) from error
                return call.read(reply_of(response))
        raise AssertionError("an attempt returns or raises")

    def _items(self, call: Call[Page[Answer]]) -> Iterator[Answer]:
        following: Call[Page[Answer]] | None = call
        while following is not None:
            page = self._do(following)
            yield from page.items
            following = calls.after(following, page)
