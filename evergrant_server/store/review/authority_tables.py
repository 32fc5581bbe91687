"""The tables whose rows have an authenticator in their column `mac`: those of repositories that check it."""

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.events import WebhookEvent
from evergrant_server.core.model import CheckedModel
from evergrant_server.store.authentication import AppTokenRow
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.connections.tables import ConnectionRow, ConsentRow
from evergrant_server.store.database.columns import IdTable, table_of
from evergrant_server.store.oauth.request_tables import (
    AuthorizationRequestRow,
    ClientConsentRow,
    SubjectSessionRow,
)
from evergrant_server.store.oauth.tables import (
    AccessTokenRow,
    AuthorizationCodeRow,
    OAuthClientRow,
    RefreshTokenRow,
    TokenFamilyRow,
)
from evergrant_server.store.webhooks import EventRow

# Not from a list: a table that a repository reads with authenticators is checked, shown and accepted.
_TABLES = {
    **AuthenticatedRepository.tables_below(),
    ConnectionRow: Connection,
    EventRow: WebhookEvent,
}
ALL: dict[type[IdTable], type[CheckedModel]] = dict(
    sorted(_TABLES.items(), key=lambda pair: table_of(pair[0]).name)
)
# as many rows as there are connections, subjects or requests: for `authority verify`, not for `doctor`
_MANY = {
    *(AccessTokenRow, AppTokenRow, AuthorizationCodeRow, AuthorizationRequestRow, ClientConsentRow),
    *(
        ConnectionRow,
        ConsentRow,
        EventRow,
        OAuthClientRow,
        RefreshTokenRow,
        SubjectSessionRow,
        TokenFamilyRow,
    ),
}
CONFIGURATION = {table: model for table, model in ALL.items() if table not in _MANY}
