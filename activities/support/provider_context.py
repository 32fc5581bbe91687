"""The provider context: rows, definition and client of one connection, loaded before any request."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE, ProofKey
from evergrant_server.core.connections.grant import FollowUp, Grant
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.integrations import NOTHING_PINNED, Endpoints, Integration, PinnedHosts
from evergrant_server.core.lifecycle.snapshot import grant_result_of
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.store import Store, Transaction
from evergrant_server.store.connections.context_rows import ContextRows
from evergrant_server.store.connections.grants import SealedTokens
from evergrant_server.store.integrations.integrations import SealedClient
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.client_auth import generate_client_secret
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import RefreshSpec
from providers.definition.templates import (
    assertion_audience,
    client_auth_of,
    integration_endpoints,
    params_from_metadata,
)
from providers.requests.dpop import require_dpop_algorithm, with_dpop_binding
from providers.requests.hosts import hosts_to_pin, require_definition_host, require_granted_host
from providers.requests.request_format import OAuthClient, ProviderAccess


@dataclass(frozen=True, kw_only=True)
class IssuerAccess(ProviderAccess):
    """An integration's provider without a connection: people log in there."""

    integration: Integration
    pins: PinnedHosts

    def require_host(self, url: str) -> None:
        require_definition_host(url, self.spec, self.integration, self.params, self.pins)


@dataclass(frozen=True, kw_only=True)
class ProviderContext(ProviderAccess):
    """Everything that a request for one connection needs. Its tokens are sealed.

    `params` are the integration's template parameters, and those of this connection's callback.
    """

    connection: Connection
    integration: Integration
    grant: Grant | None
    tokens: SealedTokens  # of `grant`: opened when they are sent
    leased_generation: int  # the newest that was leased; 0: none was
    redirect_uri: str
    other_client: OAuthClient | None = None  # during a rotation: with the other secret
    definition: Definition | None = None  # the tenant's version that `spec` is from
    previous_spec: ProviderSpec | None = None  # while `definition` is staged: the version before it
    announce_days: tuple[int, ...] | None = None  # see `GrantResult`
    # a staged version that isn't used: a success counts against it
    skipped_definition: Definition | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of the grant: they fill templates
    pins: PinnedHosts = NOTHING_PINNED
    asks_for_grant: bool = False  # a consent's requests, and tokens that aren't the grant's

    @property
    def provisional(self) -> bool:
        """True for a staged version: its refusals are tried again with the version before it."""
        return self.previous_spec is not None

    @property
    def access_token_exchange(self) -> RefreshSpec | None:
        """How the access token is exchanged for the next one; None: it is not."""
        flow, first = self.connection.flow, self.spec.post_token_exchange
        if not flow.may_refresh:
            return None
        if first is not None and self.grant is not None and self.grant.short_lived:
            return first
        return self.spec.refresh if self.spec.refreshes_with_access_token else None

    @property
    def spends_nothing(self) -> bool:
        """True when a refresh spends no credential: a lost reply costs another request."""
        return self.connection.flow.is_client_grant or self.access_token_exchange is not None

    @property
    def narrows(self) -> bool:
        """True when a refresh may bring a narrower bearer token beside the access token that there is."""
        bound = self.uses_dpop or self.grant is None or self.grant.token_type == DPOP_TOKEN_TYPE
        return not bound and self.spec.narrows_tokens(self.connection.flow)

    @property
    def renewable(self) -> bool:
        """True when new tokens are issued without a refresh token."""
        flow = self.connection.flow
        return flow.is_client_grant or (self.spec.refreshes_with_access_token and flow.may_refresh)

    @property
    def issues_short_lived_token(self) -> bool:
        """True when the first token is to be exchanged for a long-lived one."""
        return self.spec.post_token_exchange is not None and self.connection.flow.may_refresh

    @property
    def resources(self) -> tuple[str, ...]:
        """The resources of its tokens (RFC 8707), where a refresh token was granted for them."""
        connection = self.connection
        return connection.target.resources if connection.flow.uses_browser else ()

    @property
    def uses_dpop(self) -> bool:
        """True when its tokens are, or may be, bound to a DPoP key (RFC 9449)."""
        return self.spec.dpop or (self.previous_spec is not None and self.previous_spec.dpop)

    def client_of(self, current: Connection) -> Connection:
        """The connection as one whose grant this client has got: whose accounts are compared."""
        return current.__replace__(integration_id=self.integration.id)

    def with_proof_key(self, key: ProofKey) -> "ProviderContext":
        """The context with the DPoP key of its tokens."""
        other_client = replace(self.other_client, proof_key=key) if self.other_client else None
        return replace(self, client=replace(self.client, proof_key=key), other_client=other_client)

    def after_consent(self, granted: Connection, consent: Consent) -> Connection:
        """The connection with what was consented to, which the next consent asks for as well."""
        looks_up = self.spec.post_auth and granted.flow.is_bearer
        return granted.__replace__(
            requested_scopes=consent.scopes,
            slot_scopes=granted.slot_scopes | consent.slot_scopes,
            follow_up=FollowUp.LOOKING_UP if looks_up else None,
        )

    def require_host(self, url: str) -> None:
        """A grant's secrets go where it was granted; the requests for a grant go where the definition says,
        as far as that is pinned."""
        if self.asks_for_grant or self.pins.grant is None:
            return require_definition_host(url, self.spec, self.integration, self.params, self.pins)
        require_granted_host(url, self.integration, self.pins)

    def for_new_grant(self) -> "ProviderContext":
        """The context for requests that send none of the grant's secrets."""
        return replace(self, asks_for_grant=True)

    def hosts_to_pin(self, facts: Mapping[str, Any]) -> PinnedHosts:
        """The hosts of a new grant with these facts."""
        params = self.integration.params | params_from_metadata(self.spec, facts)
        return hosts_to_pin(self.spec, self.integration, params, self.pins)

    def grant_result(self, connection: Connection, grant: Grant) -> GrantResult:
        """The result that describes a stored grant."""
        return grant_result_of(connection, grant, self.integration.refresh, self.announce_days)

    def stored_result(self, connection: Connection, grant: Grant | None) -> GrantResult:
        """The result that describes what is stored, a live grant or none."""
        if connection.state is LifecycleState.ACTIVE and grant is not None:
            return self.grant_result(connection, grant)
        if connection.state is LifecycleState.REVOKING:
            return GrantResult(state=LifecycleState.REVOKING)
        return GrantResult(state=connection.state, failure=connection.reason or ErrorCode.CONSENT_REQUIRED)

    def without_staged_definition(self) -> "ProviderContext":
        """The context for what can't be tried twice: a staged version isn't relied on."""
        context = self.with_previous_definition() if self.provisional else self
        return replace(context, skipped_definition=None)

    def skipping_staged_definition(self) -> "ProviderContext":
        """The context by the version before the staged one, which the result counts against."""
        return replace(self.with_previous_definition(), skipped_definition=self.definition)

    def with_previous_definition(self) -> "ProviderContext":
        """The context by the version before the staged one. Raises as `load`."""
        assert self.previous_spec is not None
        return replace(self._with_spec(self.previous_spec, self.facts), definition=None, previous_spec=None)

    def with_facts(self, facts: Mapping[str, Any]) -> "ProviderContext":
        """The context for tokens with other facts, which may name another host. Raises as `load`."""
        return self._with_spec(self.spec, facts)

    def _with_spec(self, spec: ProviderSpec, facts: Mapping[str, Any]) -> "ProviderContext":
        endpoints = resolve_endpoints(spec, self.integration, facts)
        changed = {
            "auth": client_auth_of(spec, self.integration),
            "audience": assertion_audience(spec, endpoints),
        }
        return replace(
            self,
            spec=spec,
            params=self.integration.params | params_from_metadata(spec, facts),
            facts=facts,
            endpoints=endpoints,
            client=replace(self.client, **changed),
            other_client=replace(self.other_client, **changed) if self.other_client else None,
        )


def resolve_endpoints(spec: ProviderSpec, integration: Integration, facts: Mapping[str, Any]) -> Endpoints:
    try:
        return integration_endpoints(spec, integration, facts)
    except Failure as failure:  # the integration's admin can repair it
        raise Failure(ErrorCode.CLIENT_REJECTED, failure.detail) from None


class ProviderContextLoader:
    """Loads provider contexts. Every client credential is unwrapped here, before any intent."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        public_url: str,
        clock: Clock,
        announce_days: tuple[int, ...] | None = None,
    ) -> None:
        self._store = store
        self.registry = registry
        self._public_url = public_url
        self.announce_days = announce_days
        self._clock = clock

    async def load(
        self, tenant: Tenant, connection_id: ConnectionId, client_of: IntegrationId | None = None
    ) -> ProviderContext:
        """The context of a connection; `client_of`: with the client of another integration than has got its
        grant, for a consent to it, or to end a grant that it has got before.

        Raises Failure NOT_FOUND, CLIENT_REJECTED (its definition is gone or doesn't fit any more),
        AUTHORITY_BROKEN, KEY_UNAVAILABLE, SEAL_BROKEN or STORE_UNAVAILABLE.
        """
        try:
            async with self._store.read() as tx:
                rows = await tx.context_rows.connection(tenant, connection_id, client_of)
            if rows is None:
                raise Failure(ErrorCode.NOT_FOUND, f"there is no connection {connection_id}")
            context = self._context(rows)
        except Failure as failure:
            report_broken_authority(failure)
            raise
        state = context.connection.state
        over = state is LifecycleState.REVOKING or state.is_final
        if not context.uses_dpop or context.client.proof_key is not None or over:
            return context
        require_dpop_algorithm(context.spec, context.endpoints)
        now = self._clock.now()
        key = await commit_with_retries(
            self._store, lambda tx: tx.proof_keys.get_or_create(tenant, connection_id, now)
        )
        return context.with_proof_key(key)

    async def access(self, tx: Transaction, integration: Integration) -> list[IssuerAccess]:
        """An integration's provider by each of its client secrets, without a connection. Raises as `load`."""
        versions = await tx.definitions.serving(integration.tenant, integration.provider)
        try:
            spec = self.registry.serving(integration.provider, versions)
        except Failure as failure:
            raise Failure(ErrorCode.CLIENT_REJECTED, failure.detail) from None
        endpoints = resolve_endpoints(spec, integration, {})
        clients = self._clients(spec, endpoints, await tx.integrations.sealed_client(integration))
        pins = await tx.destinations.pins(integration)
        return [
            IssuerAccess(
                spec=spec,
                endpoints=endpoints,
                client=client,
                params=integration.params,
                integration=integration,
                pins=pins,
            )
            for client in clients
        ]

    def _context(self, rows: ContextRows) -> ProviderContext:
        """The context that these rows make. Raises Failure as `load`."""
        connection, grant, client = rows.connection, rows.grant, rows.client
        if client is None:
            raise Failure(ErrorCode.CLIENT_REJECTED, f"the integration {connection.integration} was deleted")
        integration, facts = client.integration, grant.metadata if grant else {}
        specs = self._specs(rows, integration)
        skipped: Definition | None = None
        try:
            endpoints = resolve_endpoints(specs[0][0], integration, facts)
        except Failure:
            if len(specs) == 1:
                raise
            skipped, specs = specs[0][1], [(specs[1][0], None)]
            endpoints = resolve_endpoints(specs[0][0], integration, facts)
        spec, definition = specs[0]
        clients = self._clients(spec, endpoints, client)
        # whether a credential may be sent twice: a staged version isn't relied on
        rules = specs[-1][0].refresh_rules()
        context = ProviderContext(
            connection=connection,
            integration=integration.with_provider_rules(rules),
            grant=grant,
            tokens=rows.tokens,
            leased_generation=rows.leased_generation,
            spec=spec,
            endpoints=endpoints,
            client=clients[0],
            params=integration.params | params_from_metadata(spec, facts),
            other_client=clients[1] if len(clients) > 1 else None,
            definition=definition,
            previous_spec=specs[1][0] if len(specs) > 1 else None,
            skipped_definition=skipped,
            facts=facts,
            pins=rows.pins,
            announce_days=self.announce_days,
            redirect_uri=f"{self._public_url}/oauth/callback/{integration.id}",
        )
        key = rows.proof_key() if context.uses_dpop else None
        return context if key is None else context.with_proof_key(key)

    def _clients(self, spec: ProviderSpec, endpoints: Endpoints, client: SealedClient) -> list[OAuthClient]:
        """The client with the secret or key to try first, then with the other one, if there is one."""
        integration, now = client.integration, self._clock.now()
        pairs = [(client.secret(), client.key())]
        if integration.previous_secret_is_usable(now):
            secret, key = client.previous_secret(), client.previous_key()
            pairs.append((secret or pairs[0][0], key or pairs[0][1]))
        if integration.secret_refused_at is not None:
            pairs.reverse()
        if spec.client_secret_generator is not None:
            id, params = integration.client_id, integration.params
            pairs = [(generate_client_secret(spec, id, params, key, now), key) for _, key in pairs]
        certificate = client.certificate()
        auth = client_auth_of(spec, integration)
        audience = assertion_audience(spec, endpoints)
        return [
            OAuthClient(integration.client_id, secret, auth, key, audience, self._clock.now, certificate)
            for secret, key in pairs
        ]

    def _specs(
        self, rows: ContextRows, integration: Integration
    ) -> list[tuple[ProviderSpec, Definition | None]]:
        """The definition to use; while it is a staged one, the version before it as well."""
        try:
            candidates = self.registry.candidates(integration.provider, rows.definitions, rows.connection.id)
        except Failure as failure:  # the catalogue has changed: the integration's admin can repair it
            raise Failure(ErrorCode.CLIENT_REJECTED, failure.detail) from None
        return [
            (with_dpop_binding(spec, integration, rows.grant), definition)
            for spec, definition in candidates[:2]
        ]
