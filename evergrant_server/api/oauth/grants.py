"""What a token request is judged by: one function for each grant type, which `issue_token` calls.

A grant is given the whole request and returns the view of its answer, whose members that are None are left
out. It raises TokenRefused for an error of RFC 6749 section 5.2, and commits what it issues with its audit
record. `client_credentials.proven_app` authenticates an app.
"""

from collections.abc import Awaitable, Callable

from evergrant_server.api.http.models import View
from evergrant_server.api.oauth import client_credentials
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest
from evergrant_server.api.oauth.exchange import exchange, id_jag
from evergrant_server.api.oauth.families.code_grant import exchange_code
from evergrant_server.api.oauth.families.refresh_grant import refresh

Grant = Callable[[ClientTokenRequest], Awaitable[View]]

# by grant_type, in the order in which the metadata names them
GRANTS: dict[str, Grant] = {
    client_credentials.GRANT_TYPE: client_credentials.issue,
    "authorization_code": exchange_code,
    "refresh_token": refresh,
    exchange.GRANT_TYPE: exchange.issue,
    id_jag.GRANT_TYPE: id_jag.issue,
}
