"""Imports wait sealed until they are used; exports are written page by page and dropped whole."""

from datetime import timedelta

from evergrant_server.core.connections.consent import ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.export import Export, ExportFilters, ExportStatus
from evergrant_server.core.ids import ExportId, new_id
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from tests.conformance.store.samples import ACME, a_connection, a_consent, added
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


async def test_an_import_keeps_its_tokens_until_they_are_used(store: Store):
    connection = await added(store, a_connection())
    changes = {"kind": ConsentKind.IMPORT, "status": ConsentStatus.CODE_RECEIVED}
    consent = a_consent(connection).model_copy(update=changes)
    tokens = ImportedTokens(
        access_token=Secret("at"), refresh_token=Secret("rt"), expires_at=NOW, metadata={"a": 1}
    )
    async with store.write() as tx:
        await tx.consents.add(consent, None, tokens)
    async with store.read() as tx:
        assert await tx.consents.import_consent(ACME, connection.id) == consent
        assert await tx.consents.imported_tokens(consent) == tokens
        assert await tx.consents.open_consent(ACME, connection.id, NOW) is None  # it has no link
        raw = (await tx.connection.exec_driver_sql("SELECT sealed_tokens FROM consent")).scalar_one()
    assert bytes(raw).startswith(b"EVS")
    assert b"access_token" not in bytes(raw)
    async with store.write() as tx:
        await tx.consents.erase_secrets(consent)
    with fails(ErrorCode.NOT_FOUND):
        async with store.read() as tx:
            await tx.consents.imported_tokens(consent)


async def test_an_export_is_written_by_pages_and_one_page_once(store: Store):
    export = Export(
        tenant=ACME,
        id=ExportId(new_id("exp")),
        recipient={"kty": "OKP"},
        filters=ExportFilters(integration="crm"),
        by="app:admin",
        trace_id="",
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
    )
    async with store.write() as tx:
        await tx.exports.add(export)
        first = await tx.exports.write_page(export, export.page_sealed(2, 1, "con_b"), ["one", "two"])
    with fails(ErrorCode.STORE_CONFLICT):
        async with store.write() as tx:
            await tx.exports.write_page(export, export.page_sealed(2, 1, "con_b"), ["one", "two"])
    async with store.write() as tx:
        await tx.exports.write_page(first, first.page_sealed(1, 0, None), ["three"])
    async with store.read() as tx:
        whole = await tx.exports.get(ACME, export.id)
        assert whole is not None
        assert (whole.status, whole.exported, whole.skipped, whole.pages) == (ExportStatus.READY, 3, 1, 2)
        assert await tx.exports.lines(whole, 0, 2) == ["one", "two"]
        assert await tx.exports.lines(whole, 2, 2) == ["three"]
    async with store.write() as tx:
        gone = await tx.exports.delete_lines(whole)
        assert await tx.exports.lines(gone, 0, 10) == []
    assert gone.status is ExportStatus.GONE
