"""Consents with their link, verifier and code, sealed by the tenant's intake key."""

import base64
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, delete, exists, select, true, tuple_, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from evergrant_server.core.connections.account import ConsentAccount
from evergrant_server.core.connections.confirmation import reopened
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import (
    Consent,
    ConsentKind,
    ConsentStatus,
    PushedAuthorization,
    hash_link,
)
from evergrant_server.core.connections.device_code import DeviceCode
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, ConsentId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import seal
from evergrant_server.store.authority.authenticators import AuthenticatedRepository, row_mac
from evergrant_server.store.connections.refused_consents import refused_by
from evergrant_server.store.connections.tables import ConnectionRow, ConsentRow, ended_connections
from evergrant_server.store.database.columns import UtcDateTime, table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    RowPlace,
    Values,
    column_values,
    columns_equal,
    fetch_all,
    insert_all,
)
from evergrant_server.store.erasure.orders import is_held
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository

_LINK, _VERIFIER, _CODE = "sealed_link", "sealed_verifier", "sealed_code"
_TOKENS, _DEVICE, _REQUEST = "sealed_tokens", "sealed_device", "sealed_request"
_ACCOUNT = "sealed_account"
_REFERENCE = re.compile(r"[0-9a-z]{10}")
_CAN_GO_ON = (ConsentStatus.OPEN.value, ConsentStatus.STARTED.value, ConsentStatus.CONFIRMING.value)


class Consents(IntakeRepository[Consent, ConsentId], AuthenticatedRepository[Consent, ConsentId]):
    _table, _model = ConsentRow, Consent

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def add(
        self,
        consent: Consent,
        link: Secret | None,
        tokens: ImportedTokens | None = None,
        account: ConsentAccount | None = None,
    ) -> None:
        """Add a consent with its connect link, or the tokens of an import, if there are any.

        Raises Failure ALREADY_EXISTS.
        """
        secrets = {_LINK: link, _TOKENS: tokens and tokens.as_secret()}
        if account is not None:
            secrets[_ACCOUNT] = account.as_secret()
        sealed = await self._sealed(consent, secrets)
        await self._add(consent, f"Consent {consent.id}, or one with its link,", **sealed)

    async def add_imports(self, imports: Sequence[tuple[Consent, ImportedTokens]]) -> None:
        """Add the consents of new connections of one tenant, each with the tokens of its import."""
        tenant = imports[0][0].tenant
        keys = await self._sealer.get_or_create_keys(tenant, NO_CONNECTION, (self._purpose,))
        rows: list[Values] = []
        for consent, tokens in imports:
            content = tokens.as_secret().reveal().encode()
            sealed = {_TOKENS: seal(keys.current(self._purpose), self._place(consent, _TOKENS), content)}
            rows.append(column_values(consent, mac=row_mac(self._ring, consent), **sealed))
        await insert_all(self._connection, ConsentRow, rows)

    async def import_consent(self, tenant: Tenant, connection_id: ConnectionId) -> Consent | None:
        """The newest import into this connection, or None."""
        imports = col(ConsentRow.kind) == ConsentKind.IMPORT.value
        newest = await self._all(self._newest(tenant, connection_id, imports).limit(1))
        return newest[0] if newest else None

    async def received_consent(self, tenant: Tenant, connection_id: ConnectionId) -> Consent | None:
        """The newest consent whose code, or whose tokens, wait for a worker; or None. Not checked: `get`
        is, before anything is sent."""
        waits = col(ConsentRow.status) == ConsentStatus.CODE_RECEIVED.value
        consents = await self._all_unchecked(self._newest(tenant, connection_id, waits).limit(1))
        return consents[0] if consents else None

    async def by_link(self, link_hash: str) -> Consent | None:
        """The consent of this link, in whichever tenant."""
        return await self._one(link_hash=link_hash)

    async def by_state(self, state_hash: str) -> Consent | None:
        """The consent that this `state` belongs to, in whichever tenant."""
        return await self._one(state_hash=state_hash)

    async def open_consent(
        self,
        tenant: Tenant,
        connection_id: ConnectionId,
        now: datetime,
        *,
        app_id: AppId | None = None,
        challenge: str | None = None,
    ) -> Consent | None:
        """The newest consent of this app and challenge that the subject can still go on with, or None."""
        open_now = col(ConsentRow.status).in_(_CAN_GO_ON) & (col(ConsentRow.expires_at) > now)
        mine = columns_equal(ConsentRow, app_id=app_id, challenge=challenge)
        return await self._first(self._newest(tenant, connection_id, open_now & mine))

    async def maker_of(self, connection: Connection) -> AppId | None:
        """The app that made the connection; None for an import. Raises Failure AUTHORITY_BROKEN.

        It is the app of the first consent that brought a grant, or of the first one while there is no grant;
        of a token slot, that of the connection whose consents fill it; where another connection's token is
        exchanged, the app in whose name that is done.
        """
        if connection.source_app is not None:
            return connection.source_app
        consented = connection.consented_with or connection.id
        counts = col(ConsentRow.status) == ConsentStatus.DONE.value if connection.generation else true()
        mine = self._where(counts, tenant=connection.tenant, connection_id=consented)
        oldest = mine.order_by(col(ConsentRow.created_at), col(ConsentRow.id)).limit(1)
        first = await self._first(oldest)
        return None if first is None else first.app_id

    async def by_confirm_code(self, tenant: Tenant, confirm_hash: str) -> Consent | None:
        """The consent whose browser got this confirm code last."""
        return await self._one(tenant=tenant, confirm_hash=confirm_hash)

    async def confirming(self, tenant: Tenant, connection_id: ConnectionId) -> list[Consent]:
        """The connection's consents that wait for their app's confirmation, or were left waiting. Not
        checked: `reopen` and `get` are."""
        status = ConsentStatus.CONFIRMING.value
        return await self._all_unchecked(
            self._where(tenant=tenant, connection_id=connection_id, status=status)
        )

    async def reopen(self, consent: Consent) -> Consent:
        """Destroy the code of a consent that wasn't confirmed in time; its link works again.

        Raises Failure STORE_CONFLICT, NOT_FOUND, AUTHORITY_BROKEN.
        """
        await self.get(consent.tenant, consent.id)
        after = await self._change(reopened(consent), consent.revision)
        await self.erase_secrets(after)
        return after

    async def replace(
        self,
        consent: Consent,
        *,
        expected: int,
        verifier: Secret | None = None,
        code: Secret | None = None,
        tokens: ImportedTokens | None = None,
        request: PushedAuthorization | None = None,
        account: ConsentAccount | None = None,
    ) -> Consent:
        """Write `consent` if its row is still at `expected`; secrets that are given are sealed with it.

        Raises Failure STORE_CONFLICT when the row changed meanwhile, NOT_FOUND when it is gone.
        """
        pushed = None if request is None else request.as_secret()
        imported = None if tokens is None else tokens.as_secret()
        of_account = None if account is None else account.as_secret()
        secrets = {
            _VERIFIER: verifier,
            _CODE: code,
            _TOKENS: imported,
            _REQUEST: pushed,
            _ACCOUNT: of_account,
        }
        sealed = await self._sealed(
            consent, {name: secret for name, secret in secrets.items() if secret is not None}
        )
        return await self._change(consent, expected, **sealed)

    async def connect_link(self, consent: Consent) -> Secret:
        """The connect link's secret. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        if self.has_derived_link(consent):
            return self.derived_link(consent.tenant, consent.id)
        return await self._open(consent, _LINK)

    def derived_link(self, tenant: Tenant, id: ConsentId) -> Secret:
        """The link of a consent that the gateway requests, which can seal none: every role makes it.

        For the binding `oidc` alone, under which a link opens nothing before its subject has logged in.
        """
        mac = bytes.fromhex(self._ring.keyed_hash("connect link", tenant, id))
        return Secret(base64.urlsafe_b64encode(mac).decode().rstrip("="))

    def has_derived_link(self, consent: Consent) -> bool:
        return consent.link_hash == hash_link(self.derived_link(consent.tenant, consent.id).reveal())

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
        after = consent.__replace__(expires_at=device.expires_at)
        return await self._change(after, expected, **await self._sealed(after, {_DEVICE: device.as_secret()}))

    async def device_code(self, consent: Consent) -> DeviceCode | None:
        """The device code, or None before there is one. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        code = await self._opened(consent, _DEVICE)
        return None if code is None else DeviceCode.from_secret(code)

    async def account(self, consent: Consent) -> ConsentAccount:
        """The login hint to send, and who came in the meant account's place. Raises as `device_code`."""
        text = await self._opened(consent, _ACCOUNT)
        return ConsentAccount() if text is None else ConsentAccount.from_secret(text)

    async def last_failure(self, consent: Consent) -> str | None:
        """How the connection's newest other consent failed; None when it didn't."""
        not_this = col(ConsentRow.id) != consent.id
        before = await self._first(self._newest(consent.tenant, consent.connection_id, not_this))
        return None if before is None else before.failure

    async def newest(self, tenant: Tenant, connection_id: ConnectionId) -> Consent | None:
        """The connection's newest consent, or None. Not checked: it is only shown."""
        consents = await self._all_unchecked(self._newest(tenant, connection_id, true()).limit(1))
        return consents[0] if consents else None

    async def refused_by(self, connection: Connection) -> ErrorCode | None:
        """By what the newest consent has failed, while that is an admin's to repair. Not checked: it is only
        shown."""
        row = table_of(ConnectionRow).c
        mine = (row.tenant == connection.tenant, row.id == connection.id)
        (found,) = await fetch_all(self._connection, select(refused_by().label("code")).where(*mine))
        return None if found["code"] is None else ErrorCode(found["code"])

    async def newest_granted(self, connection: Connection) -> Consent | None:
        """The newest consent that brought a grant of the connection, or None. Not checked: as `newest`."""
        consented = connection.consented_with or connection.id
        done = col(ConsentRow.status) == ConsentStatus.DONE.value
        consents = await self._all_unchecked(self._newest(connection.tenant, consented, done).limit(1))
        return consents[0] if consents else None

    async def by_reference(self, tenant: Tenant, reference: str) -> list[Consent]:
        """The consents of a reference as `reference_of` gives it, in any spelling. Not checked."""
        begins = "".join(reference.lower().split()).replace("-", "")
        if not _REFERENCE.fullmatch(begins):
            return []
        # a range of the primary key in every collation
        first, last = (f"cns_{begins}{digit * 12}" for digit in "0z")
        return await self._all_unchecked(self._where(col(ConsentRow.id).between(first, last), tenant=tenant))

    async def prune(
        self, before: datetime, seen: RowPlace, now: datetime, limit: int = 500
    ) -> RowPlace | None:
        """Delete consents of live connections that nothing reads any more: expired before then, with an older
        one that brought a grant and a newer one of their connection, and under no legal hold.

        Looks at the first `limit` behind the place `seen`, and returns the place of the last one; None: no
        other has expired by then.
        """
        row = table_of(ConsentRow).c
        aged = select(row.tenant, row.id, row.expires_at).where(row.expires_at < before)
        aged = aged.where(tuple_(row.expires_at, row.id) > tuple_(*seen, types=[UtcDateTime(), String()]))
        page = await fetch_all(self._connection, aged.order_by(row.expires_at, row.id).limit(limit))
        if not page:
            return None
        mine = tuple_(row.tenant, row.id).in_([(consent["tenant"], consent["id"]) for consent in page])
        is_import = row.kind == ConsentKind.IMPORT.value
        await self._delete_free(mine & ~is_import & _is_between(), now)
        return page[-1]["expires_at"], page[-1]["id"]

    async def prune_ended(
        self, before: datetime, seen: RowPlace, now: datetime, limit: int = 500
    ) -> RowPlace | None:
        """Delete the consents of connections that had ended before then. As `prune`."""
        row = table_of(ConsentRow).c
        page = await fetch_all(self._connection, ended_connections(before, seen, limit))
        if not page:
            return None
        connections = [(connection["tenant"], connection["id"]) for connection in page]
        await self._delete_free(tuple_(row.tenant, row.connection_id).in_(connections), now)
        return page[-1]["changed_at"], page[-1]["id"]

    async def _delete_free(self, which: ColumnElement[bool], now: datetime) -> None:
        row = table_of(ConsentRow).c
        held = is_held(row.tenant, row.connection_id, now)
        free = select(row.tenant, row.id).where(which, ~held)
        await self._run(delete(ConsentRow).where(tuple_(row.tenant, row.id).in_(free)))

    async def pushed_request(self, consent: Consent) -> PushedAuthorization:
        """The pushed authorization request and its result. Raises as `code`."""
        return PushedAuthorization.from_secret(await self._open(consent, _REQUEST))

    async def erase_secrets(self, consent: Consent) -> None:
        """Drop verifier, codes, tokens and request: they were used. Row and revision stay as they are."""
        mine = columns_equal(ConsentRow, tenant=consent.tenant, id=consent.id)
        empty: Values = dict.fromkeys((_VERIFIER, _CODE, _TOKENS, _DEVICE, _REQUEST))
        await self._run(update(ConsentRow).where(mine).values(empty))

    async def _open(self, consent: Consent, column: str) -> Secret:
        secret = await self._opened(consent, column)
        if secret is None:
            raise Failure(ErrorCode.NOT_FOUND, f"{consent.id} holds no {column.removeprefix('sealed_')}.")
        return secret

    def _newest(
        self, tenant: Tenant, connection_id: ConnectionId, condition: ColumnElement[bool]
    ) -> Select[Any]:
        mine = self._where(condition, tenant=tenant, connection_id=connection_id)
        return mine.order_by(col(ConsentRow.created_at).desc(), col(ConsentRow.id).desc())


def _is_between() -> ColumnElement[bool]:
    """The connection has an older consent that brought a grant, and a newer one; of those that brought one
    itself, a newer one that did: the newest names the account."""
    older, newer = aliased(ConsentRow), aliased(ConsentRow)

    def of_same(row: type[ConsentRow]) -> ColumnElement[bool]:
        same = col(row.tenant) == col(ConsentRow.tenant)
        return same & (col(row.connection_id) == col(ConsentRow.connection_id))

    made, done = col(ConsentRow.created_at), ConsentStatus.DONE.value
    brought = (col(older.created_at) < made) & (col(older.status) == done)
    replaces = (col(ConsentRow.status) != done) | (col(newer.status) == done)
    return exists().where(of_same(older), brought) & exists().where(
        of_same(newer), col(newer.created_at) > made, replaces
    )
