"""Loads provider contexts from the store and the definitions."""

from activities.support.provider_context import IssuerAccess, ProviderContext, resolve_endpoints
from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.store import Store, Transaction
from evergrant_server.store.connections.context_rows import ContextRows
from evergrant_server.store.integrations.integrations import SealedClient
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.client_auth import generate_client_secret
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.templates import assertion_audience, client_auth_of, params_from_metadata
from providers.requests.dpop import require_dpop_algorithm, with_dpop_binding
from providers.requests.request_format import OAuthClient


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
        self._registry = registry
        self._public_url = public_url
        self.announce_days = announce_days
        self._clock = clock

    def offline_scope(self, provider: str) -> str | None:
        """The scope that asks for a refresh token: no scope ceiling counts it."""
        return self._registry.offline_scope(provider)

    def scope_aliases(self, provider: str) -> tuple[frozenset[str], ...]:
        """The names of each scope that has several there."""
        return self._registry.scope_aliases(provider)

    async def load(self, tenant: Tenant, connection_id: ConnectionId) -> ProviderContext:
        """The context of a connection.

        Raises Failure NOT_FOUND, CLIENT_REJECTED (its definition is gone or doesn't fit any more),
        AUTHORITY_BROKEN, KEY_UNAVAILABLE, SEAL_BROKEN or STORE_UNAVAILABLE.
        """
        try:
            async with self._store.read() as tx:
                rows = await tx.context_rows.connection(tenant, connection_id)
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
            spec = self._registry.serving(integration.provider, versions)
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
        """The client with the secret to try first, then with the other one, if there is one."""
        integration, now = client.integration, self._clock.now()
        secrets = [client.secret()]
        if integration.previous_secret_is_usable(now):
            secrets.append(client.previous_secret())
        if integration.secret_refused_at is not None:
            secrets.reverse()
        key = client.key()
        if spec.client_secret_generator is not None:
            secrets = [generate_client_secret(spec, integration.client_id, integration.params, key, now)]
        certificate = client.certificate()
        auth = client_auth_of(spec, integration)
        audience = assertion_audience(spec, endpoints)
        return [
            OAuthClient(integration.client_id, secret, auth, key, audience, self._clock.now, certificate)
            for secret in secrets
        ]

    def _specs(
        self, rows: ContextRows, integration: Integration
    ) -> list[tuple[ProviderSpec, Definition | None]]:
        """The definition to use; while it is a staged one, the version before it as well."""
        try:
            candidates = self._registry.candidates(integration.provider, rows.definitions, rows.connection.id)
        except Failure as failure:  # the catalogue has changed: the integration's admin can repair it
            raise Failure(ErrorCode.CLIENT_REJECTED, failure.detail) from None
        return [
            (with_dpop_binding(spec, integration, rows.grant), definition)
            for spec, definition in candidates[:2]
        ]
