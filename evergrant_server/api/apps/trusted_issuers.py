"""`/v1/issuers`: the issuers of workload tokens that a tenant trusts. A worker reads their keys."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AfterValidator, Field
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.context import ApiContext
from evergrant_server.api.http.call import AdminCall, AdminChange, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, Text, View, request_url
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import TrustedIssuerId, new_id
from evergrant_server.core.outbox import fetch_issuer_keys_message
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer, kind_problem
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["workload identity"])

_Url = Annotated[str, Field(max_length=2000), AfterValidator(request_url)]


class TrustedIssuerBody(Body):
    """`issuer` is the tokens' `iss`, exactly; of the kind `spiffe` it is `spiffe://<trust domain>`.

    `jwks_uri`: where its keys are; by default where its OpenID Connect metadata says. The kind `spiffe` needs
    it: the URL of the trust domain's bundle. `kind` and `issuer` never change: put another issuer instead.
    """

    kind: IssuerKind
    issuer: Text
    jwks_uri: _Url | None = None


class TrustedIssuerView(View):
    """`keys` counts the public keys of the last good reading, at `keys_at`. They serve for 24 hours.

    `keys_problem`: why the last reading failed.
    """

    id: str
    name: str
    kind: IssuerKind
    issuer: str
    jwks_uri: str | None
    keys: int
    keys_at: datetime | None
    keys_problem: str | None
    created_at: datetime
    changed_at: datetime
    revision: int


@router.put("/v1/issuers/{name}")
@dangerous("a new issuer, and another place of its keys")
async def put_issuer(
    name: Slug, body: TrustedIssuerBody, response: Response, call: AdminChange
) -> TrustedIssuerView:
    """Trust an issuer of workload tokens, change where its keys are, or have them read now.

    Alone it lets no app in: a credential has to name it.
    """
    _check_body(call.api, body)

    async def write(tx: Transaction) -> tuple[TrustedIssuer, bool]:
        before = await tx.trusted_issuers.by_name(call.tenant, name)
        after = _with_body(call, name, before, body)
        approved: dict[str, str] = {}
        if before is None or before.jwks_uri != after.jwks_uri:
            approved = await use_approval(tx, call, body, {"issuer": issuer_facts(before)})
            after = after.without_keys()
        await tx.outbox.add(fetch_issuer_keys_message(after, call.context, call.now))
        expected = None if before is None else before.revision
        after = await tx.trusted_issuers.put(after, expected=expected)
        detail = {"name": name, **body.model_dump(mode="json"), **approved}
        await call.record(tx, AuditAction.TRUSTED_ISSUER_PUT, after.id, **detail)
        return after, before is None

    after, new = await call.write(write)
    response.status_code = 201 if new else 200
    return _view(after)


@router.get("/v1/issuers")
async def list_issuers(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[TrustedIssuerView]:
    """The tenant's trusted issuers, sorted by name."""
    listing = call.listing("issuers", limit, cursor)
    async with call.api.store.read() as tx:
        issuers = await tx.trusted_issuers.all(call.tenant, listing.after, listing.most)
    return listing.page([_view(issuer) for issuer in issuers], issuers, lambda issuer: issuer.name)


@router.get("/v1/issuers/{name}")
async def get_issuer(name: Slug, call: AuditorCall) -> TrustedIssuerView:
    async with call.api.store.read() as tx:
        return _view(require_found(await tx.trusted_issuers.by_name(call.tenant, name)))


@router.delete("/v1/issuers/{name}", status_code=204)
@dangerous("always: it takes from apps how they prove who they are")
async def delete_issuer(name: Slug, call: AdminCall) -> Response:
    """Trust an issuer no more. The credentials and delegation rules that name it go too, with the access
    tokens and delegations that came of them."""

    async def drop(tx: Transaction) -> None:
        issuer = require_found(await tx.trusted_issuers.to_delete(call.tenant, name))
        approved = await use_approval(tx, call, None, {"issuer": issuer_facts(issuer)})
        for credential in await tx.credentials.of_issuer(call.tenant, issuer.id):
            await tx.credentials.delete(credential)
            detail = {"app_id": credential.app_id, "name": credential.name, "issuer": name}
            await call.record(tx, AuditAction.CREDENTIAL_DELETED, credential.id, **detail)
        for rule in await tx.delegation_rules.of_issuer(call.tenant, issuer.id):
            await tx.delegation_rules.delete(rule)
            await call.record(tx, AuditAction.DELEGATION_RULE_DELETED, rule.id, name=rule.name, issuer=name)
        await tx.trusted_issuers.delete(issuer)
        await call.record(tx, AuditAction.TRUSTED_ISSUER_DELETED, issuer.id, name=name, **approved)

    await call.write(drop)
    return Response(status_code=204)


def issuer_facts(issuer: TrustedIssuer | None) -> dict[str, Any] | None:
    """What the issuer's name stands for; its revision moves with each reading of its keys."""
    return issuer and issuer.model_dump(mode="json", include={"id", "kind", "issuer", "jwks_uri"})


def _check_body(api: ApiContext, body: TrustedIssuerBody) -> None:
    """Raises Failure INVALID_REQUEST naming the field."""
    if body.kind is IssuerKind.SPIFFE and body.jwks_uri is None:
        raise invalid_request("jwks_uri", "A trust domain needs the URL of its bundle.")
    if body.kind is not IssuerKind.SPIFFE:
        try:
            request_url(body.issuer)
        except ValueError as error:
            raise invalid_request("issuer", f"issuer: it {error}.") from None
        if "?" in body.issuer:
            raise invalid_request(
                "issuer", "issuer: it has a query (OpenID Connect Discovery 1.0 section 3)."
            )
    if problem := kind_problem(body.kind, body.issuer):
        raise invalid_request("issuer", f"issuer: {problem}.")
    fetched = "issuer" if body.jwks_uri is None else "jwks_uri"
    api.require_endpoint(fetched, getattr(body, fetched))


def _with_body(
    call: ApiCall, name: str, before: TrustedIssuer | None, body: TrustedIssuerBody
) -> TrustedIssuer:
    """The issuer with the body's members. Raises Failure ALREADY_EXISTS for another issuer of this name."""
    if before is None:
        id, now = TrustedIssuerId(new_id("iss")), call.now
        return TrustedIssuer(
            tenant=call.tenant, id=id, name=name, created_at=now, changed_at=now, **dict(body)
        )
    if (before.kind, before.issuer) != (body.kind, body.issuer):
        why = (
            "This name is of another issuer. The rules that name it were made for that one: use another name."
        )
        raise Failure(ErrorCode.ALREADY_EXISTS, why)
    return before.__replace__(jwks_uri=body.jwks_uri, changed_at=call.now)


def _view(issuer: TrustedIssuer) -> TrustedIssuerView:
    return TrustedIssuerView.of(issuer, keys=len(issuer.keys or ()))
