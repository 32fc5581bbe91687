"""Calls about what subjects have authorized OAuth clients of the gateway for."""

from dataclasses import dataclass
from datetime import datetime

from evergrant.calls.call import Call, Page, object_parser, page_parser, path_of, post, without_none

_FAMILIES = "/v1/token-families"


@dataclass(frozen=True, slots=True)
class TokenFamily:
    """The tokens of one authorization: the client acts as the app, for the subject, at the resource.

    `bound`: its client proves a key. `replays`: repetitions of used refresh tokens. `end`: why it has ended.
    """

    id: str
    client_id: str
    app: str | None
    subject: str
    resource: str
    connection_id: str | None
    scopes: tuple[str, ...]
    bound: bool
    live: bool
    created_at: datetime
    used_at: datetime
    called_at: datetime | None
    expires_at: datetime
    ended_at: datetime | None
    end: str | None
    replays: int


@dataclass(frozen=True, slots=True)
class EndedFamilies:
    """How many families were ended, and how many valid access tokens with them."""

    families: int
    access_tokens: int


_ENDED = object_parser("ended families", EndedFamilies)


def token_families(
    *, app: str | None = None, client_id: str | None = None, subject: str | None = None
) -> Call[Page[TokenFamily]]:
    """What subjects have authorized OAuth clients for; of one app, client or subject, if given."""
    query = without_none(app=app, client_id=client_id, subject=subject)
    return Call("GET", _FAMILIES, page_parser("token family", TokenFamily), query=query)


def end_token_family(family_id: str) -> Call[EndedFamilies]:
    """End one authorization with its tokens, whose next use is refused."""
    return Call("DELETE", path_of("token-families", family_id), _ENDED)


def end_token_families(
    *, app: str | None = None, client_id: str | None = None, subject: str | None = None
) -> Call[EndedFamilies]:
    """End all authorizations of an app, a client or a subject."""
    return post(f"{_FAMILIES}/end", _ENDED, without_none(app=app, client_id=client_id, subject=subject))
