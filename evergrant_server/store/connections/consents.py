"""Consents with their link, verifier and code, sealed by the tenant's intake key."""

from datetime import datetime

from sqlalchemy import select, update
from sqlmodel import col

from evergrant_server.core.connections.consent import (
    Consent,
    ConsentKind,
    ConsentStatus,
    DeviceCode,
    PushedAuthorization,
)
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, ConsentId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import AssociatedData, KeyPurpose
from evergrant_server.store.connections.tables import ConsentRow
from evergrant_server.store.database.rows import (
    Values,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_model,
    find_model,
    find_one,
    insert,
)
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.store.sealing import SealedRepository

_LINK, _VERIFIER, _CODE = "sealed_link", "sealed_verifier", "sealed_code"
_TOKENS = "sealed_tokens"
_DEVICE = "sealed_device"
_REQUEST = "sealed_request"
_CAN_GO_ON = (ConsentStatus.OPEN.value, ConsentStatus.STARTED.value)


class Consents(SealedRepository):
    """Consents of one transaction."""

    async def add(self, consent: Consent, link: Secret | None) -> None:
        """Add a consent with its connect link, if there is one. Raises Failure ALREADY_EXISTS."""
        values = column_values(consent, **await self._sealed(consent, {_LINK: link}))
        if not await insert(self._connection, ConsentRow, values):
            raise already_exists(f"Consent {consent.id}, or one with its link,")

    async def add_import(self, consent: Consent, tokens: ImportedTokens) -> None:
        """Add a consent that already has its tokens and no link. Raises Failure ALREADY_EXISTS."""
        values = column_values(consent, **await self._sealed(consent, {_TOKENS: tokens.as_secret()}))
        if not await insert(self._connection, ConsentRow, values):
            raise already_exists(f"Consent {consent.id}")

    async def import_consent(self, tenant: Tenant, connection_id: ConnectionId) -> Consent | None:
        """The import that this connection began with, or None."""
        return await self._one(tenant=tenant, connection_id=connection_id, kind=ConsentKind.IMPORT.value)

    async def received_consent(self, tenant: Tenant, connection_id: ConnectionId) -> Consent | None:
        """The newest consent whose code, or whose tokens, wait for a worker; or None."""
        mine = columns_equal(ConsentRow, tenant=tenant, connection_id=connection_id)
        waits = col(ConsentRow.status) == ConsentStatus.CODE_RECEIVED.value
        newest = (col(ConsentRow.created_at).desc(), col(ConsentRow.id).desc())
        return await fetch_model(
            self._connection, Consent, select(ConsentRow).where(mine, waits).order_by(*newest).limit(1)
        )

    async def get(self, tenant: Tenant, id: ConsentId) -> Consent | None:
        return await self._one(tenant=tenant, id=id)

    async def by_link(self, link_hash: str) -> Consent | None:
        """The consent of this link, in whichever tenant."""
        return await self._one(link_hash=link_hash)

    async def by_state(self, state_hash: str) -> Consent | None:
        """The consent that this `state` belongs to, in whichever tenant."""
        return await self._one(state_hash=state_hash)

    async def open_consent(
        self, tenant: Tenant, connection_id: ConnectionId, now: datetime
    ) -> Consent | None:
        """The newest consent that the subject can still go on with, or None."""
        mine = columns_equal(ConsentRow, tenant=tenant, connection_id=connection_id)
        open_now = col(ConsentRow.status).in_(_CAN_GO_ON) & (col(ConsentRow.expires_at) > now)
        newest = (col(ConsentRow.created_at).desc(), col(ConsentRow.id).desc())
        query = select(ConsentRow).where(mine, open_now).order_by(*newest).limit(1)
        return await fetch_model(self._connection, Consent, query)

    async def replace(
        self,
        consent: Consent,
        *,
        expected: int,
        verifier: Secret | None = None,
        code: Secret | None = None,
        tokens: ImportedTokens | None = None,
        request: PushedAuthorization | None = None,
    ) -> Consent:
        """Write `consent` if its row is still at `expected`; secrets that are given are sealed with it.

        Raises Failure STORE_CONFLICT when the row changed meanwhile, NOT_FOUND when it is gone.
        """
        pushed = None if request is None else request.as_secret()
        imported = None if tokens is None else tokens.as_secret()
        given = {_VERIFIER: verifier, _CODE: code, _TOKENS: imported, _REQUEST: pushed}
        values = column_values(consent, **await self._sealed(consent, given))
        key = {"tenant": consent.tenant, "id": consent.id}
        revision = await compare_and_set(self._connection, ConsentRow, key, values, expected)
        return consent.model_copy(update={"revision": revision})

    async def connect_link(self, consent: Consent) -> Secret:
        """The connect link's secret. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        return await self._open(consent, _LINK)

    async def verifier(self, consent: Consent) -> Secret:
        """The PKCE verifier. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        return await self._open(consent, _VERIFIER)

    async def code(self, consent: Consent) -> Secret:
        """The authorization code. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        return await self._open(consent, _CODE)

    async def imported_tokens(self, consent: Consent) -> ImportedTokens:
        """The tokens of an import. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        return ImportedTokens.from_secret(await self._open(consent, _TOKENS))

    async def store_device_code(self, consent: Consent, device: DeviceCode, *, expected: int) -> Consent:
        """Keep the code that was got; the consent ends with it. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        after = consent.model_copy(update={"expires_at": device.expires_at})
        values = column_values(after, **await self._sealed(after, {_DEVICE: device.as_secret()}))
        key = {"tenant": consent.tenant, "id": consent.id}
        revision = await compare_and_set(self._connection, ConsentRow, key, values, expected)
        return after.model_copy(update={"revision": revision})

    async def device_code(self, consent: Consent) -> DeviceCode | None:
        """The device code, or None before there is one. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        try:
            return DeviceCode.from_secret(await self._open(consent, _DEVICE))
        except Failure as failure:
            if failure.code is not ErrorCode.NOT_FOUND:
                raise
            return None

    async def pushed_request(self, consent: Consent) -> PushedAuthorization:
        """The pushed authorization request and its result. Raises as `code`."""
        return PushedAuthorization.from_secret(await self._open(consent, _REQUEST))

    async def erase_secrets(self, consent: Consent) -> None:
        """Drop verifier, codes, tokens and request: they were used. Row and revision stay as they are."""
        mine = columns_equal(ConsentRow, tenant=consent.tenant, id=consent.id)
        empty: Values = dict.fromkeys((_VERIFIER, _CODE, _TOKENS, _DEVICE, _REQUEST))
        await self._connection.execute(update(ConsentRow).where(mine).values(empty))

    async def _sealed(self, consent: Consent, secrets: dict[str, Secret | None]) -> Values:
        return {
            column: await self._sealer.seal(KeyPurpose.INTAKE, NO_CONNECTION, _place(consent, column), secret)
            for column, secret in secrets.items()
            if secret is not None
        }

    async def _open(self, consent: Consent, column: str) -> Secret:
        row = await find_one(self._connection, ConsentRow, tenant=consent.tenant, id=consent.id)
        if row is None or row[column] is None:
            raise Failure(ErrorCode.NOT_FOUND, f"{consent.id} holds no {column.removeprefix('sealed_')}.")
        return await self._sealer.open(KeyPurpose.INTAKE, NO_CONNECTION, _place(consent, column), row[column])

    async def _one(self, **equal: str) -> Consent | None:
        return await find_model(self._connection, Consent, ConsentRow, **equal)


def _place(consent: Consent, column: str) -> AssociatedData:
    return AssociatedData(consent.tenant, "consent", consent.id, column)
