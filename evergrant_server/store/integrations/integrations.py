"""Integrations with their client secrets and keys, sealed by the tenant's intake key."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, exists, or_, select, update
from sqlmodel import col

from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, Sealed
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, columns_equal, find_one, not_found
from evergrant_server.store.integrations.pinned_hosts import Destinations
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.keys import NO_CONNECTION, sealed_place
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository, KeyRows

_SECRET, _PREVIOUS = "sealed_client_secret", "sealed_previous_secret"
_INITIAL, _MANAGEMENT = "sealed_initial_token", "sealed_registration_token"
_KEY, _CERTIFICATE = "sealed_client_key", "sealed_client_certificate"
_PREVIOUS_KEY = "sealed_previous_key"
_SLOTS = {_SECRET: _PREVIOUS, _KEY: _PREVIOUS_KEY}  # of which a rotation keeps the one before
_OVER: Values = {"previous_secret_until": None, "secret_refused_at": None}
_NONE_BEFORE: Values = dict.fromkeys(_SLOTS.values())


@dataclass(frozen=True)
class SealedClient:
    """The credentials of an integration's client as its row has sealed them, with the keys that open them,
    wrapped. Each raises as `Integrations.client_secret`."""

    integration: Integration
    row: Values = field(repr=False)
    keys: KeyRows

    @staticmethod
    def columns(row: Values) -> list[tuple[KeyPurpose, Sealed | None]]:
        """What the keys have to open."""
        sealed = (_SECRET, _PREVIOUS, _KEY, _PREVIOUS_KEY, _CERTIFICATE)
        return [(KeyPurpose.INTAKE, row[column]) for column in sealed]

    def secret(self) -> Secret | None:
        return self._open(_SECRET)

    def previous_secret(self) -> Secret | None:
        return self._open(_PREVIOUS)

    def key(self) -> ClientKey | None:
        return _key_of(self._open(_KEY))

    def previous_key(self) -> ClientKey | None:
        return _key_of(self._open(_PREVIOUS_KEY))

    def certificate(self) -> ClientCertificate | None:
        text = self._open(_CERTIFICATE) if self.integration.client_certificate_expires_at else None
        return None if text is None else ClientCertificate.from_secret(text)

    def _open(self, column: str) -> Secret | None:
        if self.row[column] is None:
            return None
        place = sealed_place(table_of(IntegrationRow), column, self.row)
        return self.keys.open(KeyPurpose.INTAKE, NO_CONNECTION, place, self.row[column])


class Integrations(
    IntakeRepository[Integration, IntegrationId], AuthenticatedRepository[Integration, IntegrationId]
):
    _table, _model = IntegrationRow, Integration

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def put(
        self,
        i: Integration,
        client_secret: Secret | None,
        *,
        expected: int | None,
        client_key: ClientKey | None = None,
        client_certificate: ClientCertificate | None = None,
    ) -> Integration:
        """Add (`expected` None) or change an integration; what is None keeps the old secret, key or
        certificate.

        Raises Failure ALREADY_EXISTS when adding a name or id that is there, STORE_CONFLICT
        or NOT_FOUND when changing.
        """
        secrets: dict[str, Secret | None] = {}
        # at once, without an overlap: `rotate_secret` is the other way
        if client_secret is not None or client_key is not None:
            i = i.__replace__(**_OVER)
            secrets |= {_PREVIOUS: None, _PREVIOUS_KEY: None}
        if client_secret is not None:
            secrets[_SECRET] = client_secret
        if client_key is not None:
            secrets[_KEY] = client_key.as_secret()
        if client_certificate is not None:
            secrets[_CERTIFICATE] = client_certificate.as_secret()
            i = i.__replace__(client_certificate_expires_at=client_certificate.expires_at)
        return await self._put(i, f"Integration {i.name!r}", expected, **await self._sealed(i, secrets))

    async def get_unchecked(self, tenant: Tenant, id: IntegrationId) -> Integration | None:
        """The integration as its row says, for facts that decide about no secret."""
        return await self._one_unchecked(tenant=tenant, id=id)

    async def by_name(self, tenant: Tenant, name: str) -> Integration | None:
        return await self._one(tenant=tenant, name=name)

    async def of_next_consent(self, connection: Connection) -> Integration | None:
        """The integration to whose client the connection's subject consents next: the one that has the name
        by now, if its client is one of the same server. None: its integration is gone.

        While a campaign goes on, and after it, that is another one than has got its grant (ADR 0117).
        """
        granting = await self.of_grant(connection)
        if granting is not None and connection.may_change_client:
            named = await self.by_name(connection.tenant, connection.integration)
            if named is not None and named.server == granting.server:
                return named
        return granting

    async def of_grant(self, connection: Connection) -> Integration | None:
        """The integration whose client has got the connection's grant, by the name that permits know: a
        campaign has given it to another one (ADR 0117)."""
        own = await self.get(connection.tenant, connection.integration_id)
        return None if own is None else own.__replace__(name=connection.integration)

    async def rename(self, i: Integration, name: str) -> Integration:
        """Raises Failure STORE_CONFLICT."""
        return await self._change(i.__replace__(name=name), i.revision)

    async def find_in_any_tenant(self, id: IntegrationId) -> Integration | None:
        """The integration with this id in whichever tenant: the callback route knows no more."""
        return await self._one(id=id)

    async def page(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[Integration]:
        """Integrations sorted by name, after the name `after`."""
        return await self._page(self._where(tenant=tenant), "name", after, limit)

    async def page_of_all_tenants(self, after: str | None = None, limit: int = 200) -> list[Integration]:
        """Integrations of every tenant, sorted by id, after the id `after`."""
        return await self._page(self._where(), "id", after, limit)

    async def with_binding(self, binding: Binding, limit: int) -> list[Integration]:
        """Integrations of every tenant with this binding, sorted by id."""
        return await self._page(self._where(binding=binding.value), "id", None, limit)

    async def at_providers(self, names: Sequence[str], limit: int) -> list[Integration]:
        """Integrations of every tenant at these providers, sorted by id."""
        mine = self._where(col(IntegrationRow.provider).in_(names))
        return await self._page(mine, "id", None, limit)

    async def lock_for_use(self, i: Integration) -> None:
        """Keep it from being deleted, and from `lock_against_use`, until this transaction ends. Raises
        Failure NOT_FOUND, and STORE_CONFLICT when it has changed since it was read."""
        await self._lock(i, _revision(i).with_for_update(read=True, key_share=True))

    async def lock_against_use(self, i: Integration) -> None:
        """Let no connection be added to it until this transaction ends: those that are being added come
        before. Raises as `lock_for_use`."""
        await self._lock(i, _revision(i).with_for_update())

    async def _lock(self, i: Integration, locked: Select[int]) -> None:
        revision = (await self._connection.execute(locked)).scalar_one_or_none()
        if revision is None:
            raise not_found(i.id)
        if revision != i.revision:
            raise Failure(ErrorCode.STORE_CONFLICT, f"{i.id} has changed since it was read.", row=i.id)

    async def delete(self, tenant: Tenant, id: IntegrationId) -> None:
        """Delete it with its secret. Raises Failure NOT_FOUND, or INTEGRATION_IN_USE while it has
        connections that are not ended: they could never be refreshed or revoked again."""
        mine = select(col(IntegrationRow.id)).where(columns_equal(IntegrationRow, tenant=tenant, id=id))
        await self._connection.execute(mine.with_for_update())  # a new connection comes before or after
        live = columns_equal(ConnectionRow, tenant=tenant, integration_id=id)
        ended = col(ConnectionRow.state).in_(FINAL_STATES)
        if (await self._connection.execute(select(exists().where(live, ~ended)))).scalar_one():
            why = "Its connections could never be revoked: evergrant connections ls --integration lists them."
            raise Failure(ErrorCode.INTEGRATION_IN_USE, why)
        await self._delete(id, tenant=tenant, id=id)

    async def client_secret(self, i: Integration) -> Secret | None:
        """The client secret, or None for a public client. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        return await self._opened(i, _SECRET)

    async def client_key(self, i: Integration) -> ClientKey | None:
        """Our key at the provider, or None. Raises as `client_secret`."""
        return _key_of(await self._opened(i, _KEY))

    async def sealed_client(self, i: Integration) -> SealedClient:
        """Every credential of its client. Raises Failure NOT_FOUND."""
        row = await find_one(self._connection, IntegrationRow, tenant=i.tenant, id=i.id)
        if row is None:
            raise not_found(i.id)
        keys = await self._sealer.read_keys(i.tenant, NO_CONNECTION, SealedClient.columns(row))
        return SealedClient(i, row, keys)

    async def previous_secret(self, i: Integration) -> Secret | None:
        """The secret that a rotation replaced, while it is kept. Raises as `client_secret`."""
        return await self._opened(i, _PREVIOUS)

    async def rotate_secret(
        self, i: Integration, new: Secret | ClientKey, *, until: datetime, expected: int
    ) -> Integration:
        """Put `new`, a secret or a signing key, first and keep the one before it until `until`.

        One that the provider refuses is not worth keeping: the one before it stays instead.
        Raises Failure STORE_CONFLICT, NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        slot = _KEY if isinstance(new, ClientKey) else _SECRET
        value = new.as_secret() if isinstance(new, ClientKey) else new
        kept = await self._opened(i, _SLOTS[slot]) if i.secret_refused_at is not None else None
        kept = await self._opened(i, slot) if kept is None else kept
        after = i.__replace__(previous_secret_until=until if kept else None, secret_refused_at=None)
        secrets: dict[str, Secret | None] = {
            **dict.fromkeys(_SLOTS.values()),
            slot: value,
            _SLOTS[slot]: kept,
        }
        return await self._change(after, expected, **await self._sealed(i, secrets))

    async def restore_previous_secret(self, i: Integration, *, expected: int) -> Integration:
        """The secret or key before the rotation is the only one again. Raises as `rotate_secret`, and
        Failure INVALID_REQUEST when none is kept."""
        kept = {slot: await self._opened(i, previous) for slot, previous in _SLOTS.items()}
        secrets: dict[str, Secret | None] = {slot: value for slot, value in kept.items() if value is not None}
        if not secrets:
            raise Failure(ErrorCode.INVALID_REQUEST, "No previous client secret is kept.", field="roll_back")
        sealed = await self._sealed(i, secrets)
        return await self._change(i.__replace__(**_OVER), expected, **sealed, **_NONE_BEFORE)

    async def forget_previous_secret(self, i: Integration, *, expected: int) -> Integration:
        """The current secret or key is the only one. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        return await self._change(i.__replace__(**_OVER), expected, **_NONE_BEFORE)

    async def with_previous_secrets(self, tenant: Tenant, limit: int) -> list[Integration]:
        """Those of the tenant that keep the secret of before a rotation, by name."""
        kept = self._where(col(IntegrationRow.previous_secret_until).is_not(None), tenant=tenant)
        return await self._all_unchecked(kept.order_by(col(IntegrationRow.name)).limit(limit))

    async def request_registration(self, i: Integration, initial: Secret | None) -> Integration:
        """Request a registration by a worker; `initial` is the token the server demands for it, used once.

        Raises Failure STORE_CONFLICT, NOT_FOUND.
        """
        sealed = await self._sealed(i, {_INITIAL: initial or None})
        gone = {_MANAGEMENT: None, _SECRET: None, _PREVIOUS: None}
        after = i.__replace__(
            registration_sent_at=None, registration_url=None, client_secret_expires_at=None, **_OVER
        )
        return await self._change(after, i.revision, **sealed, **gone)

    async def initial_access_token(self, i: Integration) -> Secret | None:
        """The initial access token (RFC 7591 section 3), until it was used."""
        return await self._opened(i, _INITIAL)

    async def store_registration(
        self, i: Integration, secret: Secret | None, management: Secret | None
    ) -> Integration:
        """Write the result of a registration and delete the initial access token. Raises as `replace`."""
        secrets = {_SECRET: secret or None, _MANAGEMENT: management or None, _INITIAL: None}
        return await self._change(i, i.revision, **await self._sealed(i, secrets))

    async def with_metadata_older_than(
        self, before: datetime, limit: int, providers: Sequence[str] = ()
    ) -> list[Integration]:
        """Those whose discovered metadata was last compared before that, the oldest first: with an issuer of
        their own, or of `providers`."""
        read_at = col(IntegrationRow.metadata_read_at)
        ready = self._where(
            or_(col(IntegrationRow.issuer).is_not(None), col(IntegrationRow.provider).in_(providers)),
            or_(read_at.is_(None), read_at < before),
            state=IntegrationState.READY.value,
        )
        return await self._all_unchecked(ready.order_by(read_at.asc().nulls_first()).limit(limit))

    async def with_certificates_expiring_before(
        self, before: datetime, limit: int = 100
    ) -> list[Integration]:
        """Those of every tenant whose client certificate ends before that, the first to end first."""
        ends = col(IntegrationRow.client_certificate_expires_at)
        return await self._all_unchecked(self._where(ends < before).order_by(ends.asc()).limit(limit))

    async def delete_expired_previous_secrets(self, now: datetime) -> int:
        """Forget the secrets whose overlap has ended; says how many. One that alone works stays."""
        over = and_(
            col(IntegrationRow.previous_secret_until) <= now, col(IntegrationRow.secret_refused_at).is_(None)
        )
        changes = {**_NONE_BEFORE, **_OVER, "revision": IntegrationRow.revision + 1}
        return await self._run(update(IntegrationRow).where(over).values(changes))

    async def delete_client_credentials(self, i: Integration, *, expected: int) -> Integration:
        """Make it a public client: the old secrets, the key and the certificate are gone."""
        gone = dict.fromkeys((_SECRET, _PREVIOUS, _KEY, _PREVIOUS_KEY, _CERTIFICATE))
        after = i.__replace__(**_OVER, client_certificate_expires_at=None)
        return await self._change(after, expected, **gone)

    async def _change(self, model: Integration, expected: int, **columns: Any) -> Integration:
        before = await self._one_unchecked(tenant=model.tenant, id=model.id)
        if before is not None:
            columns |= await Destinations(self._connection, self._ring).after_change(before, model)
        return await super()._change(model, expected, **columns)


def _revision(i: Integration) -> Select[int]:
    return select(col(IntegrationRow.revision)).where(columns_equal(IntegrationRow, tenant=i.tenant, id=i.id))


def _key_of(text: Secret | None) -> ClientKey | None:
    return None if text is None else ClientKey.from_secret(text)
