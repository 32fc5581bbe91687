"""As which app clients of the gateways act, and where the persons behind them log in."""

from datetime import datetime

from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.ids import AppId, ClientLoginId, TenantRow
from evergrant_server.core.integrations import Integration, require_pinned_login
from evergrant_server.core.oauth.clients import ClientKind


class ClientLogin(TenantRow):
    """A tenant's rule. Each change gives it another `id`, which ends what was authorized before.

    `registration` and `documents`: whether clients count that registered themselves, or are a metadata
    document. Those of an admin do always. `device`: whether a client may have its person decide on another
    device (RFC 8628).
    """

    id: ClientLoginId
    app_id: AppId
    integration: str  # our client at the tenant's issuer
    issuer: str  # pinned: who administers that integration alone can't name other persons by another issuer
    claim: LoginClaim = LoginClaim.SUB
    domains: tuple[str, ...] = ()
    registration: bool = True
    documents: bool = True
    device: bool = False
    changed_at: datetime

    @property
    def login(self) -> LoginRule:
        return LoginRule(
            integration=self.integration, issuer=self.issuer, claim=self.claim, domains=self.domains
        )

    def takes(self, kind: ClientKind) -> bool:
        """Whether clients of this kind may be used."""
        match kind:
            case ClientKind.REGISTERED:
                return self.registration
            case ClientKind.DOCUMENT:
                return self.documents
            case ClientKind.ADMIN:
                return True

    def issuer_integration(self, integration: Integration | None) -> Integration:
        """The integration at whose issuer persons log in. Raises Failure CLIENT_REJECTED with the repair."""
        return require_pinned_login(self.login, integration, "Users of MCP clients")
