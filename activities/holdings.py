"""What an activity needs in hand before it talks to a provider: rows, definition, client."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from activities.records import settled
from evergrant_server.core.access import Endpoints, Integration
from evergrant_server.core.beginning import news_of
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import Grant
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages import GrantNews
from evergrant_server.core.proof import ProofKey
from evergrant_server.store import Store, Tx
from providers.authorization import endpoints_for
from providers.client import OAuthClient
from providers.generated_secret import generated_secret
from providers.proofs import bound, require_algorithm
from providers.registry import Registry
from providers.resolve import assertion_audience, bound_params, client_auth_of
from providers.spec import ProviderSpec, Refresh


@dataclass(frozen=True)
class Holdings:
    connection: Connection
    integration: Integration
    grant: Grant | None
    spec: ProviderSpec
    endpoints: Endpoints
    client: OAuthClient
    redirect_uri: str
    other_client: OAuthClient | None = None  # in the overlap of a rotation: with the other secret
    definition: Definition | None = None  # the tenant's own version that `spec` is from
    older: ProviderSpec | None = None  # while that one is staged: what answered before
    announce_days: tuple[int, ...] | None = None  # see `GrantNews`
    passed_over: Definition | None = None  # a staged version that isn't asked: what works counts against it
    facts: Mapping[str, Any] = field(
        default_factory=dict[str, Any]
    )  # known of the grant: they fill templates

    @property
    def definition_id(self) -> str:
        """The tenant's version that answers, "" for the catalogue's own."""
        return self.definition.id if self.definition else ""

    @property
    def provisional(self) -> bool:
        """A staged version answers: its refusals are asked again before they are believed."""
        return self.older is not None

    @property
    def exchange(self) -> Refresh | None:
        """How the access token that is held is exchanged for the next one; None: not at all."""
        flow, first = self.connection.flow, self.spec.post_token_exchange
        if not flow.refreshes:
            return None
        if first is not None and self.grant is not None and self.grant.interim:
            return first
        return self.spec.refresh if self.spec.renews_by_access_token else None

    @property
    def spends_nothing(self) -> bool:
        """A refresh uses nothing up, so an answer that was lost costs another request."""
        return self.connection.flow.mints or self.exchange is not None

    @property
    def renewable(self) -> bool:
        """New tokens are made without a refresh token."""
        flow = self.connection.flow
        return flow.mints or (self.spec.renews_by_access_token and flow.refreshes)

    @property
    def interim(self) -> bool:
        """A first token is one that is to be exchanged for a long-lived one."""
        return self.spec.post_token_exchange is not None and self.connection.flow.refreshes

    @property
    def resources(self) -> tuple[str, ...]:
        """What its tokens are for (RFC 8707), where a refresh token was granted for that."""
        connection = self.connection
        return connection.target.resources if connection.flow.asks_in_browser else ()

    @property
    def params(self) -> dict[str, str]:
        """What templates are filled from: the integration's, and what came in this connection's callback."""
        return self.integration.params | bound_params(self.spec, self.facts)

    @property
    def wants_proof_key(self) -> bool:
        """Its tokens are to be bound to a key (RFC 9449), and there is none yet."""
        over = self.connection.state is State.REVOKING or self.connection.state.final
        wanted = self.spec.dpop or (self.older is not None and self.older.dpop)
        return wanted and self.client.proof_key is None and not over

    def proving(self, key: ProofKey) -> "Holdings":
        """The same in hand, with the key that its tokens are bound to."""
        other = replace(self.other_client, proof_key=key) if self.other_client else None
        return replace(self, client=replace(self.client, proof_key=key), other_client=other)

    def news(self, connection: Connection, grant: Grant) -> GrantNews:
        """The facts of a grant that the store holds now."""
        return news_of(connection, grant, self.integration.refresh, self.announce_days)

    def believed(self) -> "Holdings":
        """The same in hand, for what can't be asked twice: a staged version isn't relied on yet."""
        return self.as_before() if self.provisional else self

    def passing_over(self) -> "Holdings":
        """As before, since the staged version can't be asked, or must not be."""
        return replace(self.as_before(), passed_over=self.definition)

    def as_before(self) -> "Holdings":
        """The same in hand, by the definition that answered before. Raises as `Holder.take`."""
        assert self.older is not None
        return replace(self._asked_by(self.older, self.facts), definition=None, older=None)

    def knowing(self, facts: Mapping[str, Any]) -> "Holdings":
        """The same in hand, for tokens that came with other facts: they may say at which host they are.
        Raises as `Holder.take`."""
        return self._asked_by(self.spec, facts)

    def _asked_by(self, spec: ProviderSpec, facts: Mapping[str, Any]) -> "Holdings":
        endpoints = _endpoints(spec, self.integration, facts)
        said = {
            "auth": client_auth_of(spec, self.integration),
            "audience": assertion_audience(spec, endpoints),
        }
        return replace(
            self,
            spec=spec,
            facts=facts,
            endpoints=endpoints,
            client=replace(self.client, **said),
            other_client=replace(self.other_client, **said) if self.other_client else None,
        )


class Holder:
    """Reads holdings. Every key that will be needed is unwrapped here, before any intent."""

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
        """The scope that brings a refresh token there: no ceiling counts it."""
        return self._registry.offline_scope(provider)

    async def take(self, tenant: Tenant, connection_id: ConnectionId) -> Holdings:
        """Raises Failure NOT_FOUND, CLIENT_REJECTED (its definition is gone, or doesn't fit any
        more), KEY_UNAVAILABLE, SEAL_BROKEN or STORE_UNAVAILABLE."""
        async with self._store.read() as tx:
            held = await self.take_in(tx, tenant, connection_id)
        if not held.wants_proof_key:
            return held
        require_algorithm(held.spec, held.endpoints)
        now = self._clock.now()
        key = await settled(self._store, lambda tx: tx.proof_keys.ensure(tenant, connection_id, now))
        return held.proving(key)

    async def take_in(self, tx: Tx, tenant: Tenant, connection_id: ConnectionId) -> Holdings:
        connection = await tx.connections.get(tenant, connection_id)
        if connection is None:
            raise Failure(Code.NOT_FOUND, f"there is no connection {connection_id}")
        integration = await tx.integrations.get(tenant, connection.integration_id)
        if integration is None:
            raise Failure(Code.CLIENT_REJECTED, f"the integration {connection.integration} was deleted")
        spec, definition, older = await self._defined(tx, connection, integration)
        grant = await tx.grants.get(tenant, connection_id)
        facts = grant.metadata if grant else {}
        passed_over: Definition | None = None
        try:
            endpoints = _endpoints(spec, integration, facts)
        except Failure:
            if older is None:
                raise
            passed_over, spec, definition, older = definition, older, None, None
            endpoints = _endpoints(spec, integration, facts)
        spec = bound(spec, integration, grant)
        older = None if older is None else bound(older, integration, grant)
        key = await tx.proof_keys.get(tenant, connection_id) if spec.dpop or (older and older.dpop) else None
        clients = await self._clients(tx, spec, endpoints, integration)
        # a staged version's word on what may be sent twice isn't relied on yet
        rules = (older or spec).refresh_rules()
        held = Holdings(
            connection=connection,
            integration=integration.under(rules),
            grant=grant,
            spec=spec,
            endpoints=endpoints,
            client=clients[0],
            other_client=clients[1] if len(clients) > 1 else None,
            definition=definition,
            older=older,
            passed_over=passed_over,
            facts=facts,
            announce_days=self.announce_days,
            redirect_uri=f"{self._public_url}/oauth/callback/{integration.id}",
        )
        return held if key is None else held.proving(key)

    async def _clients(
        self, tx: Tx, spec: ProviderSpec, endpoints: Endpoints, integration: Integration
    ) -> list[OAuthClient]:
        """Our client with the secret that is tried first, then with the other one, if there is one."""
        secrets = [await tx.integrations.client_secret(integration)]
        if integration.previous_secret_counts(self._clock.now()):
            secrets.append(await tx.integrations.previous_secret(integration))
        if integration.secret_refused_at is not None:
            secrets.reverse()
        key = await tx.integrations.client_key(integration)
        if spec.client_secret_generator is not None:
            now = self._clock.now()
            secrets = [generated_secret(spec, integration.client_id, integration.params, key, now)]
        certificate = await tx.integrations.client_certificate(integration)
        auth = client_auth_of(spec, integration)
        audience = assertion_audience(spec, endpoints)
        return [
            OAuthClient(integration.client_id, secret, auth, key, audience, self._clock.now, certificate)
            for secret in secrets
        ]

    async def _defined(
        self, tx: Tx, connection: Connection, integration: Integration
    ) -> tuple[ProviderSpec, Definition | None, ProviderSpec | None]:
        versions = await tx.definitions.serving(integration.tenant, integration.provider)
        try:
            answering = self._registry.chosen(integration.provider, versions, connection.id)
        except Failure as failure:  # the catalogue changed under it: an admin's to repair, no caller's
            raise Failure(Code.CLIENT_REJECTED, failure.detail) from None
        older = answering[1][0] if len(answering) > 1 else None
        return (*answering[0], older)


def _endpoints(spec: ProviderSpec, integration: Integration, facts: Mapping[str, Any]) -> Endpoints:
    try:
        return endpoints_for(spec, integration, facts)
    except Failure as failure:  # as above
        raise Failure(Code.CLIENT_REJECTED, failure.detail) from None
