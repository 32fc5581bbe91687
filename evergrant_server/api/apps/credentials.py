"""`/v1/apps/{a}/credentials/{c}`: how an app may prove its identity at the token endpoint. No secrets."""

import re
from base64 import urlsafe_b64encode
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.apps.routes import app_facts, require_app
from evergrant_server.api.http.call import AdminCall, AdminChange, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Page, Slug, Text, View, checked_storable
from evergrant_server.core.access import AppCredential, AuthenticationMethod
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import CredentialId, KeyId, Tenant, new_id
from evergrant_server.core.workloads.rules import MOST_CLAIMS, WorkloadRule, rule_problem
from evergrant_server.crypto.client_assertions import public_key_set
from evergrant_server.crypto.client_certificates import NAME_KINDS, authorities_of_pem, normal_name
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

_PATH = "/v1/apps/{name}/credentials"
_MOST_AUTHORITIES = 20  # of a trust domain
_LONGEST_PEM = 64 * 1024
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]\Z")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}\Z")
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+\Z")  # SPIFFE-ID sections 2.1, 2.2

_ClaimText = Annotated[Text, AfterValidator(checked_storable)]


def _one_authority(pem: str) -> str:
    if len(authorities_of_pem(pem)) != 1:
        raise ValueError("must be one authority")
    return pem


def _bundle(pem: str) -> str:
    if len(authorities_of_pem(pem)) > _MOST_AUTHORITIES:
        raise ValueError(f"must be {_MOST_AUTHORITIES} authorities at the most")
    return pem


def _thumbprint(text: str) -> str:
    """As tokens are bound to it; openssl prints the same 32 bytes in hexadecimal digits."""
    if _THUMBPRINT.match(text):
        return text
    if _FINGERPRINT.match(text):
        return urlsafe_b64encode(bytes.fromhex(text.replace(":", ""))).rstrip(b"=").decode()
    raise ValueError("must be the SHA-256 of the certificate: x5t#S256, or hexadecimal digits")


def _spiffe_id(text: str) -> str:
    if not _SPIFFE_ID.match(text) or any(part in (".", "..") for part in text.split("/")):
        raise ValueError("must be spiffe://trust-domain/path, exactly as the certificate has it")
    return text


_Name = Annotated[str | None, Field(min_length=1, max_length=1000)]
_Pem = Annotated[str, Field(max_length=_LONGEST_PEM)]


class TlsClientAuthParameters(Body):
    """`ca` is the PEM of the authority that issues the app's certificates; one of the others is their name.

    The whole name is compared: a subject as RFC 4514 writes it, or one subject alternative name.
    """

    ca: Annotated[_Pem, AfterValidator(_one_authority)]
    subject_dn: _Name = None
    san_dns: _Name = None
    san_uri: _Name = None
    san_ip: _Name = None
    san_email: _Name = None

    @field_validator(*NAME_KINDS)
    @classmethod
    def _normal(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or info.field_name is None:
            return value
        try:
            return normal_name(info.field_name, value)
        except ValueError:
            raise ValueError("is no such name, or one that many hosts have") from None

    @model_validator(mode="after")
    def _one_name(self) -> "TlsClientAuthParameters":
        if sum(getattr(self, kind) is not None for kind in NAME_KINDS) != 1:
            raise ValueError(f"give one of {', '.join(NAME_KINDS)}")
        return self


class TlsClientAuthBody(Body):
    """A certificate with a registered name, of a registered authority (RFC 8705 section 2.1)."""

    method: Literal[AuthenticationMethod.TLS_CLIENT_AUTH]
    parameters: TlsClientAuthParameters


class SelfSignedParameters(Body):
    """`thumbprint` is the SHA-256 of the certificate: base64url (`x5t#S256`), or as openssl prints it."""

    thumbprint: Annotated[str, AfterValidator(_thumbprint)]


class SelfSignedBody(Body):
    """One registered certificate of any issuer (RFC 8705 section 2.2)."""

    method: Literal[AuthenticationMethod.SELF_SIGNED_TLS_CLIENT_AUTH]
    parameters: SelfSignedParameters


class X509SvidParameters(Body):
    """`issuer` is the name of the trusted issuer that is the trust domain, whose bundle a worker reads.

    Or `bundle` is the PEM of the trust domain's authorities, for one whose bundle can't be read.
    """

    spiffe_id: Annotated[str, Field(max_length=2048), AfterValidator(_spiffe_id)]
    issuer: Slug | None = None
    bundle: Annotated[_Pem, AfterValidator(_bundle)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "X509SvidParameters":
        if (self.issuer is None) is (self.bundle is None):
            raise ValueError("give issuer or bundle")
        return self


class X509SvidBody(Body):
    """An X.509-SVID with a registered SPIFFE ID (draft-ietf-oauth-spiffe-client-auth)."""

    method: Literal[AuthenticationMethod.X509_SVID]
    parameters: X509SvidParameters


class WorkloadIdentityParameters(Body):
    """`issuer` is the name of a trusted issuer. `claims`: each with its only value; all of them are required.

    A claim within another one is named by its JSON Pointer (RFC 6901), such as
    `/kubernetes.io/serviceaccount/uid`. `audience` is of the issuers of the kind `azure` alone: the id of the
    application there that stands for Evergrant. Elsewhere the audience is Evergrant's issuer.
    """

    issuer: Slug
    claims: Annotated[dict[_ClaimText, _ClaimText], Field(min_length=1, max_length=MOST_CLAIMS)]
    audience: _ClaimText | None = None


class WorkloadIdentityBody(Body):
    """Tokens that the app's platform signs, or JWT-SVIDs of its trust domain."""

    method: Literal[AuthenticationMethod.WORKLOAD_IDENTITY]
    parameters: WorkloadIdentityParameters


async def stored_parameters(tx: Transaction, tenant: Tenant, parameters: Body) -> dict[str, Any]:
    """The parameters of any method, as the credential's row keeps them.

    Raises Failure INVALID_REQUEST for a rule that could let others in, or that names no trusted issuer.
    """
    stored = parameters.model_dump(mode="json")
    if not isinstance(parameters, WorkloadIdentityParameters | X509SvidParameters) or not parameters.issuer:
        return stored
    issuer = await tx.trusted_issuers.by_name(tenant, parameters.issuer)
    if issuer is None:
        raise invalid_request("parameters.issuer", "There is no trusted issuer of this name: put it first.")
    if isinstance(parameters, X509SvidParameters):
        if not issuer.has_spiffe_id(parameters.spiffe_id):
            why = f"parameters.spiffe_id: it is no SPIFFE ID of {issuer.issuer}."
            raise invalid_request("parameters.spiffe_id", why)
        return {**stored, "issuer_id": issuer.id}
    rule = WorkloadRule.model_validate({**stored, "issuer_id": issuer.id})
    if problem := rule_problem(issuer, rule):
        field, why = problem
        raise invalid_request(f"parameters.{field}", f"parameters.{field}: {why}.")
    return {**stored, "issuer_id": issuer.id}


class PrivateKeyJwtParameters(Body):
    """`jwks` is a JWK set (RFC 7517 section 5) of public asymmetric keys, with an `alg` each."""

    jwks: Annotated[dict[str, Any], AfterValidator(public_key_set)]


class PrivateKeyJwtBody(Body):
    """Assertions that the app signs with a private key of its own (RFC 7523 section 2.2)."""

    method: Literal[AuthenticationMethod.PRIVATE_KEY_JWT]
    parameters: PrivateKeyJwtParameters


# one member for each method, told apart by `method`
CredentialBody = Annotated[
    PrivateKeyJwtBody | TlsClientAuthBody | SelfSignedBody | X509SvidBody | WorkloadIdentityBody,
    Field(discriminator="method"),
]


class CredentialView(View):
    """`parameters` are those of the method. `last_used_at` is exact to the minute."""

    id: str
    name: str
    method: AuthenticationMethod
    parameters: dict[str, Any]
    created_at: datetime
    revision: int
    last_used_at: datetime | None


@router.put(_PATH + "/{credential_name}")
@dangerous("a new way in, and each change of one")
async def put_credential(
    name: Slug, credential_name: Slug, body: CredentialBody, response: Response, call: AdminChange
) -> CredentialView:
    """Register a credential, or replace it, which ends its tokens at once.

    To replace one without a gap, register the second under another name, give the app its key, and delete the
    first.
    """

    async def write(tx: Transaction) -> tuple[AppCredential | None, AppCredential]:
        app = await require_app(tx, call, name)
        before = await tx.credentials.by_name(call.tenant, app.id, credential_name)
        parameters = await stored_parameters(tx, call.tenant, body.parameters)
        content = {"method": body.method, "parameters": parameters}
        approved: dict[str, str] = {}
        if before is None or (before.method, before.parameters) != (body.method, parameters):
            known = before and {"id": before.id, "revision": before.revision}
            facts = {**await app_facts(tx, app), "credential": known, "parameters": parameters}
            approved = await use_approval(tx, call, body, facts)
        if before is None:
            new = AppCredential(
                tenant=call.tenant,
                id=CredentialId(KeyId(new_id("crd"))),
                app_id=app.id,
                name=credential_name,
                created_at=call.now,
                **content,
            )
            after = await tx.credentials.put(new, expected=None)
        else:
            after = await tx.credentials.put(before.__replace__(**content), expected=before.revision)
        detail = {"app": name, "name": credential_name, **body.model_dump(mode="json"), **approved}
        await call.record(tx, AuditAction.CREDENTIAL_PUT, after.id, **detail)
        return before, after

    before, after = await call.write(write)
    response.status_code = 201 if before is None else 200
    return await _view(call, after)


@router.get(_PATH)
async def list_credentials(name: Slug, call: AuditorCall) -> Page[CredentialView]:
    """The app's credentials, sorted by name."""
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        credentials = await tx.credentials.of_app(call.tenant, app.id)
        uses = await tx.access.last_uses(call.tenant, app.id)
    return Page(
        items=[
            CredentialView.of(credential, last_used_at=uses.get(credential.id)) for credential in credentials
        ]
    )


@router.get(_PATH + "/{credential_name}")
async def get_credential(name: Slug, credential_name: Slug, call: AuditorCall) -> CredentialView:
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        credential = require_found(await tx.credentials.by_name(call.tenant, app.id, credential_name))
    return await _view(call, credential)


@router.delete(_PATH + "/{credential_name}", status_code=204)
async def delete_credential(name: Slug, credential_name: Slug, call: AdminCall) -> Response:
    """Delete a credential. Requests with its tokens are refused at once."""

    async def delete(tx: Transaction) -> None:
        app = await require_app(tx, call, name)
        credential = require_found(await tx.credentials.by_name(call.tenant, app.id, credential_name))
        await tx.credentials.delete(credential)
        detail = {"app": name, "name": credential_name, "method": credential.method}
        await call.record(tx, AuditAction.CREDENTIAL_DELETED, credential.id, **detail)

    await call.write(delete)
    return Response(status_code=204)


async def _view(call: ApiCall, credential: AppCredential) -> CredentialView:
    async with call.api.store.read() as tx:
        uses = await tx.access.last_uses(call.tenant, credential.app_id)
    return CredentialView.of(credential, last_used_at=uses.get(credential.id))
