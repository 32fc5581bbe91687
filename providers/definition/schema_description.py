"""What a definition says about a provider beside its OAuth requests, and where its facts come from."""

from typing import Annotated

from pydantic import AfterValidator, Field

from evergrant_server.core.api_limits.limits import DocumentedQuota
from providers.definition.schema_base import SpecPart, TextLine, UrlTemplate
from providers.definition.schema_response import AccountLookup, ApiFromReply, ApiRequest


def _without_query(value: str) -> str:
    if "?" in value or "#" in value:
        raise ValueError("has a query or a fragment: the paths of requests follow it")
    return value


class Sources(SpecPart):
    """By field, how many independent public sources agree; and the fields that only the vendor documents.

    `by_field` names a source: a page, an issue or a file that a reader can open.
    """

    agreeing: dict[str, int] = Field(default_factory=dict)
    by_field: dict[str, TextLine] = Field(default_factory=dict)
    vendor_documentation: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()


class DescriptivePart(SpecPart):
    """Fields on which no OAuth request depends."""

    display_name: TextLine
    categories: tuple[str, ...] = ()
    docs_url: UrlTemplate | None = None
    sources: Sources = Sources()
    notes: tuple[TextLine, ...] = ()
    rate_limit: TextLine | None = None
    api_base_url: Annotated[UrlTemplate, AfterValidator(_without_query)] | None = None
    api_base_url_param: str | None = None  # the template parameter that is the whole base URL
    api_from_reply: ApiFromReply | None = None
    userinfo_endpoint: UrlTemplate | None = None
    api_request: ApiRequest | None = None
    api_limits: tuple[DocumentedQuota, ...] = ()  # the gateway keeps its callers to them
    post_auth: tuple[AccountLookup, ...] = ()
    account_id: str | None = None  # the metadata that is the provider's own, stable id of the account
