"""Everything the client raises, named for who repairs it.

    EvergrantError
    ├── ReconnectNeeded       the subject has to consent (again)
    │   └── ConsentTimeout    the subject did not consent in time; also a TimeoutError
    ├── ClientMisconfigured   the integration's admin has to correct the OAuth client
    ├── ProviderUnavailable   time: the provider is down or asks to slow down
    ├── Denied                the permit's admin has to allow the request
    ├── PlatformUnavailable   Evergrant's operator: store, keys, audit, Temporal
    ├── BadRequest            you: the call or the client's own settings are wrong
    ├── Unreachable           the network, or a gateway in front of Evergrant
    └── ProtocolError         another server, or another version, answered

ReconnectNeeded to BadRequest come from a problem document (RFC 9457), whose `kind` is the class's
name and whose `code` is stable. No message holds a token, a key or a connect link.
"""

from collections.abc import Mapping
from math import ceil

_LATER = "Try again later."


class EvergrantError(Exception):
    """Base class. `code` is stable, `detail` is for people, `repair` says what ends the failure.

    `status` is the HTTP status, None without a response. `retry_after` is in seconds, None when the
    server named no time. `context` holds the problem document's further members.
    """

    default_code = "unknown"
    default_repair = "Read the detail."

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        repair: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        context: Mapping[str, object] | None = None,
    ) -> None:
        self.code = code or self.default_code
        self.detail = detail
        self.repair = repair or self.default_repair
        self.status = status
        self.retry_after = retry_after
        self.context: Mapping[str, object] = dict(context or {})
        super().__init__(detail)

    def __str__(self) -> str:
        """`code: detail (repair)` with the wrong field and the wait, on one line without control letters."""
        detail, wrong = f": {self.detail}" if self.detail else "", self._text("field")
        if wrong and wrong not in detail:
            detail = f": {wrong}{detail}"
        repair = self.repair
        if self.retry_after is not None:
            repair = repair.replace(_LATER, f"Try again in {ceil(self.retry_after)} seconds.")
        text = f"{self.code}{detail} ({repair})"
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def _text(self, name: str) -> str | None:
        value = self.context.get(name)
        return value if isinstance(value, str) else None


class ReconnectNeeded(EvergrantError):
    """The subject has to consent, or consent again."""

    default_code = "consent_required"
    default_repair = "Send the subject to the connection's connect link."

    @property
    def connection_id(self) -> str | None:
        return self._text("connection_id")

    @property
    def connect_url(self) -> str | None:
        """For the subject alone: it shows what is requested, and from whom. Never log it."""
        return self._text("connect_url")


class ConsentTimeout(ReconnectNeeded, TimeoutError):
    """The subject did not finish the consent within the timeout of `wait_for_consent`."""

    default_code = "consent_timeout"
    default_repair = "Ask the subject to finish, then wait again."


class ClientMisconfigured(EvergrantError):
    """The provider refuses the OAuth client, or the provider's definition is wrong."""

    default_repair = "Have the integration's admin correct it."


class ProviderUnavailable(EvergrantError):
    """The provider can't answer now. `retry_after` is in seconds."""

    default_repair = _LATER


class Denied(EvergrantError):
    """No permit of this app allows the request."""

    default_repair = "Have the permit's admin allow it."


class PlatformUnavailable(EvergrantError):
    """Evergrant itself can't answer now. No token was handed out."""

    default_repair = "Try again; if it stays, tell Evergrant's operator."


class BadRequest(EvergrantError):
    """The call, the credential or the client's settings are wrong."""

    default_repair = "Correct the call or the client's settings."


class Unreachable(EvergrantError):
    """No response arrived, or a gateway answered in Evergrant's place."""

    default_code = "unreachable"
    default_repair = "Check EVERGRANT_URL and that Evergrant is running."


class ProtocolError(EvergrantError):
    """The response is not from this version of Evergrant. The message does not quote it."""

    default_code = "protocol_error"
    default_repair = "Check that EVERGRANT_URL is Evergrant's, and that client and server versions match."


KINDS: Mapping[str, type[EvergrantError]] = {
    kind.__name__: kind
    for kind in (
        ReconnectNeeded,
        ClientMisconfigured,
        ProviderUnavailable,
        Denied,
        PlatformUnavailable,
        BadRequest,
    )
}
