"""An admin's calls for the credentials by which apps prove their identity (docs/apps.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evergrant.calls.call import Call, Page, object_parser, page_parser, path_of, require_success


@dataclass(frozen=True, slots=True)
class Credential:
    """One registered way of an app. `parameters` are those of its method, and hold no secret.

    `last_used_at` is exact to the minute.
    """

    id: str
    name: str
    method: str
    parameters: Mapping[str, Any]
    created_at: datetime
    revision: int
    last_used_at: datetime | None


def credentials(app: str) -> Call[Page[Credential]]:
    """Every credential of an app, by name."""
    return Call("GET", path_of("apps", app, "credentials"), page_parser("credential", Credential))


def put_credential(app: str, name: str, method: str, parameters: Mapping[str, Any]) -> Call[Credential]:
    """Register a credential of an app, or replace it, which ends its tokens at once.

    `parameters` are those of the method: for `private_key_jwt` `jwks`, a JWK set of public keys with an `alg`
    each; for `tls_client_auth` `ca` and one name; for `self_signed_tls_client_auth` `thumbprint`; for
    `x509_svid` `spiffe_id`, and `issuer` or `bundle`; for `workload_identity` `issuer`, the name of a trusted
    one, and `claims`, each with its only value.
    """
    body = {"method": method, "parameters": parameters}
    return Call("PUT", path_of("apps", app, "credentials", name), _parse, body=body)


def delete_credential(app: str, name: str) -> Call[None]:
    """Delete a credential: requests with its tokens are refused at once."""
    return Call("DELETE", path_of("apps", app, "credentials", name), require_success)


_parse = object_parser("credential", Credential)
