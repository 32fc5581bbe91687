"""Integrations with their client secrets and keys, sealed by the tenant's intake key."""

from datetime import datetime

from sqlalchemy import and_, delete, exists, or_, select, update
from sqlmodel import col

from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import AssociatedData, KeyPurpose, Sealed
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionRow
from evergrant_server.store.database.rows import (
    Values,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_models,
    find_model,
    find_one,
    insert,
)
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.store.sealing import SealedRepository

_COLUMN = "sealed_client_secret"
_PREVIOUS = "sealed_previous_secret"
_INITIAL = "sealed_initial_token"
_MANAGEMENT = "sealed_registration_token"
_OVER: Values = {"previous_secret_until": None, "secret_refused_at": None}
_KEY = "sealed_client_key"
_CERTIFICATE = "sealed_client_certificate"


class Integrations(SealedRepository):
    """Integrations of one transaction."""

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
        sealed: Values = {}
        if client_secret is not None:  # at once, without an overlap: `rotate_secret` is the other way
            i = i.model_copy(update=_OVER)
            sealed = {_COLUMN: await self._sealed(i, client_secret), _PREVIOUS: None}
        if client_key is not None:
            sealed[_KEY] = await self._sealed(i, client_key.as_secret(), _KEY)
        if client_certificate is not None:
            sealed[_CERTIFICATE] = await self._sealed(i, client_certificate.as_secret(), _CERTIFICATE)
            i = i.model_copy(update={"client_certificate_expires_at": client_certificate.expires_at})
        if expected is None:
            empty = dict.fromkeys((_COLUMN, _PREVIOUS, _INITIAL, _MANAGEMENT, _KEY, _CERTIFICATE))
            values = column_values(i, **{**empty, **sealed})
            if not await insert(self._connection, IntegrationRow, values):
                raise already_exists(f"Integration {i.name!r}")
            return i
        return await self._change(i, expected, sealed)

    async def get(self, tenant: Tenant, id: IntegrationId) -> Integration | None:
        return await self._one(tenant=tenant, id=id)

    async def by_name(self, tenant: Tenant, name: str) -> Integration | None:
        return await self._one(tenant=tenant, name=name)

    async def find_in_any_tenant(self, id: IntegrationId) -> Integration | None:
        """The integration with this id in whichever tenant: the callback route knows no more."""
        return await self._one(id=id)

    async def page(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[Integration]:
        """Integrations sorted by name, after the name `after`."""
        query = select(IntegrationRow).where(columns_equal(IntegrationRow, tenant=tenant))
        if after is not None:
            query = query.where(col(IntegrationRow.name) > after)
        return await fetch_models(
            self._connection, Integration, query.order_by(col(IntegrationRow.name)).limit(limit)
        )

    async def page_of_all_tenants(self, after: str | None = None, limit: int = 200) -> list[Integration]:
        """Integrations of every tenant, sorted by id, after the id `after`."""
        query = select(IntegrationRow)
        if after is not None:
            query = query.where(col(IntegrationRow.id) > after)
        return await fetch_models(
            self._connection, Integration, query.order_by(col(IntegrationRow.id)).limit(limit)
        )

    async def lock_against_deletion(self, i: Integration) -> None:
        """Keep it from being deleted until this transaction ends. Raises Failure NOT_FOUND."""
        mine = select(col(IntegrationRow.id)).where(columns_equal(IntegrationRow, tenant=i.tenant, id=i.id))
        locked = mine.with_for_update(read=True, key_share=True)
        if (await self._connection.execute(locked)).first() is None:
            raise Failure(ErrorCode.NOT_FOUND, f"{i.id} doesn't exist.")

    async def delete(self, tenant: Tenant, id: IntegrationId) -> None:
        """Delete it with its secret. Raises Failure NOT_FOUND, or STORE_CONFLICT while it has
        connections that are not ended: they could never be refreshed or revoked again."""
        mine = select(col(IntegrationRow.id)).where(columns_equal(IntegrationRow, tenant=tenant, id=id))
        await self._connection.execute(mine.with_for_update())  # a new connection comes before or after
        live = columns_equal(ConnectionRow, tenant=tenant, integration_id=id)
        ended = col(ConnectionRow.state).in_(FINAL_STATES)
        if (await self._connection.execute(select(exists().where(live, ~ended)))).scalar_one():
            raise Failure(
                ErrorCode.STORE_CONFLICT, "The integration has live connections: revoke them first."
            )
        gone = await self._connection.execute(
            delete(IntegrationRow).where(columns_equal(IntegrationRow, tenant=tenant, id=id))
        )
        if gone.rowcount != 1:
            raise Failure(ErrorCode.NOT_FOUND, f"{id} doesn't exist.")

    async def client_secret(self, i: Integration) -> Secret | None:
        """The client secret, or None for a public client. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        return await self._opened(i, _COLUMN)

    async def client_key(self, i: Integration) -> ClientKey | None:
        """Our key at the provider, or None. Raises as `client_secret`."""
        text = await self._opened(i, _KEY)
        return None if text is None else ClientKey.from_secret(text)

    async def client_certificate(self, i: Integration) -> ClientCertificate | None:
        """Our certificate at the provider with its key, or None. Raises as `client_secret`."""
        if i.client_certificate_expires_at is None:
            return None
        text = await self._opened(i, _CERTIFICATE)
        return None if text is None else ClientCertificate.from_secret(text)

    async def previous_secret(self, i: Integration) -> Secret | None:
        """The secret that a rotation replaced, while it is kept. Raises as `client_secret`."""
        return await self._opened(i, _PREVIOUS)

    async def rotate_secret(
        self, i: Integration, new: Secret, *, until: datetime, expected: int
    ) -> Integration:
        """Put `new` first and keep the secret before it until `until`.

        A secret that the provider refuses is not worth keeping: the one before it stays instead.
        Raises Failure STORE_CONFLICT, NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        kept = await self._opened(i, _PREVIOUS if i.secret_refused_at is not None else _COLUMN)
        after = i.model_copy(
            update={"previous_secret_until": until if kept else None, "secret_refused_at": None}
        )
        sealed: Values = {_COLUMN: await self._sealed(i, new)}
        sealed[_PREVIOUS] = await self._sealed(i, kept, _PREVIOUS) if kept else None
        return await self._change(after, expected, sealed)

    async def restore_previous_secret(self, i: Integration, *, expected: int) -> Integration:
        """The secret before the rotation is the only one again. Raises as `rotate_secret`, and
        Failure INVALID_REQUEST when none is kept."""
        kept = await self._opened(i, _PREVIOUS)
        if kept is None:
            raise Failure(ErrorCode.INVALID_REQUEST, "No previous client secret is kept.", field="roll_back")
        after = i.model_copy(update=_OVER)
        return await self._change(after, expected, {_COLUMN: await self._sealed(i, kept), _PREVIOUS: None})

    async def request_registration(self, i: Integration, initial: Secret | None) -> Integration:
        """Request a registration by a worker; `initial` is the token the server demands for it, used once.

        Raises Failure STORE_CONFLICT, NOT_FOUND.
        """
        sealed = await self._sealed(i, initial, _INITIAL) if initial else None
        fresh = {"registration_sent_at": None, "registration_url": None, "client_secret_expires_at": None}
        values: Values = {_INITIAL: sealed, _MANAGEMENT: None, _COLUMN: None, _PREVIOUS: None}
        return await self._change(i.model_copy(update={**fresh, **_OVER}), i.revision, values)

    async def initial_access_token(self, i: Integration) -> Secret | None:
        """The initial access token (RFC 7591 section 3), until it was used."""
        return await self._opened(i, _INITIAL)

    async def store_registration(
        self, i: Integration, secret: Secret | None, management: Secret | None
    ) -> Integration:
        """Write the result of a registration and delete the initial access token. Raises as `replace`."""
        values: Values = {
            _COLUMN: await self._sealed(i, secret) if secret else None,
            _MANAGEMENT: await self._sealed(i, management, _MANAGEMENT) if management else None,
            _INITIAL: None,
        }
        return await self._change(i, i.revision, values)

    async def with_metadata_older_than(self, before: datetime, limit: int) -> list[Integration]:
        """Those whose discovered metadata was last compared before that, the oldest first."""
        old = or_(
            col(IntegrationRow.metadata_read_at).is_(None), col(IntegrationRow.metadata_read_at) < before
        )
        ready = and_(
            col(IntegrationRow.issuer).is_not(None),
            col(IntegrationRow.state) == IntegrationState.READY.value,
            old,
        )
        oldest = col(IntegrationRow.metadata_read_at).asc().nulls_first()
        return await fetch_models(
            self._connection, Integration, select(IntegrationRow).where(ready).order_by(oldest).limit(limit)
        )

    async def with_certificates_expiring_before(
        self, before: datetime, limit: int = 100
    ) -> list[Integration]:
        """Those of every tenant whose client certificate ends before that, the first to end first."""
        ends = col(IntegrationRow.client_certificate_expires_at)
        query = select(IntegrationRow).where(ends < before).order_by(ends.asc()).limit(limit)
        return await fetch_models(self._connection, Integration, query)

    async def delete_expired_previous_secrets(self, now: datetime) -> int:
        """Forget the secrets whose overlap has ended; says how many. One that alone works stays."""
        over = and_(
            col(IntegrationRow.previous_secret_until) <= now, col(IntegrationRow.secret_refused_at).is_(None)
        )
        changes = {_PREVIOUS: None, **_OVER, "revision": IntegrationRow.revision + 1}
        return (await self._connection.execute(update(IntegrationRow).where(over).values(changes))).rowcount

    async def delete_client_credentials(self, i: Integration, *, expected: int) -> Integration:
        """Make it a public client: the old secrets, the key and the certificate are gone."""
        gone: Values = dict.fromkeys((_COLUMN, _PREVIOUS, _KEY, _CERTIFICATE))
        after = i.model_copy(update={**_OVER, "client_certificate_expires_at": None})
        return await self._change(after, expected, gone)

    async def replace(self, i: Integration, *, expected: int) -> Integration:
        """Write `i` if its row is still at revision `expected`. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        return await self._change(i, expected, {})

    async def _change(self, i: Integration, expected: int, sealed: Values) -> Integration:
        key = {"tenant": i.tenant, "id": i.id}
        values = column_values(i, **sealed)
        revision = await compare_and_set(self._connection, IntegrationRow, key, values, expected)
        return i.model_copy(update={"revision": revision})

    async def _opened(self, i: Integration, column: str) -> Secret | None:
        row = await find_one(self._connection, IntegrationRow, tenant=i.tenant, id=i.id)
        if row is None or row[column] is None:
            return None
        return await self._sealer.open(KeyPurpose.INTAKE, NO_CONNECTION, _place(i, column), row[column])

    async def _sealed(self, i: Integration, secret: Secret, column: str = _COLUMN) -> Sealed:
        return await self._sealer.seal(KeyPurpose.INTAKE, NO_CONNECTION, _place(i, column), secret)

    async def _one(self, **equal: str) -> Integration | None:
        return await find_model(self._connection, Integration, IntegrationRow, **equal)


def _place(i: Integration, column: str) -> AssociatedData:
    return AssociatedData(i.tenant, "integration", i.id, column)
