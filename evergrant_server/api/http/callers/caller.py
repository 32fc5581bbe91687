"""Who sends a request: an app, with what proved it, its permits, and what narrows these."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import chain

from evergrant_server.api.http.callers.delegated import DelegatedAuthority
from evergrant_server.core.access import App, AuthenticationMethod, Permit
from evergrant_server.core.ids import KeyId, Tenant
from evergrant_server.core.oauth.authorizations import TokenFamily
from evergrant_server.core.people.sessions import PersonSession


@dataclass(frozen=True)
class PresentedCredential:
    """What a caller proved its identity with, and until when that is accepted.

    `id` is that of the API key, or of the credential whose token it is. `confirmation`: what each request
    must prove as well (`cnf`, RFC 7800 section 3.1).
    """

    id: KeyId
    method: AuthenticationMethod
    valid_until: datetime
    confirmation: Mapping[str, str] | None = None

    def of(self, app: App) -> "PresentedCredential":
        """Accepted no longer than the app, where that is an agent."""
        ends = app.ends_at
        return self if ends is None else replace(self, valid_until=min(self.valid_until, ends))


@dataclass(frozen=True)
class Caller:
    """An authenticated app and its permits, read at the app's `revision`."""

    app: App
    credential: PresentedCredential
    permits: tuple[Permit, ...]
    digest: bytes = field(repr=False)  # of the credential as presented, to recognize it again
    session: PersonSession | None = None  # of a person, who stands in `app` by id and rights
    authorization: TokenFamily | None = None  # of a gateway's client, which narrows what `permits` allow
    delegated: DelegatedAuthority | None = None  # on whose behalf, which narrows what `permits` allow

    @property
    def tenant(self) -> Tenant:
        return self.app.tenant

    @cached_property
    def names_sources(self) -> bool:
        """Whether a permit looks at the caller's address."""
        return any(permit.sources is not None for permit in self.judging_permits)

    @property
    def judging_permits(self) -> tuple[Permit, ...]:
        """All that a request is judged by: also those of the apps that the caller acts under."""
        links = () if self.delegated is None else self.delegated.links
        return tuple(chain.from_iterable(it.permits for it in links)) if links else self.permits

    @property
    def by(self) -> str:
        return f"app:{self.app.name}" if self.session is None else self.session.by
