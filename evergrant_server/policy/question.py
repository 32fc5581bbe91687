"""A request as permits judge it, the reasons of a decision, and the fields of a permit that decide.

A deny compares scopes by the names that a provider has for one; an allow compares exactly.
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import UNKNOWN_SCOPE
from evergrant_server.policy.proxied import ProxiedRequest

Aliases = tuple[frozenset[str], ...]  # each has the names of one scope, without case


class Target(NamedTuple):
    """What a request is about. A member that is None stands for all of its kind: without any it is the whole
    tenant, without a subject the integration itself, without `connection_id` no connection that exists."""

    integration: str | None = None
    provider: str | None = None
    subject: str | None = None
    connection_id: str | None = None

    @classmethod
    def of(cls, connection: Connection) -> "Target":
        return cls(connection.integration, connection.provider, connection.subject, connection.id)


class PermitQuestion(NamedTuple):
    """A request as permits judge it.

    `address` is the caller's, None when it isn't known. `excess` has the scopes of a token beyond those that
    its lease requests. `request` is the one to a provider's API, None when there is none or it isn't known.
    `aliases` are the names that the provider has for one scope.
    """

    target: Target
    action: Action
    at: datetime
    address: str | None = None
    scopes: tuple[str, ...] = ()
    excess: tuple[str, ...] = ()
    request: ProxiedRequest | None = None
    aliases: Aliases = ()


class DecisionReason(StrEnum):
    """The reason of a decision; the API turns it into an error code."""

    ALLOWED = "allowed"
    DENIED = "denied"  # by a permit with `effect: deny`
    NO_PERMIT = "no_permit"  # nothing covers it: for this app it doesn't exist
    ACTION_NOT_PERMITTED = "action_not_permitted"
    REQUEST_NOT_PERMITTED = "request_not_permitted"  # its method, path or tool
    SCOPE_ABOVE_CEILING = "scope_above_ceiling"
    TOKEN_ABOVE_REQUEST = "token_above_request"


class PermitField(StrEnum):
    """A field of a permit, in the order in which a permit is compared with a request."""

    INTEGRATION = "integration"
    PROVIDER = "provider"
    SUBJECT = "subject"
    CONNECTION = "connection"
    EXPIRY = "expiry"
    SOURCE = "source"
    ACTION = "action"
    METHOD = "method"
    PATH = "path"
    TOOL = "tool"
    SCOPE = "scope"
    EXACT_SCOPES = "exact_scopes"


def denied_scopes(scopes: Iterable[str], denied: Iterable[str], aliases: Aliases = ()) -> tuple[str, ...]:
    """Those of the scopes that are denied. One that isn't known is each that is denied."""
    wanted = [(folded(scope), scope_names(scope, aliases)) for scope in denied]
    return tuple(
        scope
        for scope in scopes
        if scope == UNKNOWN_SCOPE
        or any(plain in scope_names(scope, aliases) or folded(scope) in names for plain, names in wanted)
    )


def scope_names(scope: str, aliases: Aliases) -> set[str]:
    """All that a provider calls it: the aliases of its definition, and of a URL what follows the last `/`,
    as `Mail.Read` of `https://graph.microsoft.com/Mail.Read`."""
    plain = folded(scope)
    names = {plain}
    for group in aliases:
        if plain in group:
            names |= group
    return names | {name.rpartition("/")[2] for name in names if "://" in name and not name.endswith("/")}


def folded(scope: str) -> str:
    return scope.casefold()
