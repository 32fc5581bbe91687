"""What a way of proving an app's identity is given and returns. Each is one function, listed in `methods`.

A method is an `Authenticate`: `await authenticate(tx, request) -> ProvenClient`.

- `tx` is a read transaction: nothing but the store may be awaited in it.
- It raises TokenRefused with `invalid_client` and a text that names the rule which refused. First the rules
  that need no row are judged. What is left has one text, UNPROVEN, for an unknown app, an app without a
  fitting credential and a wrong proof alike: a stranger doesn't learn which apps exist. `claimed` is the app
  that the request names, for the audit record of the refusal.
- `registered` finds the app and its credentials of one method. Rows that were changed by hand are left out.

The endpoint does the rest: a disabled app, `once`, the token with its MAC, its audit record and the metrics.

To add a method: a member of `core.access.AuthenticationMethod`; its parameters in
`api.apps.credential_parameters`; a module here with the function; an entry in `methods`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from evergrant_server.access.context import ApiContext
from evergrant_server.core.access import App, AppCredential, AuthenticationMethod
from evergrant_server.core.ids import AppId, is_id
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority

UNPROVEN = "No registered credential of this client is proven by the request."


class TokenRefused(Exception):
    """An error of RFC 6749 section 5.2, with a description that quotes nothing of the request.

    `recorded` is for the audit log alone: which rule of which credential refused.
    """

    def __init__(
        self, error: str, description: str, *, claimed: str | None = None, recorded: str | None = None
    ) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.recorded = (recorded or description)[:500]
        self.claimed = AppId(claimed) if claimed is not None and is_id(claimed, "app") else None


def invalid_client(
    description: str, claimed: str | None = None, *, recorded: str | None = None
) -> TokenRefused:
    return TokenRefused("invalid_client", description, claimed=claimed, recorded=recorded)


@dataclass(frozen=True)
class ClientTokenRequest:
    """A token request: each parameter stands in it once and isn't empty (RFC 6749 section 3.2)."""

    api: ApiContext
    http: Request
    parameters: Mapping[str, str]
    now: datetime

    @property
    def issuer(self) -> str:
        """The `aud` of every assertion."""
        return self.api.settings.public_url


@dataclass(frozen=True)
class ProvenClient:
    """An app whose identity is proven, and what its token is limited by.

    `expires_at` is the end of what proved it, where the token must end with that. `confirmation` becomes the
    token's `cnf`. `once` is an assertion's `jti`, with its end, when it counts once.
    """

    app: App
    credential: AppCredential
    expires_at: datetime | None = None
    confirmation: dict[str, str] | None = None
    once: tuple[str, datetime] | None = None


Authenticate = Callable[[Transaction, ClientTokenRequest], Awaitable[ProvenClient]]


async def registered(
    tx: Transaction, app_id: str, *methods: AuthenticationMethod
) -> tuple[App, list[AppCredential]] | None:
    """The app with this id in whichever tenant and its credentials of `methods`; None for an unknown app.

    A credential that was changed by hand is left out, with an alarm. Raises Failure AUTHORITY_BROKEN for an
    app that was.
    """
    app = await tx.credentials.app(AppId(app_id))
    if app is None:
        return None
    good, broken = await tx.credentials.authentic_of_app(app.tenant, app.id)
    for failure in broken:
        report_broken_authority(failure)
    return app, [it for it in good if it.method in methods]
