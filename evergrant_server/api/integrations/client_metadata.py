"""The client metadata document that an authorization server fetches; its URL is the client id.

OAuth Client ID Metadata Document (draft-ietf-oauth-client-id-metadata-document), section 4.
"""

from typing import Any

from fastapi import APIRouter, Response

from evergrant_server.api.http.call import ApiDep
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, is_id
from evergrant_server.core.integrations import RegistrationMethod
from providers.registration.client_metadata import client_metadata

router = APIRouter(tags=["pages"])

_CACHE_CONTROL = "public, max-age=3600"


def client_metadata_url(public_url: str, integration_id: str) -> str:
    return f"{public_url}/oauth/client/{integration_id}"


@router.get("/oauth/client/{integration_id}")
async def get_client_metadata(integration_id: str, response: Response, api: ApiDep) -> dict[str, Any]:
    """The public metadata of one integration's client."""
    if not is_id(integration_id, "int"):
        raise Failure(ErrorCode.NOT_FOUND)
    async with api.store.read() as tx:
        found = await tx.integrations.find_in_any_tenant(IntegrationId(integration_id))
    if found is None or found.registration is not RegistrationMethod.METADATA_DOCUMENT:
        raise Failure(ErrorCode.NOT_FOUND)
    response.headers["Cache-Control"] = _CACHE_CONTROL
    url = client_metadata_url(api.settings.public_url, found.id)
    return client_metadata(
        api.redirect_uri(found.id),
        auth="none",
        scopes=found.default_scopes,
        client_id=url,
        dpop=found.dpop is True,
    )
