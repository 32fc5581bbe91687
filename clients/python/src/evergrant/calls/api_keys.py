"""An admin's calls for the API keys of apps."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from evergrant.calls.call import (
    Call,
    Page,
    object_parser,
    page_parser,
    path_of,
    post,
    require_success,
    seconds_or_none,
    without_none,
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key of an app. Only the answer that created it has the `key`.

    `live`: the key is accepted. `last_used_at` is exact to the minute.
    """

    id: str
    live: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    key: str | None = field(default=None, repr=False)


def api_keys(app: str) -> Call[Page[ApiKey]]:
    """Every key of an app, the revoked and expired ones too."""
    return Call("GET", path_of("apps", app, "keys"), page_parser("API key", ApiKey))


def create_api_key(app: str, *, lifetime: timedelta | None = None) -> Call[ApiKey]:
    """Create a key; `lifetime` None takes the server's default. Only this answer has the `key`.

    An app has two live keys at most: the one in use, and its successor.
    """
    body = without_none(lifetime=seconds_or_none(lifetime))
    return post(path_of("apps", app, "keys"), object_parser("API key", ApiKey), body)


def revoke_api_key(app: str, key_id: str) -> Call[None]:
    """Revoke a key: requests with it are refused at once."""
    return Call("DELETE", path_of("apps", app, "keys", key_id), require_success)
