"""Request and response bodies of import and export."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, WithJsonSchema, field_validator, model_validator

from evergrant_server.api.http.models import Body, Label, Scopes, Slug, Subject, View
from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.export import ExportFilters, ExportStatus
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable

MAX_ITEMS = 100
_TOKEN = re.compile(r"[\x20-\x7e]{1,16384}")  # VSCHAR, RFC 6749 appendix A.12; the RFC sets no length
_TOKEN_TYPE = re.compile(r"[A-Za-z0-9._~-]{1,32}")
_MAX_METADATA, _MAX_METADATA_LENGTH = 50, 2000


def _token(value: Secret) -> Secret:
    if not _TOKEN.fullmatch(value.reveal()):
        raise ValueError("a token has 1 to 16384 visible ASCII characters")
    return value


def _token_type(value: str) -> str:
    if not _TOKEN_TYPE.fullmatch(value):
        raise ValueError("use a token type such as Bearer")
    if value.lower() == "dpop":
        raise ValueError("a DPoP token is bound to a key, and keys can't be imported")
    return value


ImportedToken = Annotated[Secret, AfterValidator(_token)]
_MetadataScalar = str | bool | int | float | None
MetadataValue = _MetadataScalar | Annotated[list[_MetadataScalar], Field(max_length=500)]


class ImportItem(Body):
    """One grant that another system obtained.

    Exactly one of `expires_at`, `expires_in` (seconds from now), `expires: "unknown"` and
    `never_expires` says when the access token expires. An unknown expiry counts as expired, so that
    the first lease refreshes, unless `never_expires` is true as well. `expires_at` is at most a
    century away: systems use dates beyond it as placeholders. `id_token` names the account, and is what an
    identity provider grants access for (ID-JAG).
    """

    integration: Slug
    subject: Subject
    label: Label = "default"
    access_token: ImportedToken = Field(repr=False)
    refresh_token: ImportedToken | None = Field(default=None, repr=False)
    id_token: ImportedToken | None = Field(default=None, repr=False)
    token_type: Annotated[str, AfterValidator(_token_type)] = "Bearer"
    expires_at: AwareDatetime | None = None
    expires_in: float | None = Field(default=None, ge=0, le=MAX_LIFETIME.total_seconds(), allow_inf_nan=False)
    expires: Literal["unknown"] | None = None
    never_expires: bool = False
    scopes: Scopes | None = None
    metadata: dict[Annotated[str, Field(max_length=100)], MetadataValue] = Field(
        default={}, max_length=_MAX_METADATA
    )

    @field_validator("metadata")
    @classmethod
    def _short_facts(cls, value: dict[str, MetadataValue]) -> dict[str, MetadataValue]:
        scalars = [scalar for one in value.values() for scalar in (one if isinstance(one, list) else [one])]
        for text in (*value, *(scalar for scalar in scalars if isinstance(scalar, str))):
            if len(text) > _MAX_METADATA_LENGTH or not text.isprintable():
                raise ValueError(f"values are printable and at most {_MAX_METADATA_LENGTH} characters")
        if any(isinstance(scalar, float) and not math.isfinite(scalar) for scalar in scalars):
            raise ValueError("a number is NaN or infinite, which JSON can't represent")
        return value

    @model_validator(mode="after")
    def _one_expiry(self) -> "ImportItem":
        ways = [
            self.expires_at is not None,
            self.expires_in is not None,
            self.expires is not None or self.never_expires,
        ]
        if sum(ways) != 1:
            raise ValueError('give one of expires_at, expires_in, expires: "unknown" and never_expires')
        return self


_ITEMS_SCHEMA: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS}


class ImportBody(Body):
    """Up to 100 grants. `dry_run` writes nothing; `verify` refreshes each once after its installation."""

    items: Annotated[
        list[Any],
        Field(min_length=1, max_length=MAX_ITEMS, repr=False),
        WithJsonSchema(_ITEMS_SCHEMA | {"items": ImportItem.model_json_schema()}),
    ]
    dry_run: bool = False
    verify: bool = True


ImportStatus = Literal["imported", "exists", "invalid", "would_import"]
VerificationStatus = Literal["verified", "unverified", "failed"]


class ImportOutcome(CheckedModel):
    """The outcome of one item. `code` and `detail` say why it is invalid, unverified or failed.

    `verification` is None for an item that wasn't imported, `verified` after a refresh, `unverified`
    when no refresh was tried or none has ended, `failed` when the provider refused it.
    """

    index: int
    status: ImportStatus
    connection_id: str | None = None
    verification: VerificationStatus | None = None
    code: ErrorCode | None = None
    field: str | None = None
    detail: str | None = None

    def with_verification(
        self, how: VerificationStatus, code: ErrorCode | None = None, detail: str | None = None
    ) -> "ImportOutcome":
        return self.__replace__(verification=how, code=code, detail=detail)


class ImportView(CheckedModel):
    items: list[ImportOutcome]


class ExportBody(Body):
    """`public_key` is X25519 or P-256, as a JWK (RFC 7517) or PEM. A filter of None matches everything."""

    public_key: dict[str, Any] | Annotated[str, Field(max_length=4000)] = Field(repr=False)
    filters: ExportFilters = ExportFilters()

    @field_validator("filters")
    @classmethod
    def _whole_filters(cls, value: ExportFilters) -> ExportFilters:
        if not is_storable(value.model_dump()):
            raise ValueError("a filter contains NUL or an unpaired surrogate")
        return value


class ExportView(View):
    """Progress of an export. `exported` counts sealed lines, `skipped` connections without a live grant."""

    id: str
    status: ExportStatus
    exported: int
    skipped: int
    key: str = Field(description="RFC 7638 thumbprint of the public key")
    expires_at: AwareDatetime
