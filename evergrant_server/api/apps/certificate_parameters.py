"""The bodies of credentials that are client certificates (RFC 8705, X.509-SVID)."""

import re
from base64 import urlsafe_b64encode
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from evergrant_server.api.http.models import Body, Slug
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.crypto.client_certificates import NAME_KINDS, authorities_of_pem, normal_name

_MOST_AUTHORITIES = 20  # of a trust domain
_LONGEST_PEM = 64 * 1024
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]\Z")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}\Z")
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+\Z")  # SPIFFE-ID sections 2.1, 2.2


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
